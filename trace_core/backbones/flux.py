"""FLUX.1: text enters through ``txt_in`` (T5 rows) and ``vector_in`` (CLIP's pooled vector)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from .base import CONTEXT, POOLED, PREFIX, Backbone, Layer, bare, comfy_class
from .kinds import Kind
from .rotary import rotated
from .weights import is_linear

SUPPORTED = "FLUX.1 (with Fill, Kontext and Krea)"
_FLUX = {"clip_type": "FLUX", "encoders": "clip_l and t5xxl", "references": True}
KINDS = {
    "flux": Kind("FLUX.1", "flux-1-dev/lora", "flux1", embeds_guidance=True, **_FLUX),
    "flux-schnell": Kind("FLUX.1 schnell", "flux-1-schnell/lora", "flux1", steps=4, **_FLUX),
}
TEXT = r"^txt_in$|^vector_in\.in_layer$|^double_blocks\.\d+\.txt_attn\.qkv$"
ATTENTION = r"_attn\.(qkv|proj)$|^single_blocks\.\d+\.linear[12]$"
ENTRY = r"^txt_in$|^vector_in\.in_layer$"
KEYS = r"^double_blocks\.\d+\.txt_attn\.qkv$"
IMAGE = r"^double_blocks\.\d+\.img_attn\.(qkv|proj)$"


def matches(patcher) -> bool:
    """Whether a model is FLUX.1, by ComfyUI's class and by linear input layers for both kinds of text.

    Kontext, Fill, Krea and the tool models are FLUX.1 with more channels or other weights. FLUX.2, Chroma and
    LongCat have their own classes. HunyuanVideo and HunyuanImage have modules of the same names with another
    meaning.
    """
    network = bare(patcher.model.diffusion_model)
    inputs = getattr(network, "txt_in", None), getattr(getattr(network, "vector_in", None), "in_layer", None)
    blocks_of_both_kinds = hasattr(network, "double_blocks") and hasattr(network, "single_blocks")
    return (
        comfy_class(patcher.model) == "Flux"
        and blocks_of_both_kinds
        and all(is_linear(layer) for layer in inputs)
    )


def build(patcher) -> Backbone:
    network = bare(patcher.model.diffusion_model)
    layers = [
        Layer(PREFIX + "txt_in", CONTEXT, network.txt_in.in_features),
        Layer(PREFIX + "vector_in.in_layer", POOLED, network.vector_in.in_layer.in_features),
    ]
    kind = "flux" if hasattr(network.guidance_in, "in_layer") else "flux-schnell"
    return Backbone(patcher, kind, layers, sys.modules[__name__])


def blocks(network) -> list[str]:
    return [
        f"{group}.{i}"
        for group in ("double_blocks", "single_blocks")
        for i in range(len(getattr(network, group)))
    ]


def trained_rows(name: str, scope: str, rows: int) -> slice | None:
    """EraseAnything trains the text's queries and keys, not its values: two thirds of ``txt_attn.qkv``."""
    return slice(0, rows // 3 * 2) if scope == "keys" else None


@contextmanager
def attention_maps(network, found: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Collect queries ``[b, h, n, d]`` and keys ``[b, h, m, d]`` of every double block, in order.

    The text's keys come first.
    """
    with ExitStack() as hooks:
        for block in network.double_blocks:
            place: dict[str, Tensor] = {}

            def enter(module, args, kwargs, place=place):
                place["pe"] = kwargs["pe"] if "pe" in kwargs else args[3]

            def image(module, args, out, place=place):
                place["q"], place["k"] = out

            def text(module, args, out, place=place):  # called after the picture's hook
                count = out[1].shape[2]
                keys = rotated(torch.cat((out[1], place["k"]), dim=2), place["pe"])
                found.append((rotated(place["q"], place["pe"][:, :, count:]), keys))

            hooks.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
            hooks.callback(block.img_attn.norm.register_forward_hook(image).remove)
            hooks.callback(block.txt_attn.norm.register_forward_hook(text).remove)
        yield
