"""Out of memory at a random layer or allocation: a sentence with a remedy, and the model as it was."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from fake_clip import FakeClip
from fault_trials import Fault, UnclearError, attempt, stage

#: What says that memory ran out: of a GPU, of the computer by torch, of the computer by Python.
ERRORS = (
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 8 GiB"),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory"),
    MemoryError,
)
#: torch's functions that ask for memory in proportion to a model or a batch
ALLOCATE = frozenset(
    "zeros empty ones eye full zeros_like empty_like randn randn_like cat stack to clone float double matmul "
    "linear conv2d einsum addmm mm bmm softmax scaled_dot_product_attention cholesky cholesky_ex eigh svd qr "
    "cholesky_solve solve_triangular group_norm layer_norm silu gelu mul add __add__ __mul__".split()
)


class Allocations(TorchFunctionMode):
    """Counts allocations, and raises at one of them."""

    def __init__(self, at: int | None, error=None):
        super().__init__()
        self.seen, self.at, self.error = 0, at, error

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ALLOCATE:
            self.seen += 1
            if self.seen - 1 == self.at:
                raise self.error()
        return func(*args, **(kwargs or {}))


_counted: dict[tuple[str, str], int] = {}


def allocations(name: str, kind: str) -> int:
    """How many allocations an undisturbed run makes."""
    if (name, kind) not in _counted:
        stage.undisturbed(name, kind)
        with Allocations(None) as counted:
            stage.RUNS[name](kind)
        _counted[name, kind] = counted.seen
        stage.unload()
    return _counted[name, kind]


@contextmanager
def failing_layer(model, number: int, call: int, error, backward: bool):
    """A layer fails in one of its calls; or where the gradient comes back to it."""
    layers = [m for m in model.model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    left = [call]

    def fail():
        left[0] -= 1
        if left[0] == -1:
            raise error()

    def hook(module, given, out):
        if not backward:
            fail()
        elif out.requires_grad:
            out.register_hook(lambda gradient: fail())

    handle = layers[number % len(layers)].register_forward_hook(hook)
    try:
        yield left
    finally:
        handle.remove()


@contextmanager
def failing_encoder(call: int, error):
    """The text encoder fails in one of its calls."""
    encode, left = FakeClip.encode_from_tokens, [call]

    def fail(self, *given, **options):
        left[0] -= 1
        if left[0] == -1:
            raise error()
        return encode(self, *given, **options)

    FakeClip.encode_from_tokens = fail
    try:
        yield left
    finally:
        FakeClip.encode_from_tokens = encode


def run(name: str, kind: str) -> None:
    """A run that is told of too little memory says so.

    Raises:
        UnclearError: if the sentence is about something else.
    """
    _, error = attempt(lambda: stage.RUNS[name](kind), "memory")
    if error is not None and not isinstance(error, torch.OutOfMemoryError):
        raise UnclearError("ComfyUI does not see that memory ran out, and would not unload its models")


def at_allocation(draw) -> None:
    name, kind = draw(st.sampled_from(list(stage.RUNS))), draw(st.sampled_from(stage.KINDS))
    count = allocations(name, kind)
    with stage.watched(stage.model(kind)):
        with Allocations(draw(st.integers(0, count - 1)), draw(st.sampled_from(ERRORS))):
            run(name, kind)
    stage.same_again(name, kind)


def at_layer(draw) -> None:
    name, kind = draw(st.sampled_from(list(stage.RUNS))), draw(st.sampled_from(stage.KINDS))
    stage.undisturbed(name, kind)
    error, call = draw(st.sampled_from(ERRORS)), draw(st.integers(0, 40))
    where = draw(st.sampled_from(("layer", "gradient", "text encoder")))
    with stage.watched(stage.model(kind)):
        if where == "text encoder":
            trouble = failing_encoder(call, error)
        else:
            number = draw(st.integers(0, 200))
            trouble = failing_layer(stage.model(kind), number, call, error, where == "gradient")
        with trouble:
            run(name, kind)
    stage.same_again(name, kind)


FAULTS = (
    Fault("out of memory at an allocation", 14, at_allocation),
    Fault("out of memory in a layer or text encoder", 14, at_layer),
)
