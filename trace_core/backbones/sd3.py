"""Stable Diffusion 3 and 3.5: text enters through ``context_embedder`` and, pooled, ``y_embedder``.

The rows are those of CLIP-L and CLIP-G side by side, then those of T5.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from .base import CONTEXT, POOLED, PREFIX, Backbone, Layer, bare, comfy_class
from .kinds import Kind
from .weights import is_linear

SUPPORTED = "Stable Diffusion 3 and 3.5"
KINDS = {
    "sd3": Kind(
        "Stable Diffusion 3",
        "stable-diffusion-v3-medium/lora",
        "sd3",
        steps=28,
        cfg=4.5,
        training_cfg=3.0,
        clip_type="SD3",
        encoders="clip_l, clip_g and t5xxl",
    )
}
TEXT = r"^context_embedder$|^y_embedder\.mlp\.0$|^joint_blocks\.\d+\.context_block\.attn\.qkv$"
ATTENTION = r"_block\.attn2?\.(qkv|proj)$"
ENTRY = r"^context_embedder$|^y_embedder\.mlp\.0$"
KEYS = r"\.context_block\.attn\.qkv$"
IMAGE = r"\.x_block\.attn2?\.(qkv|proj)$"


def matches(patcher) -> bool:
    """Whether a model is SD 3 or 3.5, by ComfyUI's class and linear input layers for both kinds of text."""
    network = bare(patcher.model.diffusion_model)
    pooled = getattr(getattr(network, "y_embedder", None), "mlp", [None])[0]
    return (
        comfy_class(patcher.model) == "SD3"
        and getattr(network, "context_processor", None) is None
        and is_linear(getattr(network, "context_embedder", None))
        and is_linear(pooled)
    )


def build(patcher) -> Backbone:
    network = bare(patcher.model.diffusion_model)
    layers = [
        Layer(PREFIX + "context_embedder", CONTEXT, network.context_embedder.in_features),
        Layer(PREFIX + "y_embedder.mlp.0", POOLED, network.y_embedder.mlp[0].in_features),
    ]
    return Backbone(patcher, "sd3", layers, sys.modules[__name__])


def blocks(network) -> list[str]:
    return [f"joint_blocks.{i}" for i in range(len(network.joint_blocks))]


def trained_rows(name: str, scope: str, rows: int) -> slice | None:
    """The text's queries and keys, not its values: two thirds of ``qkv``."""
    return slice(0, rows // 3 * 2) if scope == "keys" else None


@contextmanager
def attention_maps(network, found: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Collect queries ``[b, h, n, d]`` and keys ``[b, h, m, d]`` of every block, text first."""
    with ExitStack() as hooks:
        for block in network.joint_blocks:
            place: dict[str, Tensor] = {}

            def text_keys(module, args, out, place=place):
                place["text"] = out.transpose(1, 2)

            def queries(module, args, out, place=place):
                place["q"] = out.transpose(1, 2)

            def keys(module, args, out, place=place):  # called after the picture's queries
                found.append((place["q"], torch.cat((place["text"], out.transpose(1, 2)), dim=2)))

            text, image = block.context_block.attn, block.x_block.attn
            for part, hook in ((text.ln_k, text_keys), (image.ln_q, queries), (image.ln_k, keys)):
                hooks.callback(part.register_forward_hook(hook).remove)
        yield
