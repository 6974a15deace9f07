"""FLUX.1: text enters through ``txt_in`` (T5 rows) and ``vector_in`` (CLIP's pooled vector), both with a bias."""

from __future__ import annotations

import sys

from .base import CONTEXT, POOLED, PREFIX, Backbone, Layer

TEXT = r"^txt_in$|^vector_in\.in_layer$|^double_blocks\.\d+\.txt_attn\.qkv$"
ATTENTION = r"_attn\.(qkv|proj)$|^single_blocks\.\d+\.linear[12]$"


def matches(network) -> bool:
    return hasattr(network, "double_blocks") and hasattr(network, "txt_in") and hasattr(network, "vector_in")


def build(patcher) -> Backbone:
    network = patcher.model.diffusion_model
    layers = [
        Layer(PREFIX + "txt_in", CONTEXT, network.txt_in.weight.shape[1]),
        Layer(PREFIX + "vector_in.in_layer", POOLED, network.vector_in.in_layer.weight.shape[1]),
    ]
    return Backbone(patcher, "flux" if hasattr(network.guidance_in, "in_layer") else "flux-schnell", layers, sys.modules[__name__])


def blocks(network) -> list[str]:
    return [f"{group}.{i}" for group in ("double_blocks", "single_blocks") for i in range(len(getattr(network, group)))]
