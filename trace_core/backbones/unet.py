"""Stable Diffusion 1.x, 2.x and SDXL: text enters a UNet through the keys and values of every cross-attention."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor

from .base import CONTEXT, POOLED, PREFIX, Backbone, Layer

SDXL_SIZE_EMBEDDING = 6 * 256  #: columns that SDXL appends to the pooled vector (sizes and crops)


TEXT = r"\.attn2\.to_[kv]$|^label_emb\.0\.0$"
ATTENTION = r"\.attn[12]\.to_(q|k|v|out\.0)$"
ENTRY = r"\.attn2\.to_[kv]$|^label_emb\.0\.0$"
KEYS = r"\.attn2\.to_k$"
IMAGE = r"\.attn1\.to_(q|k|v|out\.0)$|\.attn2\.to_q$"


def matches(network) -> bool:
    return hasattr(network, "input_blocks") and hasattr(network, "middle_block")


def build(patcher) -> Backbone:
    network = patcher.model.diffusion_model
    layers = []
    for name, module in network.named_modules():
        if name.endswith((".attn2.to_k", ".attn2.to_v")):
            layers.append(Layer(PREFIX + name, CONTEXT, module.in_features))
    kind = {768: "sd1", 1024: "sd2"}.get(layers[0].columns, "sd1")
    if hasattr(network, "label_emb"):
        kind = "sdxl"
        first = network.label_emb[0][0]
        layers.append(Layer(PREFIX + "label_emb.0.0", POOLED, first.in_features - SDXL_SIZE_EMBEDDING))
    return Backbone(patcher, kind, layers, sys.modules[__name__])


def blocks(network) -> list[str]:
    """Residual blocks and spatial transformers: the parts of the levels' sequences that hold almost all activations."""
    sequences = [("middle_block", network.middle_block)]
    sequences += [(f"{group}.{i}", s) for group in ("input_blocks", "output_blocks") for i, s in enumerate(getattr(network, group))]
    return [f"{name}.{i}" for name, s in sequences for i, part in enumerate(s) if len(list(part.children())) > 1]


def trained_rows(name: str, scope: str, rows: int) -> slice | None:
    """Every output of a layer is trained."""
    return None


@contextmanager
def attention_maps(network, found: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Queries ``[b, h, n, d]`` and keys ``[b, h, m, d]`` of every cross-attention of a forward pass, in order."""
    with ExitStack() as hooks:
        for name, module in network.named_modules():
            if name.endswith(".attn2"):
                queries: list[Tensor] = []

                def heads(x: Tensor, count=module.heads) -> Tensor:
                    return x.unflatten(-1, (count, -1)).transpose(1, 2)

                def asked(layer, args, out, queries=queries, heads=heads):
                    queries.append(heads(out))

                def read(layer, args, out, queries=queries, heads=heads):
                    found.append((queries.pop(), heads(out)))

                for part, hook in ((module.to_q, asked), (module.to_k, read)):
                    hooks.callback(part.register_forward_hook(hook).remove)
        yield
