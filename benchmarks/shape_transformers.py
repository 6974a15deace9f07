"""Real shapes of the transformer families for ``real_shapes.py``, and text encoders as wide as theirs.

A network has its real widths and few blocks. A text encoder has its real width, vocabulary and template, but
few narrow layers, so the seconds of its passes mean nothing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import MISSING, dataclass

import torch
from torch import nn

_FLUX2 = {
    "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "vec_in_dim": None,
    "mlp_ratio": 3.0, "axes_dim": [32, 32, 32, 32], "theta": 2000, "qkv_bias": False, "guidance_embed": False,
    "global_modulation": True, "mlp_silu_act": True, "ops_bias": False, "txt_ids_dims": [3],
    "default_ref_method": "index", "ref_index_scale": 10.0,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A family's network.

    Attributes:
        config: class of ``comfy.supported_models``.
        network: its options in real size.
        few: the options that make it fit this machine.
        clip: builds its text encoder.
        params: module and name of the dataclass of the options, where there is one.
    """

    config: str
    network: dict
    few: dict
    clip: Callable
    params: tuple[str, str] | None = None


def language_model(module: str, tokenizer: str, encoder: str, tower: str, width: int, taps: int = 0):
    """ComfyUI's text encoder object around a language model of few narrow layers.

    Args:
        tower: its name.
        taps: stacked hidden layers, 0 if one is read.
    """
    import comfy.sd
    import comfy.supported_models_base

    source = importlib.import_module(f"comfy.text_encoders.{module}")
    target = comfy.supported_models_base.ClipTarget(getattr(source, tokenizer), getattr(source, encoder)())
    small = {
        "hidden_size": width,
        "intermediate_size": 256,
        "num_hidden_layers": max(3, taps),
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    options = {"dtype": torch.float32, f"{tower}_model_config": small}
    with without_vision():
        clip = comfy.sd.CLIP(target, model_options=options)
    if taps:
        own = getattr(clip.cond_stage_model, clip.cond_stage_model.clip)
        own.layer = list(range(taps))
        own.options_default = (own.layer, None, own.return_projected_pooled)
    return filled(clip)


@contextmanager
def without_vision():
    """Vision towers are left out, because prompts have no pictures."""
    held = [("qwen_vl", "Qwen2VLVisionTransformer"), ("qwen3vl", "Qwen3VLVisionModel")]
    before = []
    for module, name in held:
        try:
            found = importlib.import_module(f"comfy.text_encoders.{module}")
        except ImportError:  # older engines lack some
            continue
        before.append((found, name, getattr(found, name)))
        setattr(found, name, lambda *args, **options: nn.Identity())
    try:
        yield
    finally:
        for module, name, own in before:
            setattr(module, name, own)


def t5(width: int = 4096) -> dict:
    return {"d_model": width, "d_ff": 512, "d_kv": 64, "num_heads": 4, "num_layers": 1}


def chroma_clip():
    import comfy.sd
    import comfy.supported_models_base
    import comfy.text_encoders.pixart_t5 as pixart

    target = comfy.supported_models_base.ClipTarget(
        pixart.PixArtTokenizer, pixart.pixart_te(dtype_t5=torch.float32)
    )
    return filled(comfy.sd.CLIP(target, model_options={"dtype": torch.float32, "t5xxl_model_config": t5()}))


def sd3_clip():
    import comfy.sd
    import comfy.supported_models_base
    import comfy.text_encoders.sd3_clip as sd3

    target = comfy.supported_models_base.ClipTarget(sd3.SD3Tokenizer, sd3.sd3_clip(dtype_t5=torch.float32))
    options = {
        "dtype": torch.float32,
        "t5xxl_model_config": t5(),
        "clip_l_model_config": {"num_hidden_layers": 3},
        "clip_g_model_config": {"num_hidden_layers": 3},
    }
    return filled(comfy.sd.CLIP(target, model_options=options))


def random_weights(module: torch.nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Normal matrices of norm 1 a row, vectors of one or nothing: enough for finite pictures."""
    generator, out = torch.Generator().manual_seed(0), {}
    for key, value in module.state_dict().items():
        if value.ndim < 2:
            out[key] = (
                torch.ones(value.shape, dtype=dtype)
                if key.endswith(("scale", "weight"))
                else torch.zeros(value.shape, dtype=dtype)
            )
        else:
            made = torch.empty(value.shape, dtype=torch.bfloat16).normal_(generator=generator)
            out[key] = made.mul_(value[0].numel() ** -0.5).to(dtype)
    return out


def filled(clip):
    """A text encoder object with random weights."""
    model = clip.cond_stage_model
    model.load_state_dict(random_weights(model, torch.float32), strict=False)
    return clip


TRANSFORMERS = {
    "FLUX.2 klein 4B": Shape(
        "Flux2",
        {**_FLUX2, "context_in_dim": 7680, "hidden_size": 3072, "num_heads": 24, "depth": 5,
         "depth_single_blocks": 20},
        {"depth": 1, "depth_single_blocks": 1},
        lambda: language_model("flux", "KleinTokenizer", "klein_te", "qwen3_4b", 2560, 3),
        ("flux", "FluxParams"),
    ),
    "Z-Image": Shape(
        "ZImage",
        {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 3840, "cap_feat_dim": 2560,
         "n_layers": 30, "n_heads": 30, "n_kv_heads": 30, "qk_norm": True, "axes_dims": [32, 48, 48],
         "axes_lens": [1536, 512, 512], "rope_theta": 256.0, "ffn_dim_multiplier": 8.0 / 3.0,
         "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32},
        {"n_layers": 2},
        lambda: language_model("z_image", "ZImageTokenizer", "te", "qwen3_4b", 2560),
    ),
    "Qwen-Image": Shape(
        "QwenImage",
        {"image_model": "qwen_image", "in_channels": 64, "num_layers": 60},
        {"num_layers": 1},
        lambda: language_model("qwen_image", "QwenImageTokenizer", "te", "qwen25_7b", 3584),
    ),
    "Krea 2": Shape(
        "Krea2",
        {"image_model": "krea2", "features": 6144, "channels": 16, "patch": 2, "layers": 28, "heads": 48,
         "kvheads": 12, "txtlayers": 12, "txtdim": 2560},
        {"layers": 1},
        lambda: language_model("krea2", "Krea2Tokenizer", "te", "qwen3vl_4b", 2560, 12),
    ),
    "SD 3.5 medium": Shape(
        "SD3",
        {"in_channels": 16, "out_channels": 16, "patch_size": 2, "depth": 24, "input_size": None,
         "adm_in_channels": 2048, "num_patches": 147456, "pos_embed_max_size": 384,
         "pos_embed_scaling_factor": None, "qk_norm": "rms", "x_block_self_attn_layers": list(range(13)),
         "context_embedder_config": {"target": "torch.nn.Linear",
                                     "params": {"in_features": 4096, "out_features": 1536}}},
        {},  # the loader takes as many blocks as the width has heads
        sd3_clip,
    ),
    "Chroma": Shape(
        "Chroma",
        {"image_model": "chroma", "in_channels": 64, "out_channels": 64, "patch_size": 2, "vec_in_dim": None,
         "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19,
         "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "in_dim": 64,
         "out_dim": 3072, "hidden_dim": 5120, "n_layers": 5, "txt_ids_dims": []},
        {"depth": 1, "depth_single_blocks": 1},
        chroma_clip,
        ("chroma", "ChromaParams"),
    ),
}  # fmt: skip


def missing(family: str) -> str | None:
    """Why this engine has no such family, or None."""
    name = TRANSFORMERS[family].config
    known = hasattr(sys.modules["comfy"].supported_models, name)
    return None if known else f"this ComfyUI has no {name}"


def known_options(options: dict, params: tuple[str, str] | None) -> dict:
    """Options without those that this engine does not know, and None for those without a default.

    ``params``: module and name of the dataclass of the options, where there is one.
    """
    if params is None:
        return options
    module, name = params
    fields = getattr(importlib.import_module(f"comfy.ldm.{module}.model"), name).__dataclass_fields__
    return {k: v for k, v in options.items() if k in fields or k == "image_model"} | {
        k: None for k, f in fields.items() if f.default is MISSING and k not in options
    }


def network(family: str, whole: bool = False) -> nn.Module:
    """A family's network without memory, whole or with few blocks."""
    import comfy.supported_models

    shape = TRANSFORMERS[family]
    options = known_options({**shape.network, **({} if whole else shape.few)}, shape.params)
    config = getattr(comfy.supported_models, shape.config)(options)
    config.set_inference_dtype(torch.float32, None)
    return config.get_model({}, device=torch.device("meta")).diffusion_model


def parameters(family: str) -> int:
    """Parameters of the whole network."""
    return sum(p.numel() for p in network(family, whole=True).parameters())
