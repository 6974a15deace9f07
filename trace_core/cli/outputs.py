"""Checks of input and output paths before any work, and safe writing of results."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import LoraError, TraceError
from ..lora.files import is_stream, real, why, write_whole

#: Options that name input files; each holds one name or a list of names
READ = {"model": "--model", "clip": "--clip", "vae": "--vae", "lora": "--lora", "files": "FILE",
    "file": "FILE", "erase_file": "--erase-file",
        "keep_file": "--keep-file"}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A file that a command reads or writes, and its option.

    ``kept``: the command reads an existing file first, so that it may exist.
    """

    option: str
    path: Path
    kept: bool = False

    def __str__(self) -> str:
        return f"{self.option} '{self.path}'"


def check(args) -> None:
    """Refuse output paths that would lose a file, before any work.

    An output must differ from every input and every other output, also through links and other spellings. An
    existing file is replaced only with ``--overwrite``. A folder or an unwritable place is refused.

    Raises:
        TraceError: naming both options and the remedy.
    """
    read, written = inputs(args), outputs(args)
    for place in written:
        check_writable(place.path, place.option)
    for place in written:
        found = next((other for other in read if same(place.path, other.path)), None)
        if found:
            raise TraceError(
                f"{place} is the same file as {found}, which this command reads; choose another name for "
                f"{place.option}"
            )
    _check_distinct(written)
    _check_folder(args, read, written)
    for place in written:
        if place.path.exists() and not place.kept and not is_stream(place.path) and not may_replace(args):
            raise TraceError(f"{place} exists already; choose another name, or add --overwrite to replace it")


def may_replace(args) -> bool:
    """Whether a command may replace files that exist."""
    return getattr(args, "overwrite", False)


def inputs(args) -> list[Place]:
    """The files that a command reads."""
    from .models import DEMO_MODELS

    found = []
    for name, option in READ.items():
        value = getattr(args, name, None)
        for path in [value] if isinstance(value, str) else value or []:
            if name == "model" and path in DEMO_MODELS:
                from ..demo.networks import ASSETS

                found += [
                    Place(f"{option} {path}", file) for file in sorted(ASSETS.rglob("*")) if file.is_file()
                ]
            else:
                found.append(Place(option, Path(path)))
    return found + _judging(args)


def _judging(args) -> list[Place]:
    """The table of a protocol, and the files of a judge's folder."""
    table, judge = getattr(args, "protocol", None), getattr(args, "judge", None)
    found = [Place("--protocol", Path(table))] if table and Path(table).is_file() else []
    if judge and Path(judge).is_dir():
        found += [Place("--judge", file) for file in sorted(Path(judge).iterdir()) if file.is_file()]
    return found


def outputs(args) -> list[Place]:
    """The files that a command writes."""
    found = []
    out = None if getattr(args, "dry_run", False) else getattr(args, "out", None)
    if args.command == "demo":
        from .shows import FILES

        found += [Place("--out", Path(out) / name) for name in FILES]
    elif args.command == "evaluate":
        from .shows import JUDGED

        found += [Place("--out", Path(out) / name, kept=True) for name in JUDGED] if out else []
    elif out is not None:
        found.append(Place("--out", Path(out)))
    if getattr(args, "resume", None):
        found.append(Place("--resume", Path(args.resume), kept=True))
    for name in ("json", "markdown", "picture"):
        if getattr(args, name, None):
            found.append(Place(f"--{name}", Path(getattr(args, name))))
    return found


def same(a: Path, b: Path) -> bool:
    """Whether two paths are, or would become, the same file."""
    first, second = str(real(a)), str(real(b))
    if sys.platform in ("win32", "darwin"):  # most file systems there ignore case
        first, second = first.casefold(), second.casefold()
    try:
        return first == second or os.path.samefile(a, b)
    except OSError:
        return False


def check_writable(path: Path, option: str) -> None:
    """Refuse an unwritable path before the work.

    Raises:
        TraceError: naming the path.
    """
    if path == Path():  # an empty text too
        raise TraceError(f"{option} names no file; write the name of one")
    if path.is_dir():
        raise TraceError(f"{option} '{path}' is a folder; name a file in it, or another file")
    if is_stream(path) and os.access(path, os.W_OK):
        return
    target = real(path)
    folder = target.parent
    while not folder.exists():
        folder = folder.parent
    if (
        not folder.is_dir()
        or target.is_symlink()
        or not os.access(target if target.exists() else folder, os.W_OK)
    ):
        raise TraceError(f"cannot write '{path}'; choose a file in a folder with write permission")


def _check_distinct(written: Sequence[Place]) -> None:
    for i, place in enumerate(written):
        for other in written[i + 1 :]:
            if same(place.path, other.path):
                raise TraceError(f"{place} and {other} are one file; give each a name of its own")
            if real(place.path) in real(other.path).parents or real(other.path) in real(place.path).parents:
                raise TraceError(
                    f"{place} and {other}: one would be a folder of the other; give each a name of its own"
                )


def _check_folder(args, read: Sequence[Place], written: Sequence[Place]) -> None:
    """Refuse other files in the folder of a job."""
    if getattr(args, "jobs", None) is None:
        return
    folder = real(f"{args.out}.parts")
    inside = next((p for p in (*read, *written) if folder in (real(p.path), *real(p.path).parents)), None)
    if inside:
        raise TraceError(
            f"{inside} is in the folder '{args.out}.parts', where --jobs keeps finished concepts; choose "
            "another place"
        )


# ------------------------------------------------------------------------------------------- writing


def keep(data: bytes, path: str | Path, what: str, left: str = "", overwrite: bool = True) -> Path:
    """Write a result. If the path cannot be written, save it elsewhere and name that place in the error.

    Args:
        what: name of the result in the error, such as "the erasure".
        left: a sentence on what else remains of the work.
        overwrite: False keeps a file that another program made since :func:`check`.

    Raises:
        LoraError: whenever ``path`` could not be written.
    """
    path = Path(path)
    try:
        return write_whole(path, data, replace=overwrite)
    except OSError as error:
        reason = why(error)
    for folder in dict.fromkeys((Path(tempfile.gettempdir()), Path.home())):
        rescued = _rescued(data, folder, path.name)
        if rescued is None:
            continue
        raise LoraError(
            f"cannot write '{path}': {reason}. Nothing is lost: {what} is in '{rescued}'; move it where you "
            "want it"
        )
    raise LoraError(
        f"cannot write '{path}': {reason}. There is no room in '{tempfile.gettempdir()}' either. "
        f"{left or f'{what[0].upper()}{what[1:]} is lost; make room, and run the same command again'}"
    )


def _rescued(data: bytes, folder: Path, name: str) -> Path | None:
    """The result's path in a new folder of ``folder``, or None if it cannot be written there either."""
    try:
        new = Path(tempfile.mkdtemp(prefix="trace-", dir=folder))
    except OSError:
        return None
    try:
        return write_whole(new / name, data)
    except OSError:
        new.rmdir()
        return None


def write_text(path: str | Path, text: str, overwrite: bool = True) -> None:
    """Write a file completely or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    write_whole(path, text.encode(), replace=overwrite)


def write_json(path: str | Path, text: str, written: str | None, overwrite: bool = True) -> None:
    """Write the report. ``written`` is the file of the command's result, which stays if this write fails.

    Raises:
        TraceError: naming both files.
    """
    try:
        write_text(path, text, overwrite)
    except OSError as error:
        result = f"; the result itself is in '{written}'" if written else ""
        raise TraceError(f"cannot write --json '{path}': {why(error)}{result}") from error
