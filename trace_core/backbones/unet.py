"""Stable Diffusion 1.x, 2.x and SDXL: text enters through the cross-attention keys and values of a UNet."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor

from .base import CONTEXT, POOLED, PREFIX, Backbone, Layer, bare, bare_name, comfy_class
from .kinds import Kind

SUPPORTED = "Stable Diffusion 1.x, 2.x, SDXL (with inpainting models, unCLIP, SSD-1B, Vega and KOALA)"
_SD = {
    "cfg": 7.0,
    "training_cfg": 3.0,
    "sampler": "dpmpp_2m",
    "scheduler": "karras",
    "transformer": False,
}
KINDS = {
    "sd1": Kind("Stable Diffusion 1.x", "stable-diffusion-v1/lora", "sd_v1", size=512, **_SD),
    "sd2": Kind("Stable Diffusion 2.x", "stable-diffusion-v2/lora", "sd_v2", size=512, **_SD),
    "sdxl": Kind(
        "SDXL", "stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0", encoders="clip_l and clip_g", **_SD
    ),
}
SDXL_SIZE_EMBEDDING = 6 * 256  #: columns that SDXL appends to the pooled vector: sizes and crops

TEXT = r"\.attn2\.to_[kv]$|^label_emb\.0\.0$"
ATTENTION = r"\.attn[12]\.to_(q|k|v|out\.0)$"
ENTRY = r"\.attn2\.to_[kv]$|^label_emb\.0\.0$"
KEYS = r"\.attn2\.to_k$"
IMAGE = r"\.attn1\.to_(q|k|v|out\.0)$|\.attn2\.to_q$"


#: ComfyUI's model classes with a known text path -> (whether ``label_emb`` reads the pooled text, kind by
#: text width). The refiner and the video, 3D, depth and upscaling models use the same UNet class, but read
#: other inputs in these layers.
MODELS = {
    "BaseModel": (False, {1024: "sd2"}),
    "SD15_instructpix2pix": (False, {1024: "sd2"}),
    "SD21UNCLIP": (False, {1024: "sd2"}),  # label_emb reads an image embedding
    "SDXL": (True, {}),
    "SDXL_instructpix2pix": (True, {}),
}
POOLED_LAYER = "label_emb.0.0"


def matches(patcher) -> bool:
    """Whether a model is SD 1.x, 2.x or SDXL (or unCLIP, SSD-1B, Vega, KOALA), by class and layers."""
    name, network = comfy_class(patcher.model), bare(patcher.model.diffusion_model)
    if name not in MODELS or not (hasattr(network, "input_blocks") and _keys_and_values(network)):
        return False
    label = getattr(network, "label_emb", None)
    if MODELS[name][0]:
        return label is not None and label[0][0].in_features > SDXL_SIZE_EMBEDDING
    return (label is not None) == (name == "SD21UNCLIP")


def build(patcher) -> Backbone:
    network = bare(patcher.model.diffusion_model)
    reads_pooled, kinds = MODELS[comfy_class(patcher.model)]
    layers = [Layer(PREFIX + name, CONTEXT, module.in_features) for name, module in _keys_and_values(network)]
    if reads_pooled:
        columns = network.label_emb[0][0].in_features - SDXL_SIZE_EMBEDDING
        layers.append(Layer(PREFIX + POOLED_LAYER, POOLED, columns))
    kind = "sdxl" if reads_pooled else kinds.get(layers[0].columns, "sd1")
    return Backbone(patcher, kind, layers, sys.modules[__name__], () if reads_pooled else (POOLED_LAYER,))


def _keys_and_values(network) -> list[tuple[str, object]]:
    named = ((bare_name(name), module) for name, module in network.named_modules())
    return [(name, module) for name, module in named if name.endswith((".attn2.to_k", ".attn2.to_v"))]


def blocks(network) -> list[str]:
    """Residual blocks and spatial transformers, which produce almost all activations."""
    # KOALA has no middle block
    sequences = [("middle_block", network.middle_block)] if network.middle_block is not None else []
    sequences += [
        (f"{group}.{i}", s)
        for group in ("input_blocks", "output_blocks")
        for i, s in enumerate(getattr(network, group))
    ]
    return [
        f"{name}.{i}" for name, s in sequences for i, part in enumerate(s) if len(list(part.children())) > 1
    ]


def trained_rows(name: str, scope: str, rows: int) -> slice | None:
    """Every output of a layer is trained."""
    return None


@contextmanager
def attention_maps(network, found: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Collect queries ``[b, h, n, d]`` and keys ``[b, h, m, d]`` of every cross-attention layer, in order."""
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
