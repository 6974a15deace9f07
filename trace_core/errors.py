"""Errors that a user can act on. Their messages name the value and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class TraceError(ValueError):
    """Base of all errors that the library raises on bad input."""


class ConceptError(TraceError):
    """An entry of the erase list or of the keep list is not usable."""


class ModelError(TraceError):
    """A model or one of its weights does not fit the method."""


class LoraError(TraceError):
    """A LoRA file is damaged, unsafe, or made for another architecture."""


class OutOfMemory(TraceError, torch.OutOfMemoryError):
    """Memory ran out. ComfyUI recognises torch's error by its type, and then unloads its models."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of an accelerator or of the computer."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "not enough memory" in text)


@contextmanager
def enough_memory(work: str, remedy: str) -> Iterator[None]:
    """Tell a lack of memory in a sentence. It also decorates functions.

    Args:
        work: what was at work, such as "the finetune".
        remedy: what takes less memory.

    Raises:
        OutOfMemory: in place of an error of torch or Python about memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, TraceError) or not is_out_of_memory(error):
            raise
        first = str(error).split("\n")[0][:200] or type(error).__name__
        raise OutOfMemory(f"{work} ran out of memory; {remedy}. The model is unchanged ({first})") from error
