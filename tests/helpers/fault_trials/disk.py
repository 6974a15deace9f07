"""Disks that are full or read-only, files that vanish or change: nothing is lost, and nothing is left."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import tempfile
from functools import lru_cache
from pathlib import Path
from unittest import mock

import torch
from hypothesis import strategies as st

from fault_trials import Fault, LostFile, UnclearError, attempt
from fault_trials.damage import A, noise
from trace_core.cli import outputs
from trace_core.errors import LoraError
from trace_core.finetune.resume import TrainingState
from trace_core.lora.erasure import ErasureLora
from trace_core.text import lists

OLD = b"what was there before"


@lru_cache(64)
def lora(seed: int) -> ErasureLora:
    """A file of about ten kilobytes; another seed makes another one."""
    metadata = {"trace.concepts": '[["cat", "", 1.0]]'}
    return ErasureLora({A: (noise(300, 4, seed=seed).half(), noise(4, 900, seed=seed).half())}, metadata)


@lru_cache(64)
def training(seed: int) -> TrainingState:
    three = [[noise(60, 20, seed=seed + i)] for i in range(3)]
    return TrainingState(*three, seed, (0.2, 1.0), [], '{"concepts": ["cat"]}', {}, [])


def contents(writer: str, seed: int) -> bytes:
    """What a writer writes when nothing is in its way."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        WRITERS[writer](path, seed)
        return path.read_bytes()


#: name -> ``write(path, seed)``: all ways in which the software writes a file that somebody wants to keep
WRITERS = {
    "LoRA": lambda path, seed: lora(seed).save(path),
    "training state": lambda path, seed: training(seed).save(path),
    "report": lambda path, seed: outputs.write_json(path, '"' + str(seed) * 9000 + '"', "cat.safetensors"),
    "result": lambda path, seed: outputs.keep(lora(seed).to_bytes(), path, "the erasure"),
}
expected = lru_cache(64)(contents)


@contextlib.contextmanager
def short_disk(room: int):
    """No file can be longer than this; the system itself says so, also to libraries."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def failing(step: str, number: int):
    """One step of writing fails with an error of the system. Root may write everywhere, so it is told."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    module = tempfile if step in ("mkstemp", "mkdtemp") else os
    with mock.patch.object(module, step, fail):
        yield


class Folder:
    """A folder with other people's files in it, and perhaps with the file that is to be written."""

    def __init__(self, before: bytes | None):
        self._held = tempfile.TemporaryDirectory()
        self.path = Path(self._held.name) / "out"
        self.path.mkdir()
        self.file = self.path / "cat.safetensors"
        (self.path / "other.txt").write_bytes(OLD)
        if before is not None:
            self.file.write_bytes(before)
        self.before = before

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_) -> None:
        self._held.cleanup()

    def check(self, new: bytes, written: bool) -> None:
        """Either the whole new file is there, or what was before; and nothing else."""
        now = self.file.read_bytes() if self.file.exists() else None
        if now != (new if written else self.before):
            size = "no" if now is None else len(now)
            raise LostFile(f"written: {written}, and the file has {size} bytes of {len(new)}")
        left = {p.name for p in self.path.iterdir()} - {"other.txt", self.file.name}
        if left or (self.path / "other.txt").read_bytes() != OLD:
            raise LostFile(f"left over, or another file was changed: {left}")


SEEDS = st.integers(0, 9999)
SOME = st.sampled_from(list(WRITERS))
NAMES = st.text(st.sampled_from("abc é猫'%{}"), min_size=1, max_size=12).map(lambda t: f"x{t}x")
BEFORE = st.sampled_from((None, OLD))


def written(folder: Folder, writer: str, seed: int, trouble) -> bool:
    """Write within a trouble. What :func:`outputs.keep` saved elsewhere counts as not written."""
    with (
        trouble,
        tempfile.TemporaryDirectory() as elsewhere,
        mock.patch.object(tempfile, "tempdir", elsewhere),
    ):
        _, error = attempt(lambda: WRITERS[writer](folder.file, seed), "cat.safetensors")
        saved = list(Path(elsewhere).rglob("cat.safetensors"))
        if "Nothing is lost" in str(error or "") and [p.read_bytes() for p in saved] != [
            expected(writer, seed)
        ]:
            raise LostFile(f"the error says that nothing is lost, and finds {saved}")
        if error and "Nothing is lost" not in str(error) and any(Path(elsewhere).iterdir()):
            raise LostFile(f"left over in the temporary folder: {saved}")
    return error is None


def full(draw) -> None:
    """The disk is full after any number of bytes."""
    writer, seed = draw(SOME), draw(SEEDS)
    new = expected(writer, seed)
    with Folder(draw(BEFORE)) as folder:
        done = written(folder, writer, seed, short_disk(draw(st.integers(0, len(new) + 100))))
        folder.check(new, done)


STEPS = ("mkstemp", "fdopen", "fsync", "chmod", "replace")
NUMBERS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.ENOENT,
    errno.EBUSY,
)


def refused(draw) -> None:
    """The system refuses one step of writing: no permission, a read-only folder, no space, a broken disk."""
    writer, seed = draw(SOME), draw(SEEDS)
    with Folder(draw(BEFORE)) as folder:
        trouble = failing(draw(st.sampled_from(STEPS)), draw(st.sampled_from(NUMBERS)))
        folder.check(expected(writer, seed), written(folder, writer, seed, trouble))


