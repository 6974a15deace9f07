"""Z-Image: text enters through ``cap_embedder``, behind a norm (rows of Qwen3), into a single stream.

The layers behind it are shared by text and picture. Only the input layer and the text's refiner read the text
alone, so these are the layers that an erasure trains by default.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor

from .base import CONTEXT, PREFIX, Backbone, Layer, bare, comfy_class
from .kinds import Kind
from .rotary import rms_normalised, rotated
from .weights import is_linear

SUPPORTED = "Z-Image"
KINDS = {
    # Turbo is recognised by nothing that the base model has not, and is used far more
    "z-image": Kind(
        "Z-Image",
        "z-image/lora",
        "z_image",
        steps=8,
        clip_type="LUMINA2",
        encoders="qwen_3_4b",
    )
}
TEXT = r"^cap_embedder\.1$|^context_refiner\.\d+\.(attention\.(qkv|out)|feed_forward\.w[123])$"
ATTENTION = r"\.attention\.(qkv|out)$"
ENTRY = r"^cap_embedder\.1$"
KEYS = r"^context_refiner\.\d+\.attention\.qkv$"
IMAGE = r"^noise_refiner\.\d+\.attention\.(qkv|out)$"


def matches(patcher) -> bool:
    """Whether a model is Z-Image, by ComfyUI's class and its pad tokens.

    Lumina Image 2.0 and NewBie have the same class, but no pad tokens or a pooled vector besides.
    """
    network = bare(patcher.model.diffusion_model)
    return (
        comfy_class(patcher.model) == "Lumina2"
        and hasattr(network, "cap_pad_token")
        and getattr(network, "clip_text_pooled_proj", None) is None
        and is_linear(network.cap_embedder[1])
    )


def build(patcher) -> Backbone:
    network = bare(patcher.model.diffusion_model)
    layers = [Layer(PREFIX + "cap_embedder.1", CONTEXT, network.cap_embedder[1].in_features)]
    return Backbone(patcher, "z-image", layers, sys.modules[__name__])


def read_rows(backbone: Backbone, rows: Tensor) -> Tensor:
    """The norm belongs to the rows: the linear layer reads normalised rows."""
    return rms_normalised(backbone, "cap_embedder.0", rows)


def blocks(network) -> list[str]:
    groups = ("context_refiner", "noise_refiner", "layers")
    return [f"{group}.{i}" for group in groups for i in range(len(getattr(network, group)))]


def trained_rows(name: str, scope: str, rows: int) -> slice | None:
    """The text's queries and keys, not its values: two thirds of ``qkv``, which has as many of each."""
    return slice(0, rows // 3 * 2) if scope == "keys" else None


@contextmanager
def attention_maps(network, found: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Collect queries ``[b, h, n, d]`` and keys ``[b, h, m, d]`` of every joint layer, text first."""
    sizes: dict[str, int] = {}
    with ExitStack() as hooks:

        def count(name):
            return lambda module, args, out: sizes.__setitem__(name, out.shape[1])

        hooks.callback(network.context_refiner[-1].register_forward_hook(count("text")).remove)
        hooks.callback(network.x_embedder.register_forward_hook(count("picture")).remove)
        for layer in network.layers:
            attn, place = layer.attention, {}

            def enter(module, args, place=place):
                place["pe"] = args[2]

            def project(module, args, out, place=place, attn=attn):
                sizes_of = [attn.n_local_heads, attn.n_local_kv_heads, attn.n_local_kv_heads]
                q, k, _ = (
                    x.unflatten(-1, (-1, attn.head_dim))
                    for x in out.split([n * attn.head_dim for n in sizes_of], -1)
                )
                q, k = (rotated(x, place["pe"]).transpose(1, 2) for x in (attn.q_norm(q), attn.k_norm(k)))
                start = sizes["text"]
                found.append((q[:, :, start : start + sizes["picture"]], k.repeat_interleave(attn.n_rep, 1)))

            hooks.callback(attn.register_forward_pre_hook(enter).remove)
            hooks.callback(attn.qkv.register_forward_hook(project).remove)
        yield
