"""One tiny model of every transformer family, with ComfyUI's own text encoder classes around tiny towers.

Language models keep their real tokenizers and chat templates, which a checkout of ComfyUI includes.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import torch
from torch import nn

import tiny_models
from trace_core.backbones import compat

_spec = importlib.util.spec_from_file_location(
    "trace_benchmark_shapes", Path(__file__).resolve().parents[2] / "benchmarks" / "shape_transformers.py"
)
shapes = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = shapes  # dataclasses look their module up
_spec.loader.exec_module(shapes)

TOWERS = ("qwen3_4b", "mistral3_24b", "qwen25_7b", "qwen3vl_4b")  #: names of the language models
WIDTH = 32  #: of the text encoders' rows
HEADS = dict(hidden_size=64, num_heads=4, depth=2, depth_single_blocks=2, qkv_bias=True, theta=10000)


@dataclass(frozen=True)
class Tiny:
    """How to build a tiny model of a kind.

    Attributes:
        config: class of ``comfy.supported_models``.
        unet: its network's options.
        clip: function that builds its text encoder.
        params: module and name of the dataclass with the network's options, where there is one.
    """

    config: str
    unet: dict
    clip: object
    params: tuple[str, str] | None = None


def language_model(module: str, tokenizer: str, encoder: str, layers: int = 3, taps=None, width: int = WIDTH):
    """A CLIP object of ComfyUI's class around a small language model.

    Args:
        encoder: function of the module that makes the encoder's class.
        taps: the hidden layers that it stacks, instead of the real model's.
    """
    source = importlib.import_module(f"comfy.text_encoders.{module}")
    made = getattr(source, encoder)()
    target = comfy.supported_models_base.ClipTarget(getattr(source, tokenizer), made)
    small = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    with shapes.without_vision():
        clip = comfy.sd.CLIP(
            target,
            tokenizer_data={"tekken_model": tekken()},
            model_options={"dtype": torch.float32, **{f"{name}_model_config": small for name in TOWERS}},
            **compat.clip_options(comfy),
        )
    if taps:
        tower = getattr(clip.cond_stage_model, clip.cond_stage_model.clip)
        tower.layer = taps
        tower.options_default = (taps, None, tower.return_projected_pooled)
    tiny_models.initialise(clip.cond_stage_model)
    return clip


def tekken() -> bytes:
    """Mistral's tokenizer file with bytes for a vocabulary."""
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    special += [f"<SPECIAL_{i}>" for i in range(len(special), 12)]
    return json.dumps(
        {
            "config": {"default_num_special_tokens": 12, "default_vocab_size": 12 + 256},
            "vocab": [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode()} for i in range(256)],
            "special_tokens": [{"rank": i, "token_str": s} for i, s in enumerate(special)],
        }
    ).encode()


def sd3_clip():
    """SD 3's three towers, small, with the demo models' tokenizers."""
    import comfy.text_encoders.sd3_clip as sd3
    import comfy.text_encoders.t5

    from trace_core.demo import sizes, text_towers

    clip_class = text_towers._clip_model(sizes.CLIP_FLUX)
    clip_tokenizer = text_towers._clip_tokenizer(sizes.CLIP_FLUX["hidden_size"])
    t5 = {
        **sizes.T5,
        "d_model": 4096,
        "d_ff": 8,
        "vocab_size": text_towers._vocabulary(text_towers.T5_TOKENIZER),
    }

    class Model(sd3.SD3ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            nn.Module.__init__(self)
            self.clip_l, self.clip_g = (
                clip_class(device=device, dtype=dtype, return_projected_pooled=False) for _ in range(2)
            )
            with text_towers.config_file(t5) as config:
                self.t5xxl = comfy.sd1_clip.SDClipModel(
                    device=device,
                    dtype=dtype,
                    textmodel_json_config=config,
                    special_tokens={"end": 1, "pad": 0},
                    model_class=comfy.text_encoders.t5.T5,
                )
            self.t5_attention_mask, self.dtypes = False, {dtype}

    class Tokenizer(sd3.SD3Tokenizer):
        def __init__(self, embedding_directory=None, **_):
            self.clip_l, self.clip_g = (clip_tokenizer(embedding_directory) for _ in range(2))
            self.t5xxl = text_towers._t5_tokenizer()(embedding_directory)

    target = comfy.supported_models_base.ClipTarget(Tokenizer, Model)
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32}, **compat.clip_options(comfy))
    tiny_models.initialise(clip.cond_stage_model)
    return clip


