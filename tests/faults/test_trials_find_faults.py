"""The trials can fail: each fault's are run on software that is broken in one place, and must find it."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from unittest import mock

import pytest
import torch

import fault_trials
from fault_trials import LostFile, UnclearError

TRIALS = 150  #: more than the share of any fault, so that rare cases occur


def patched(where: str, name: str, value):
    """One name of a module or class is something else."""
    return lambda: mock.patch(f"{where}.{name}", value)


def raises(error: type, text: str = "broken"):
    def broken(*_, **__):
        raise error(text)

    return broken


def written_in_place(path, data, temporary="", replace=True):
    """As most programs write: into the file itself, piece by piece."""
    if not isinstance(data, bytes):
        data(Path(path))
        return Path(path)
    with open(path, "wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        os.fsync(file.fileno())
        file.write(data[len(data) // 2 :])
    return Path(path)


def mapped(path):
    """Tensors that stay in the file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def checked_first(path, data, temporary="", replace=True):
    """Looks whether the file is there, and then writes it over."""
    if not replace and os.path.exists(path):
        raise FileExistsError(17, "File exists")
    time.sleep(0.005)
    return WHOLE(path, data)


def _whole():
    from trace_core.lora import files

    return files.write_whole


WHOLE = _whole()


@contextlib.contextmanager
def both(*contexts):
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context())
        yield


LISTS = "trace_core.text.lists.tables"
IN_PLACE = [
    patched(f"trace_core.{module}", "write_whole", written_in_place)
    for module in ("lora.erasure", "finetune.resume", "cli.outputs")
]
CHECKED = [patched(f"trace_core.{m}", "write_whole", checked_first) for m in ("lora.erasure", "cli.outputs")]
MAPPED = [patched(f"trace_core.{m}", "read_tensors", mapped) for m in ("lora.erasure", "finetune.resume")]
ALL_FINITE = patched("trace_core.lora.formats.torch", "isfinite", torch.ones_like)
ANY_NAME = patched("trace_core.text.lines", "reads_as_it_is", lambda text: True)

#: title of a fault -> the break, and what its trials must say
BREAKS = {
    "concept lists of any text": (patched("trace_core.text.concepts", "quoted", str), UnclearError),
    "concepts of any name": (ANY_NAME, UnclearError),
    "keep lists of any text": (patched("fault_trials.texts", "quoted", str), UnclearError),
    "list files in every form": (
        patched(LISTS, "_head", lambda first, *_: []),
        UnclearError,
    ),
    "list files of any bytes": (
        patched(LISTS, "check", raises(KeyError)),
        UnclearError,
    ),
    "damaged LoRA files": (
        ALL_FINITE,
        UnclearError,
    ),
    "damaged journals of a protocol": (
        patched("trace_core.evaluate.papers.journal", "_is_answer", lambda entry: True),
        UnclearError,
    ),
    "damaged training states": (
        patched("trace_core.finetune.resume.TrainingState", "_is_whole", lambda self: True),
        UnclearError,
    ),
    "hostile metadata": (patched("trace_core.lora.erasure", "read_part", raises(TypeError)), UnclearError),
    "full disk": (lambda: both(*IN_PLACE), (LostFile, UnclearError)),
    "a step of writing refused, read-only folder": (
        patched("trace_core.cli.outputs", "_rescued", lambda *_: Path("nowhere")),
        LostFile,
    ),
    "odd places to write to": (
        patched("trace_core.lora.files", "_make_folder", lambda f: f.mkdir(parents=True, exist_ok=True)),
        (LostFile, UnclearError),
    ),
    "vanished and unreadable files": (
        patched("trace_core.lora.erasure", "read_tensors", raises(RuntimeError)),
        UnclearError,
    ),
    "file changed while in use": (lambda: both(*MAPPED), LostFile),
    "file that appears while it is made": (
        patched("trace_core.cli.outputs", "write_whole", lambda path, data, **_: WHOLE(path, data)),
        LostFile,
    ),
    "two writers, in threads": (lambda: both(*IN_PLACE), (LostFile, UnclearError)),
    "two first writers, in threads": (lambda: both(*CHECKED), LostFile),
    "two writers, in processes, one killed": (lambda: both(*IN_PLACE), (LostFile, UnclearError)),
}
PLAIN = {fault.title: fault for fault in fault_trials.faults(fault_trials.PLAIN)}


def test_every_fault_has_a_break():
    assert set(BREAKS) == set(PLAIN)


@pytest.mark.parametrize("title", BREAKS)
def test_trials_find_the_break(title):
    context, problems = BREAKS[title]
    with context(), pytest.raises(problems):
        fault_trials.run(PLAIN[title], TRIALS, shrink=False)
