"""Qwen-Image: text enters through ``txt_in``, behind a norm (rows of Qwen2.5-VL)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from .base import CONTEXT, PREFIX, Backbone, Layer, bare, comfy_class
from .kinds import Kind
from .rotary import rms_normalised, rotated
from .weights import is_linear

SUPPORTED = "Qwen-Image (with Edit)"
KINDS = {
    "qwen-image": Kind(
        "Qwen-Image",
        "qwen-image/lora",
        "qwen_image",
        size=1328,
        cfg=2.5,
        training_cfg=2.5,
        clip_type="QWEN_IMAGE",
        encoders="qwen_2.5_vl_7b",
        references=True,
    )
}
TEXT = r"^txt_in$|^transformer_blocks\.\d+\.attn\.add_[qkv]_proj$"
ATTENTION = r"^transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)$"
ENTRY = r"^txt_in$"
KEYS = r"^transformer_blocks\.\d+\.attn\.add_[qk]_proj$"
IMAGE = r"^transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0)$"


def matches(patcher) -> bool:
    """Whether a model is Qwen-Image, by ComfyUI's class and a normed linear input layer for text."""
    network = bare(patcher.model.diffusion_model)
    return (
        comfy_class(patcher.model) == "QwenImage"
        and hasattr(network, "txt_norm")
        and is_linear(getattr(network, "txt_in", None))
    )


def build(patcher) -> Backbone:
    network = bare(patcher.model.diffusion_model)
    layers = [Layer(PREFIX + "txt_in", CONTEXT, network.txt_in.in_features)]
    return Backbone(patcher, "qwen-image", layers, sys.modules[__name__])


def read_rows(backbone: Backbone, rows: Tensor) -> Tensor:
    """The norm belongs to the rows: ``txt_in`` reads normalised rows."""
    return rms_normalised(backbone, "txt_norm", rows)


def blocks(network) -> list[str]:
    return [f"transformer_blocks.{i}" for i in range(len(network.transformer_blocks))]


def trained_rows(name: str, scope: str, rows: int) -> slice | None:
    """Every output of a layer is trained: queries, keys and values are layers of their own."""
    return None


@contextmanager
def attention_maps(network, found: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Collect queries ``[b, h, n, d]`` and keys ``[b, h, m, d]`` of every block, text first."""
    with ExitStack() as hooks:
        for block in network.transformer_blocks:
            place: dict[str, Tensor] = {}

            def hold(name, place=place):
                return lambda module, args, out: place.__setitem__(name, out)

            def leave(module, args, kwargs, out, place=place):
                pe, text = kwargs["image_rotary_emb"], place["text"]
                axis = 2 if pe.shape[1] == 1 else 1  # of the tokens; v0.3.64 has them before the heads
                keys = rotated(torch.cat((text, place["k"]), dim=axis), pe)
                pe = pe.narrow(axis, text.shape[axis], pe.shape[axis] - text.shape[axis])
                both = rotated(place["q"], pe), keys
                found.append(both if axis == 2 else tuple(x.transpose(1, 2) for x in both))

            attn = block.attn
            for part, name in ((attn.norm_q, "q"), (attn.norm_k, "k"), (attn.norm_added_k, "text")):
                hooks.callback(part.register_forward_hook(hold(name)).remove)
            hooks.callback(attn.register_forward_hook(leave, with_kwargs=True).remove)
        yield
