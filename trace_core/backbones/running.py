"""The model object behind a call of ComfyUI's sampler, and eager runs of compiled code."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

MOST = 64  #: largest number of objects searched between a wrapper and the model


def called_model(apply_model: Callable | None):
    """The model object whose ``apply_model`` will run, or None if the callable does not reveal it.

    ComfyUI passes a bound method to a ``model_function_wrapper``. Its object may differ from the model that
    an erasure was applied to: deep clones, copies for other devices, and delegates for conditions with hooks
    are separate models. Other packs pass partials, decorated functions and closures around that method. Their
    contents are searched.
    """
    models: dict[int, object] = {}
    seen: set[int] = set()
    waiting = [apply_model]
    while waiting and len(seen) < MOST:
        value = waiting.pop()
        if value is None or id(value) in seen:
            continue
        seen.add(id(value))
        owner = value if is_model(value) else getattr(value, "__self__", None)
        if is_model(owner):
            models[id(owner)] = owner
            continue
        waiting += [getattr(value, name, None) for name in ("func", "__func__", "__wrapped__")]
        waiting += [
            *_closed_over(value),
            *(getattr(value, "args", None) or () if hasattr(value, "func") else ()),
        ]
    return next(iter(models.values())) if len(models) == 1 else None


def is_model(value) -> bool:
    """Whether an object is a model for ComfyUI's samplers: a network with a sampling schedule."""
    return (
        isinstance(value, torch.nn.Module)
        and hasattr(value, "diffusion_model")
        and hasattr(value, "model_sampling")
    )


def _closed_over(function) -> list:
    out = []
    for cell in getattr(function, "__closure__", None) or ():
        try:
            out.append(cell.cell_contents)
        except ValueError:  # an empty cell
            continue
    return [
        value
        for value in out
        if is_model(value) or (callable(value) and not isinstance(value, (type, torch.nn.Module)))
    ]


_lock = threading.Lock()
_active_stance: list = []  #: the active stance and its number of users


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled code eagerly, because it would ignore hooks and adapters that were added after compiling.

    The stance of torch's compiler is global to the process, but models on several devices run in separate
    threads. The first thread sets the stance and the last one resets it.
    """
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        yield
        return
    with _lock:
        if _active_stance:
            _active_stance[1] += 1
        else:
            _active_stance[:] = [torch.compiler.set_stance("force_eager"), 1]
    try:
        yield
    finally:
        with _lock:
            _active_stance[1] -= 1
            if not _active_stance[1]:
                _active_stance[0].__exit__(None, None, None)
                _active_stance.clear()
