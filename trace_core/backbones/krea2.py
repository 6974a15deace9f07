"""Krea 2: twelve layers of Qwen3-VL are fused per token and enter through ``txtmlp``, into a single stream.

The fusion adds its input to its output, so its linear layers are no bottleneck. The first layer that reads
all of the text is ``txtmlp.1``, and its rows are those behind the fusion and a norm.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from .base import CONTEXT, PREFIX, Backbone, Layer, bare, comfy_class
from .kinds import Kind
from .rotary import rotated
from .weights import is_linear

SUPPORTED = "Krea 2"
KINDS = {
    # Turbo is recognised by nothing that Raw has not, and is used far more
    "krea2": Kind(
        "Krea 2", "krea-2/lora", "krea2", steps=8, clip_type="KREA2", encoders="qwen_3_vl_4b", references=True
    )
}
TEXT = r"^txtfusion\..*\.(w[qkvo]|gate|up|down)$|^txtmlp\.[13]$"
ATTENTION = r"^blocks\.\d+\.attn\.w[qkvo]$"
ENTRY = r"^txtmlp\.1$"
KEYS = r"^txtfusion\..*\.attn\.w[qk]$"
IMAGE = r"^first$"  # the other layers also read the text


def matches(patcher) -> bool:
    """Whether a model is Krea 2, by ComfyUI's class and its text fusion."""
    network = bare(patcher.model.diffusion_model)
    return (
        comfy_class(patcher.model) == "Krea2"
        and hasattr(network, "txtfusion")
        and is_linear(network.txtmlp[1])
    )


def build(patcher) -> Backbone:
    network = bare(patcher.model.diffusion_model)
    layers = [Layer(PREFIX + "txtmlp.1", CONTEXT, network.txtmlp[1].in_features)]
    return Backbone(patcher, "krea2", layers, sys.modules[__name__])


def text_width(network) -> int:
    """The layers of the text encoder, one after the other."""
    return network.txtlayers * network.txtdim


@torch.no_grad()
def read_rows(backbone: Backbone, rows: Tensor) -> Tensor:
    """Rows ``[n, layers d]`` through the network's own fusion and norm: ``[n, d]``."""
    backbone.engine.model_management.load_models_gpu([backbone.patcher])
    network = backbone.network
    layers = rows.to(backbone.device, backbone.compute_dtype).view(1, len(rows), network.txtlayers, -1)
    return network.txtmlp[0](network.txtfusion(layers))[0].float().cpu()


def blocks(network) -> list[str]:
    fusion = [f"txtfusion.{g}.{i}" for g in ("layerwise_blocks", "refiner_blocks") for i in range(2)]
    return fusion + [f"blocks.{i}" for i in range(len(network.blocks))]


def trained_rows(name: str, scope: str, rows: int) -> slice | None:
    """Every output of a layer is trained: queries, keys and values are layers of their own."""
    return None


@contextmanager
def attention_maps(network, found: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Collect queries ``[b, h, n, d]`` and keys ``[b, h, m, d]`` of every block, text first."""
    sizes: dict[str, int] = {}
    with ExitStack() as hooks:
        count = network.txtmlp.register_forward_hook(lambda m, args, out: sizes.update(text=out.shape[1]))
        hooks.callback(count.remove)
        for block in network.blocks:
            attn, place = block.attn, {}

            def enter(module, args, place=place):
                place["pe"] = args[1]

            def normed(module, args, out, place=place, attn=attn):
                q, k = (rotated(x, place["pe"]) for x in out)
                found.append((q[:, :, sizes["text"] :], k.repeat_interleave(attn.heads // attn.kvheads, 1)))

            hooks.callback(attn.register_forward_pre_hook(enter).remove)
            hooks.callback(attn.qknorm.register_forward_hook(normed).remove)
        yield
