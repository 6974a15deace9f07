"""What several files of engine tests share."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from trace_core.backbones import backbone_for
from trace_core.lora import ErasureLora
from trace_core.text.batching import encode

#: as little work as a finetune can be
LEAST_WORK = dict(
    steps=2, batch=4, trajectories=2, keep_trajectories=2, refresh=1, sampling_steps=2, width=32, height=32
)


@contextmanager
def least_work(**changes):
    """The command line's finetunes are this small inside; it has no options that make them so."""
    from trace_core.cli import training

    before = training.options
    training.options = lambda args, method: before(args, method) | LEAST_WORK | changes
    yield
    training.options = before


def condition_of(backbone, clip, prompt: str, shape, guidance: float = 3.0) -> dict:
    """The network's inputs for a prompt."""
    return backbone.condition(encode(clip, clip.tokenize(prompt)).conditioning(), shape, guidance)


def unload() -> None:
    """ComfyUI leaves the patches of the MODEL that ran last on the network; take them off."""
    import comfy.model_management

    comfy.model_management.unload_all_models()


def some_lora(model, seed: int = 0) -> ErasureLora:
    """Random factors of rank 2 on every layer that reads text rows."""
    draw = torch.Generator().manual_seed(seed)
    factors = {}
    for layer in backbone_for(model).context_layers():
        weight = model.model.get_submodule(layer.module).weight
        factors[layer.module] = (
            torch.randn(weight.shape[0], 2, generator=draw),
            0.1 * torch.randn(2, weight.shape[1], generator=draw),
        )
    return ErasureLora.from_factors(factors)
