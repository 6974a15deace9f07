"""Chroma: FLUX.1's blocks without a pooled vector; text enters through ``txt_in`` (T5 rows)."""

from __future__ import annotations

import sys

from .base import CONTEXT, PREFIX, Backbone, Layer, bare, comfy_class
from .flux import ATTENTION, IMAGE, KEYS, attention_maps, blocks, trained_rows
from .kinds import Kind
from .weights import is_linear

SUPPORTED = "Chroma"
KINDS = {
    "chroma": Kind(
        "Chroma",
        "chroma/lora",
        "chroma",
        steps=26,
        cfg=4.0,
        training_cfg=3.0,
        clip_type="CHROMA",
        encoders="t5xxl",
    )
}
TEXT = r"^txt_in$|^double_blocks\.\d+\.txt_attn\.qkv$"
ENTRY = r"^txt_in$"

__all__ = ["ATTENTION", "IMAGE", "KEYS", "attention_maps", "blocks", "build", "matches", "trained_rows"]


def matches(patcher) -> bool:
    """Whether a model is Chroma, by ComfyUI's class. Chroma Radiance draws pixels and has its own class."""
    network = bare(patcher.model.diffusion_model)
    return (
        comfy_class(patcher.model) == "Chroma"
        and is_linear(getattr(network, "txt_in", None))
        and hasattr(network, "distilled_guidance_layer")
    )


def build(patcher) -> Backbone:
    network = bare(patcher.model.diffusion_model)
    layers = [Layer(PREFIX + "txt_in", CONTEXT, network.txt_in.in_features)]
    return Backbone(patcher, "chroma", layers, sys.modules[__name__])
