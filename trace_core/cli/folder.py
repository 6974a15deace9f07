"""The folder of a job, ``OUT.parts``: the job's identity and its finished parts."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

from .. import __version__
from ..errors import TraceError
from ..lora.erasure import ErasureLora
from ..lora.files import why, write_whole
from .workers import Setup

TEMPORARY = ".trace-part-"


class Folder:
    """``OUT.parts``, with ``job.json`` for the job's identity and one file per finished concept."""

    def __init__(self, out: str | Path, setup: Setup):
        self.path, self.setup = Path(f"{out}.parts"), setup
        width = max(2, len(str(len(setup.concepts))))
        names = ["start", *(_slug(c.target) for c in setup.concepts)]
        self.unwritten: dict[int, bytes] = {}  #: finished parts that did not fit on the disk
        self.files = [
            self.path / f"{number:0{width}d}-{name}.safetensors" for number, name in enumerate(names)
        ]

    def open(self) -> None:
        """Begin the job, or continue it.

        A job without a finished part is replaced, because its list may have had a mistake.

        Raises:
            TraceError: if the folder belongs to another job, naming the first difference.
        """
        mine, file = json.loads(json.dumps(identity(self.setup))), self.path / "job.json"
        if self.path.exists() and not self.path.is_dir():
            raise TraceError(
                f"'{self.path}' is a file, but finished parts need a folder of this name; choose "
                "another --out"
            )
        if not file.exists():
            strangers = [f.name for f in self.path.glob("*") if not f.name.startswith(TEMPORARY)]
            if strangers:
                raise TraceError(
                    f"'{self.path}' contains '{min(strangers)}' and no job.json, so it is not the folder of "
                    "a job; move it away, or choose another --out"
                )
        if not any(self.path.glob("[0-9]*.safetensors")):
            self._write(file, (json.dumps(mine, indent=1, ensure_ascii=False) + "\n").encode())
            return
        try:
            theirs = json.loads(file.read_text(encoding="utf-8"))
            found = difference(theirs, mine)
        except (OSError, ValueError, AttributeError) as error:
            raise TraceError(f"cannot read '{file}': {error}; remove '{self.path}' to start over") from error
        if found:
            raise TraceError(
                f"another job is in '{self.path}': {found}; give the same options to continue it, choose "
                "another --out, or remove the folder to start over"
            )

    def read(self, number: int) -> ErasureLora | None:
        """A finished part, or None. A damaged file counts as missing."""
        try:
            if number in self.unwritten:
                return ErasureLora.from_bytes(self.unwritten[number])
            return ErasureLora.load(self.files[number]) if self.files[number].exists() else None
        except TraceError:
            return None

    def write(self, number: int, data: bytes) -> str:
        """Keep a finished part as a file, or in memory if the disk is full.

        Returns:
            why it could not be written, or an empty string.
        """
        self.unwritten[number] = data
        try:
            for waiting in list(self.unwritten):  # the disk may have room again
                self._write(self.files[waiting], self.unwritten[waiting])
                del self.unwritten[waiting]
        except TraceError as error:
            return str(error)
        return ""

    def _write(self, file: Path, data: bytes) -> None:
        """Write a file completely or not at all, flushed to disk.

        Raises:
            TraceError: naming the file.
        """
        try:
            write_whole(file, data, TEMPORARY)
        except OSError as error:
            raise TraceError(f"cannot write '{file}': {why(error)}") from error

    def remove(self) -> None:
        """Delete the files of the job, and the folder if nothing else is in it."""
        # job.json last: an interrupted removal still leaves a valid job
        for file in (*self.files, *self.path.glob(f"{TEMPORARY}*"), self.path / "job.json"):
            file.unlink(missing_ok=True)
        try:
            self.path.rmdir()
        except OSError:
            pass


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "concept"


def identity(setup: Setup) -> dict:
    """Everything that the result of a job depends on."""
    model = setup.model if setup.size is None else {"file": Path(setup.model).name, "bytes": setup.size}
    parts = (
        {"clip": [Path(c).name for c in setup.clip], "dtype": setup.dtype}
        if setup.clip or setup.dtype != "auto"
        else {}
    )
    return {
        **parts,
        "version": __version__,
        "model": model,
        "method": setup.method,
        "concepts": [{k: v for k, v in asdict(c).items() if k != "kind_given" or v} for c in setup.concepts],
        "keep": list(setup.keep),
        "closed form": dict(setup.closed_form),
        "finetune": dict(setup.finetune),
        "seed": setup.seed,
        "threads": setup.threads,
    }


def difference(theirs, mine, name: str = "") -> str:
    """The first difference of two JSON values, in words; empty if they are equal."""
    if theirs == mine:
        return ""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        keys = dict.fromkeys((*mine, *theirs))
        found = (difference(theirs.get(k), mine.get(k), f"{name}, {k}" if name else k) for k in keys)
        return next(filter(None, found), "")
    if isinstance(theirs, list) and isinstance(mine, list):
        if len(theirs) != len(mine):
            return f"{name} had {len(theirs)} entries and has {len(mine)}"
        found = (
            difference(a, b, f"{name}, number {i}") for i, (a, b) in enumerate(zip(theirs, mine), start=1)
        )
        return next(filter(None, found), "")
    return f"{name} was {_shown(theirs)} and is {_shown(mine)}"


def _shown(value) -> str:
    return "the default" if value is None else json.dumps(value, ensure_ascii=False)[:60]
