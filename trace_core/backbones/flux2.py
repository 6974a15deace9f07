"""FLUX.2: text enters through ``txt_in`` alone (rows of Qwen3 for klein, of Mistral for dev)."""

from __future__ import annotations

import sys

from .base import CONTEXT, PREFIX, Backbone, Layer, bare, comfy_class
from .flux import ATTENTION, IMAGE, KEYS, attention_maps, blocks, trained_rows
from .kinds import Kind
from .weights import is_linear

SUPPORTED = "FLUX.2 (dev and klein)"
_FLUX2 = {"clip_type": "FLUX2", "references": True, "pads_left": True}
KINDS = {
    "flux2-dev": Kind(
        "FLUX.2 dev", "flux-2-dev/lora", "flux2_dev", embeds_guidance=True, encoders="mistral_3", **_FLUX2
    ),
    # the distilled klein is recognised by nothing that the base klein has not, and is used far more
    "flux2-klein": Kind(
        "FLUX.2 klein",
        "flux-2-klein/lora",
        "flux2_klein",
        steps=4,
        encoders="qwen_3_4b or qwen_3_8b",
        **_FLUX2,
    ),
}
TEXT = r"^txt_in$|^double_blocks\.\d+\.txt_attn\.qkv$"
ENTRY = r"^txt_in$"

__all__ = ["ATTENTION", "IMAGE", "KEYS", "attention_maps", "blocks", "build", "matches", "trained_rows"]


def matches(patcher) -> bool:
    """Whether a model is FLUX.2, by ComfyUI's class and by a single linear input layer for text."""
    network = bare(patcher.model.diffusion_model)
    return (
        comfy_class(patcher.model) == "Flux2"
        and is_linear(getattr(network, "txt_in", None))
        and getattr(network, "vector_in", None) is None
        and getattr(network, "txt_norm", None) is None
    )


def build(patcher) -> Backbone:
    network = bare(patcher.model.diffusion_model)
    layers = [Layer(PREFIX + "txt_in", CONTEXT, network.txt_in.in_features)]
    kind = "flux2-dev" if hasattr(network.guidance_in, "in_layer") else "flux2-klein"
    return Backbone(patcher, kind, layers, sys.modules[__name__])
