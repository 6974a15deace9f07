"""Correct gradients through ComfyUI's networks, with and without gradient checkpointing.

Some ComfyUI blocks write into their inputs (FLUX blocks, and blocks of older UNets). Autograd then refuses
because a saved tensor has changed. A checkpoint that keeps the live input silently computes a wrong gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from ..backbones import compat
from ..backbones.running import eager
from ..backbones.weights import is_plain


@contextmanager
def training_mode(engine=None) -> Iterator[None]:
    """Enable gradients, even inside ``torch.inference_mode()``, as in ComfyUI's nodes.

    Args:
        engine: the ``comfy`` package of the network; None if no ComfyUI network is used.
    """
    flag = compat.training_flag(engine) if engine else nullcontext()
    with flag, eager(), torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def saved_apart(network: nn.Module) -> Iterator[None]:
    """Copy the tensors that autograd saves, so that in-place writes cannot change them.

    Parameters are not copied, because nothing writes them.
    """
    owned = {p.untyped_storage().data_ptr() for p in network.parameters() if is_plain(p)}

    def pack(tensor: Tensor) -> Tensor:
        return tensor if tensor.untyped_storage().data_ptr() in owned else tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


@contextmanager
def checkpointed(network: nn.Module, blocks: list[str]) -> Iterator[None]:
    """Save only each block's input, and recompute the block on the way back (Chen et al., arXiv 1604.06174).

    PyTorch's own checkpoint keeps the live input and, in the second pass, live intermediate tensors. Both are
    wrong for blocks that write in place. Here both are copies.
    """
    modules = [network.get_submodule(name) for name in blocks]
    try:
        for module in modules:
            module.forward = _Block(module, module.forward)
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


class _Block:
    """A module's forward with recomputation.

    Tensors may be positional or named; other arguments pass through.
    """

    def __init__(self, module: nn.Module, forward):
        self.module, self.forward = module, forward

    def __call__(self, *args, **kwargs):
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        places = [i for i, v in enumerate(args) if isinstance(v, Tensor)]
        places += [k for k, v in kwargs.items() if isinstance(v, Tensor)]
        given = [args[p] if isinstance(p, int) else kwargs[p] for p in places]
        # a copy, because ComfyUI later writes into its own dicts
        kwargs = {k: dict(v) if isinstance(v, dict) else v for k, v in kwargs.items()}

        def run(tensors):
            new, named = list(args), dict(kwargs)
            for place, tensor in zip(places, tensors):
                (new if isinstance(place, int) else named)[place] = tensor
            return self.forward(*new, **named)

        trained = [p for p in self.module.parameters() if p.requires_grad]
        return _Recomputed.apply(run, self.module, len(given), *given, *trained)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, module, count, *tensors):
        ctx.run, ctx.module, ctx.count = run, module, count
        given, ctx.trained = tensors[:count], tensors[count:]
        ctx.needed = [t.requires_grad for t in given]
        ctx.kept = [t.clone() for t in given]
        return run([t.clone() for t in given])

    @staticmethod
    def backward(ctx, *gradients):
        with torch.enable_grad(), saved_apart(ctx.module):
            leaves = [t.detach().requires_grad_(needed) for t, needed in zip(ctx.kept, ctx.needed)]
            out = ctx.run([t.clone() for t in leaves])
            outputs = [out] if isinstance(out, Tensor) else list(out)
            wanted = [t for t in leaves if t.requires_grad] + list(ctx.trained)
            # SD 3's last block has no text to return
            pairs = [
                (o, g)
                for o, g in zip(outputs, gradients)
                if o is not None and o.requires_grad and g is not None
            ]
            if not (wanted and pairs):
                return (None,) * (3 + ctx.count + len(ctx.trained))
            outputs, gradients = zip(*pairs)
            found = torch.autograd.grad(outputs, wanted, gradients, allow_unused=True)
        found = iter(found)
        inputs = [next(found) if needed else None for needed in ctx.needed]
        return None, None, None, *inputs, *found