def t5_clip():
    """Chroma's text encoder: the rows of T5 alone."""
    from trace_core.demo import text_towers

    both = text_towers.flux_clip()
    tiny_models.initialise(both.cond_stage_model)

    class OnlyT5:
        cond_stage_model, tokenizer, patcher = both.cond_stage_model, both.tokenizer, both.patcher

        def tokenize(self, text, **options):
            return {"t5xxl": both.tokenize(text, **options)["t5xxl"]}

        def encode_from_tokens(self, tokens, return_pooled=False, return_dict=False):
            rows = both.cond_stage_model.t5xxl.encode_token_weights(tokens["t5xxl"])[0]
            if return_dict:
                return {"cond": rows, "pooled_output": None}
            return (rows, None) if return_pooled else rows

    return OnlyT5()


_JOINT = dict(**HEADS, axes_dim=[4, 4, 8], mlp_ratio=2.0)
_FLUX2 = dict(
    **{**HEADS, "qkv_bias": False, "theta": 2000},
    image_model="flux2",
    axes_dim=[4, 4, 4, 4],
    mlp_ratio=3.0,
    in_channels=128,
    out_channels=128,
    patch_size=1,
    vec_in_dim=None,
    context_in_dim=3 * WIDTH,
    global_modulation=True,
    mlp_silu_act=True,
    ops_bias=False,
    txt_ids_dims=[3],
    default_ref_method="index",
    ref_index_scale=10.0,
)
T5_WIDTH = 192
TINY = {
    "flux2-klein": Tiny(
        "Flux2",
        {**_FLUX2, "guidance_embed": False},
        lambda: language_model("flux", "KleinTokenizer", "klein_te", taps=[0, 1, 2]),
        ("flux", "FluxParams"),
    ),
    "flux2-dev": Tiny(
        "Flux2",
        # wide, because the template of its system prompt alone has 190 tokens here
        {**_FLUX2, "guidance_embed": True, "context_in_dim": 12 * WIDTH},
        lambda: language_model("flux", "Flux2Tokenizer", "flux2_te", taps=[0, 1, 2], width=4 * WIDTH),
        ("flux", "FluxParams"),
    ),
    "z-image": Tiny(
        "ZImage",
        dict(
            image_model="lumina2",
            patch_size=2,
            in_channels=16,
            dim=256,
            cap_feat_dim=WIDTH,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=16,
            n_kv_heads=16,
            multiple_of=32,
            ffn_dim_multiplier=1.0,
            qk_norm=True,
            axes_dims=[4, 6, 6],
            axes_lens=[64, 64, 64],
            rope_theta=256.0,
            z_image_modulation=True,
            time_scale=1000.0,
            pad_tokens_multiple=32,
        ),
        lambda: language_model("z_image", "ZImageTokenizer", "te"),
    ),
    "qwen-image": Tiny(
        "QwenImage",
        dict(
            image_model="qwen_image",
            in_channels=64,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        ),
        lambda: language_model("qwen_image", "QwenImageTokenizer", "te"),
    ),
    "krea2": Tiny(
        "Krea2",
        dict(
            image_model="krea2",
            features=128,
            heads=8,
            kvheads=4,
            txtdim=WIDTH,
            txtlayers=3,
            txtheads=2,
            txtkvheads=2,
            multiplier=1,
            layers=2,
            channels=16,
        ),
        lambda: language_model("krea2", "Krea2Tokenizer", "te", taps=[0, 1, 2]),
    ),
    "sd3": Tiny(
        "SD3",
        dict(
            in_channels=16,
            out_channels=16,
            patch_size=2,
            depth=2,
            input_size=None,
            adm_in_channels=256,
            context_embedder_config={
                "target": "torch.nn.Linear",
                "params": {"in_features": 4096, "out_features": 128},
            },
            num_patches=1024,
            pos_embed_max_size=32,
            pos_embed_scaling_factor=None,
            qk_norm="rms",
            x_block_self_attn_layers=[0],
        ),
        sd3_clip,
    ),
    "chroma": Tiny(
        "Chroma",
        dict(
            **_JOINT,
            image_model="chroma",
            in_channels=64,
            out_channels=64,
            patch_size=2,
            context_in_dim=T5_WIDTH,
            vec_in_dim=64,
            in_dim=64,
            out_dim=64,
            hidden_dim=32,
            n_layers=1,
            txt_ids_dims=[],
        ),
        t5_clip,
        ("chroma", "ChromaParams"),
    ),
}


def missing(kind: str) -> str | None:
    """Why this ComfyUI has no such family, or None."""
    name = TINY[kind].config
    return None if hasattr(comfy.supported_models, name) else f"this ComfyUI has no {name}"


def model(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes):
    """A ModelPatcher of the tiny model."""
    tiny = TINY[kind]
    options = shapes.known_options({**tiny.unet, **changes}, tiny.params)
    config = getattr(comfy.supported_models, tiny.config)(options)
    model = tiny_models.build(config, seed, dtype)
    for name, buffer in model.model.diffusion_model.named_buffers():
        if name == "pos_embed":  # ComfyUI leaves it as the memory was
            buffer.copy_(0.02 * torch.randn(buffer.shape, generator=torch.Generator().manual_seed(seed)))
    return model
