"""Tiny models in the formats that people load, through ComfyUI's own loader and city96's for GGUF.

The loader is the engine's; only the sizes that it finds in a file are put right, as v0.3.64 takes FLUX's
width for granted.
"""

from __future__ import annotations

import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import comfy.model_detection
import comfy.ops
import comfy.sd
import comfy.supported_models
import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ENGINE = Path(comfy.sd.__file__).parents[1]
FLUX = dict(hidden=256, heads=4, depth=1, depth_single=1, context_dim=256, pooled_dim=256)
SD = dict(context_dim=32)
PLAIN = ("bf16",)
#: "by option": a bfloat16 file with the loader's weight_dtype; "fast": with fp8 matrix products, where the
#: processor has them
FLOAT8 = ("fp8 e4m3", "fp8 e5m2", "fp8 e4m3 by option", "fp8 e4m3 fast", "scaled fp8")
QUANTISED = ("mixed fp8", "int8", "mxfp8", "nvfp4")
GGUF = ("Q8_0", "Q4_K", "Q8_0 everything")
FORMATS = (*FLOAT8, *QUANTISED, *GGUF)


def _module(name: str, path: Path, **options):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path, **options)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


formats = _module("trace_benchmark_formats", BENCHMARKS / "formats.py")


@contextmanager
def sizes(kind: str, found: dict):
    """The loader takes any file for this family, with these sizes: it knows SD 1.5 by its width, and
    v0.3.64 FLUX's by heart.
    """
    family = comfy.supported_models.Flux if kind == "flux" else comfy.supported_models.SD15

    def detected(*_, **__):
        return family({k: v for k, v in found.items() if k != "dtype"})

    with mock.patch.object(comfy.model_detection, "model_config_from_unet_config", detected):
        yield


def needs(fmt: str) -> None:
    """Skip, by name, what this engine has not."""
    if fmt in QUANTISED:
        algorithms = getattr(getattr(comfy, "quant_ops", None), "QUANT_ALGOS", {})
        if formats.QUANTISED[fmt][0] not in algorithms or not hasattr(comfy.ops, "mixed_precision_ops"):
            pytest.skip(f"this ComfyUI has no {fmt} files")
    if fmt in GGUF and (why := formats.gguf_missing(ENGINE)):
        pytest.skip(why)
    if not hasattr(comfy.sd, "load_diffusion_model_state_dict"):
        pytest.skip("this ComfyUI has no load_diffusion_model_state_dict")


_made: dict[tuple, tuple[dict[str, Tensor], dict]] = {}


def values(tiny, kind: str = "flux", seed: int = 0, **changes) -> tuple[dict[str, Tensor], dict]:
    """A network's weights in bfloat16, by the keys of its file, and its sizes."""
    key = (kind, seed, *sorted(changes.items()))
    if key not in _made:
        _made[key] = _values(tiny, kind, seed, **changes)
    state, config = _made[key]
    return dict(state), dict(config)


def _values(tiny, kind: str, seed: int, **changes) -> tuple[dict[str, Tensor], dict]:
    model = (
        tiny.tiny_flux(seed=seed, **{**FLUX, **changes})
        if kind == "flux"
        else tiny.tiny_sd(seed=seed, **{**SD, **changes})
    )
    state = {k: v.to(torch.bfloat16) for k, v in model.model.diffusion_model.state_dict().items()}
    if kind == "flux":  # files say scale, also where newer versions of ComfyUI say weight
        state = {k.replace("_norm.weight", "_norm.scale"): v for k, v in state.items()}
    return state, dict(model.model.model_config.unet_config)


def load(tiny, fmt: str, folder: Path, kind: str = "flux", seed: int = 0, **changes):
    """A ModelPatcher of a tiny model in one of :data:`FORMATS`, or ``bf16``."""
    needs(fmt)
    state, config = values(tiny, kind, seed, **changes)
    with sizes(kind, config):
        if fmt in GGUF:
            return _load_gguf(fmt, state, folder / f"{fmt.replace(' ', '-')}-{seed}.gguf", kind)
        options, metadata = {}, None
        if fmt in QUANTISED:
            state, metadata = formats.quantised(state, fmt, comfy)
        elif fmt == "scaled fp8":
            state = formats.scaled_float8(state)
        elif (
            fmt in formats.FLOAT8
        ):  # on a CPU the loader would make float32 of such a file; on a GPU it keeps it
            state, options = formats.cast(state, formats.FLOAT8[fmt]), {"dtype": formats.FLOAT8[fmt]}
        elif fmt == "fp8 e4m3 fast":
            options = {"dtype": torch.float8_e4m3fn, "custom_operations": comfy.ops.fp8_ops}
        elif fmt != "bf16":
            options = {"dtype": torch.float8_e4m3fn}
        more = {} if metadata is None else {"metadata": metadata}
        return comfy.sd.load_diffusion_model_state_dict(state, model_options=options, **more)


def _load_gguf(fmt: str, state: dict, path: Path, kind: str):
    if not path.exists():  # a model that was loaded from it is mapped to it
        formats.write_gguf(
            path, state, fmt.split()[0], "flux" if kind == "flux" else "sd1", fmt.endswith("everything")
        )
    return formats.load_gguf(ENGINE, path)
