"""The files of ``real_shapes.py``: real shapes with random weights, written and loaded again."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import formats
import shape_transformers
import torch
from shape_transformers import TRANSFORMERS, random_weights
from training_memory import SHAPES

from trace_core import engine
from trace_core.backbones import compat


@dataclass(frozen=True)
class Case:
    """A family and a format; ``kept``: in which precision the loader is told to keep it, as it does by
    itself on a GPU.
    """

    family: str
    fmt: str
    kept: torch.dtype | None = None


CASES = {
    "SD1.5 fp16": Case("SD1.5", "fp16"),
    "SD1.5 fp8 e4m3": Case("SD1.5", "fp8 e4m3", torch.float8_e4m3fn),
    "FLUX bf16": Case("FLUX.1-dev", "bf16"),
    "FLUX fp8 e4m3": Case("FLUX.1-dev", "fp8 e4m3", torch.float8_e4m3fn),
    "FLUX fp8 e5m2": Case("FLUX.1-dev", "fp8 e5m2", torch.float8_e5m2),
    "FLUX bf16, weight_dtype fp8_e4m3fn": Case("FLUX.1-dev", "bf16", torch.float8_e4m3fn),
    **{f"FLUX {fmt}": Case("FLUX.1-dev", fmt) for fmt in ("scaled fp8", *formats.QUANTISED, *formats.GGUF)},
    "SDXL fp16": Case("SDXL", "fp16", torch.float16),
    **{f"{family} bf16": Case(family, "bf16", torch.bfloat16) for family in TRANSFORMERS},
    **{f"{family} fp8 e4m3": Case(family, "fp8 e4m3", torch.float8_e4m3fn) for family in TRANSFORMERS},
}
CHECKPOINTS = ("SD1.5", "SDXL")  #: families whose files hold everything


def network(family: str, small: bool) -> tuple[object, dict]:
    """ComfyUI's configuration of a family, and its network's weights by key, random, in float16 or (FLUX)
    bfloat16.
    """
    import comfy.supported_models

    if family in TRANSFORMERS:
        return None, random_weights(shape_transformers.network(family), torch.bfloat16)
    name, config, _ = SHAPES[family]
    config = dict(config)
    if family == "FLUX.1-dev":
        config |= {"depth": 1, "depth_single_blocks": 1}
        config |= (
            {"hidden_size": 256, "num_heads": 2, "context_in_dim": 256, "vec_in_dim": 256} if small else {}
        )
    elif small:
        config |= {
            "num_res_blocks": [1],
            "channel_mult": [1],
            "transformer_depth": [1],
            "transformer_depth_output": [1, 1],
        }
    config = compat.flux_config(sys.modules["comfy"], config) if family == "FLUX.1-dev" else config
    found = getattr(comfy.supported_models, name)(config)
    found.set_inference_dtype(torch.float32, None)
    if family != "FLUX.1-dev":
        found.unet_config["num_heads" if family == "SD1.5" else "num_head_channels"] = (
            8 if family == "SD1.5" else 64
        )
    model = found.get_model({}, device=torch.device("meta")).diffusion_model
    state = random_weights(model, torch.bfloat16 if family == "FLUX.1-dev" else torch.float16)
    return found, {
        k.replace("_norm.weight", "_norm.scale") if family == "FLUX.1-dev" else k: v for k, v in state.items()
    }


def with_towers(config, state: dict, family: str) -> dict:
    """A whole checkpoint: the text towers under the keys of its family, and TAESD as the VAE."""
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.taesd.taesd

    make = comfy.sd1_clip.SD1ClipModel if family == "SD1.5" else comfy.sdxl_clip.SDXLClipModel
    text = random_weights(make(dtype=torch.float16), torch.float16)
    text = {k: torch.arange(v.shape[-1])[None] if k.endswith("position_ids") else v for k, v in text.items()}
    if family == "SD1.5":
        inside = "clip_l.transformer.text_model."
        text = {
            "cond_stage_model.transformer.text_model." + k.removeprefix(inside): v
            for k, v in text.items()
            if k.startswith(inside)
        }
    else:
        text = config.process_clip_state_dict_for_saving(text)
    vae = random_weights(comfy.taesd.taesd.TAESD(), torch.float16)
    vae |= {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
    return (
        {f"model.diffusion_model.{k}": v for k, v in state.items()}
        | text
        | {f"first_stage_model.{k}": v for k, v in vae.items()}
    )


def write(name: str, folder: Path, small: bool) -> Path:
    """The file of a case."""
    from safetensors.torch import save_file

    case, comfy = CASES[name], sys.modules["comfy"]
    config, state = network(case.family, small)
    path = (
        folder
        / f"{name.replace(' ', '-').replace(',', '')}.{'gguf' if case.fmt in formats.GGUF else 'safetensors'}"
    )
    if case.fmt in formats.GGUF:
        formats.write_gguf(path, state, case.fmt)
        return path
    metadata = {}
    if case.fmt in formats.FLOAT8:
        state = formats.cast(state, formats.FLOAT8[case.fmt])
    elif case.fmt == "scaled fp8":
        state = formats.scaled_float8(state)
    elif case.fmt in formats.QUANTISED:
        state, metadata = formats.quantised(state, case.fmt, comfy)
    if case.family in CHECKPOINTS:
        state = with_towers(config, state, case.family)
    save_file({k: v.contiguous() for k, v in state.items()}, str(path), metadata)
    return path


def load(name: str, path: Path, small: bool):
    """``(model, clip)`` by ComfyUI's own loader, or city96's."""
    import comfy.sd

    case = CASES[name]
    options = {"dtype": case.kept} if case.kept else {}
    if case.family in CHECKPOINTS:
        return comfy.sd.load_checkpoint_guess_config(
            str(path), output_vae=False, output_clip=True, model_options=options
        )[:2]
    if case.family in TRANSFORMERS:
        model = comfy.sd.load_diffusion_model(str(path), model_options=options)
        return model, TRANSFORMERS[case.family].clip()
    if case.fmt in formats.GGUF:
        return formats.load_gguf(engine.find().path, path), narrow_t5(small)
    return comfy.sd.load_diffusion_model(str(path), model_options=options), narrow_t5(small)


def narrow_t5(small: bool):
    """FLUX's text encoder object: CLIP-L whole, T5 of one layer with its real width and vocabulary; both
    narrower in small runs.
    """
    import comfy.sd
    import comfy.supported_models_base
    import comfy.text_encoders.flux

    flux = comfy.text_encoders.flux
    target = comfy.supported_models_base.ClipTarget(
        flux.FluxTokenizer, flux.flux_clip(dtype_t5=torch.float32)
    )
    t5 = {"d_model": 4096, "d_ff": 512, "d_kv": 64, "num_heads": 4, "num_layers": 1}
    options = {"dtype": torch.float32, "t5xxl_model_config": t5}
    if small:
        t5["d_model"] = 256
        options["clip_l_model_config"] = {
            "hidden_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "projection_dim": 256,
        }
    clip = comfy.sd.CLIP(target, model_options=options)
    clip.cond_stage_model.load_state_dict(random_weights(clip.cond_stage_model, torch.float32), strict=False)
    return clip