def odd_place(draw) -> None:
    """The path is a folder, lies below a file, is a link to nowhere, or its folder is not there."""
    writer, seed = draw(SOME), draw(SEEDS)
    place = draw(st.sampled_from(("folder", "below a file", "dangling link", "no folder", "long name")))
    with Folder(OLD if place == "below a file" else None) as folder:
        path = folder.file
        if place == "folder":
            path.mkdir()
        elif place == "dangling link":
            path.symlink_to(folder.path / "later.safetensors")
        else:
            name = {"below a file": "x.safetensors", "no folder": "new/a.safetensors"}.get(place, "x" * 300)
            path = (folder.file if place == "below a file" else folder.path) / Path(name).with_suffix(
                ".safetensors"
            )
        names = sorted(p.name for p in folder.path.iterdir())
        with tempfile.TemporaryDirectory() as elsewhere, mock.patch.object(tempfile, "tempdir", elsewhere):
            _, error = attempt(lambda: WRITERS[writer](path, seed), path.name)
        if error and sorted(p.name for p in folder.path.iterdir()) != names:
            raise LostFile(f"{place}: left over {sorted(p.name for p in folder.path.iterdir())}")
        if not error and path.read_bytes() != expected(writer, seed):
            raise LostFile(f"{place}: the file is not what was written")
        if not error and place in ("folder", "below a file", "long name"):
            raise UnclearError(f"{place}: no error")


def vanished(draw) -> None:
    """A file that is read is gone, has become a folder, or is cut short while it is open."""
    what = draw(st.sampled_from(("gone", "folder", "empty", "no permission")))
    read = draw(st.sampled_from(("LoRA", "training state", "list")))
    with Folder(None) as folder:
        path = folder.path / f"{draw(NAMES)}{'.csv' if read == 'list' else '.safetensors'}"
        if what == "folder":
            path.mkdir()
        elif what != "gone":
            path.write_bytes(b"" if what == "empty" else expected("LoRA", draw(SEEDS)))
        work = {
            "LoRA": lambda: ErasureLora.load(path),
            "training state": lambda: TrainingState.load(path),
            "list": lambda: lists.read(path, path.name),
        }[read]
        denied = PermissionError(errno.EACCES, "Permission denied")
        trouble = mock.patch.object(Path, "read_bytes", side_effect=denied)
        with trouble if what == "no permission" else contextlib.nullcontext():
            found, error = attempt(work, path.name)
        if error is None and not (read == "list" and what == "empty"):
            raise UnclearError(f"{what}: read as {found}")


def overwritten(draw) -> None:
    """A file is written over, cut short or removed by another program after it was read."""
    read = draw(st.sampled_from(("LoRA", "training state")))
    seed = draw(SEEDS)
    with Folder(expected(read, seed)) as folder:
        found = ErasureLora.load(folder.file) if read == "LoRA" else TrainingState.load(folder.file)
        with folder.file.open("r+b") as file:
            if draw(st.booleans()):
                file.truncate(draw(st.integers(0, len(folder.before))))
            else:
                file.seek(draw(st.integers(0, len(folder.before) - 1)))
                file.write(random.Random(seed).randbytes(draw(st.integers(1, 4000))))
        if draw(st.booleans()):
            folder.file.unlink()
        same = (
            found.fingerprint == lora(seed).fingerprint
            if read == "LoRA"
            else all(
                torch.equal(a, b)
                for name in ("adapter", "mean", "square")
                for a, b in zip(getattr(found, name), getattr(training(seed), name))
            )
        )
        if not same:
            raise LostFile(f"a {read} that was read changed with its file")


def in_the_way(draw) -> None:
    """A file that appears after the check and before the writing is never replaced, and no work is lost."""
    writer = draw(st.sampled_from(("result", "report", "LoRA")))
    seed, there = draw(SEEDS), draw(st.booleans())
    with Folder(OLD if there else None) as folder, tempfile.TemporaryDirectory() as elsewhere:
        with mock.patch.object(tempfile, "tempdir", elsewhere):
            data = expected(writer, seed)
            work = {
                "result": lambda: outputs.keep(data, folder.file, "the erasure", overwrite=False),
                "report": lambda: outputs.write_json(folder.file, data.decode(), "x", overwrite=False),
                "LoRA": lambda: saved_anew(folder.file, seed),
            }[writer]
            _, error = attempt(work, "cat.safetensors")
        folder.check(data, error is None)
        if there != (error is not None):
            raise LostFile(f"the file was there: {there}, and the error is {error}")
        kept = [p.read_bytes() for p in Path(elsewhere).rglob("cat.safetensors")]
        if error and writer == "result" and kept != [data]:
            raise LostFile("the result is nowhere")


def saved_anew(path: Path, seed: int) -> None:
    try:
        lora(seed).save(path, replace=False)
    except FileExistsError:
        raise LoraError(f"'{path.name}' is there; choose another name") from None


FAULTS = (
    Fault("full disk", 60, full),
    Fault("a step of writing refused, read-only folder", 60, refused),
    Fault("odd places to write to", 30, odd_place),
    Fault("vanished and unreadable files", 30, vanished),
    Fault("file changed while in use", 30, overwritten),
    Fault("file that appears while it is made", 20, in_the_way),
)
