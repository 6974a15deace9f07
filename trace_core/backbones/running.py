"""Which model object a call of ComfyUI's sampler runs on, and how it runs: found when it is called, not
when a node was applied.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

MOST = 64  #: objects that are looked at on the way from a wrapper to the model


def called_model(apply_model: Callable | None):
    """The model object whose ``apply_model`` will run, or None where the callable does not say.

    ComfyUI hands a bound method to a ``model_function_wrapper``. Its object need not be the one that an
    erasure was applied to: deep clones, copies for other devices and delegates for conditions with hooks are
    models of their own. Other packs hand on partials, decorated functions and closures around that method;
    what these hold is followed.
    """
    found: dict[int, object] = {}
    seen: set[int] = set()
    waiting = [apply_model]
    while waiting and len(seen) < MOST:
        value = waiting.pop()
        if value is None or id(value) in seen:
            continue
        seen.add(id(value))
        owner = value if is_model(value) else getattr(value, "__self__", None)
        if is_model(owner):
            found[id(owner)] = owner
            continue
        waiting += [getattr(value, name, None) for name in ("func", "__func__", "__wrapped__")]
        waiting += [
            *_closed_over(value),
            *(getattr(value, "args", None) or () if hasattr(value, "func") else ()),
        ]
    return next(iter(found.values())) if len(found) == 1 else None


def is_model(value) -> bool:
    """Whether an object is what ComfyUI's samplers call: a network with a sampling schedule."""
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
        except ValueError:  # a cell that is still empty
            continue
    return [
        value
        for value in out
        if is_model(value) or (callable(value) and not isinstance(value, (type, torch.nn.Module)))
    ]


_lock = threading.Lock()
_inside: list = []  #: the stance in force, and how many calls hold it


@contextmanager
def eager() -> Iterator[None]:
    """Compiled code runs as it was written: it sees neither hooks nor adapters that came after it was
    compiled.

    The stance of torch's compiler belongs to the process, and models on several devices are called in threads
    of their own: the first to come sets it, the last to go takes it back.
    """
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        yield
        return
    with _lock:
        if _inside:
            _inside[1] += 1
        else:
            _inside[:] = [torch.compiler.set_stance("force_eager"), 1]
    try:
        yield
    finally:
        with _lock:
            _inside[1] -= 1
            if not _inside[1]:
                _inside[0].__exit__(None, None, None)
                _inside.clear()
