"""A network's weights in the file formats that people load; used by ``real_shapes.py`` and by the tests.

Every writer takes ``{key: tensor}`` with the network's own keys and gives what stands in such a file.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

FLOAT8 = {"fp8 e4m3": torch.float8_e4m3fn, "fp8 e5m2": torch.float8_e5m2}
QUANTISED = {
    "int8": ("int8_tensorwise", "TensorWiseINT8Layout"),
    "mxfp8": ("mxfp8", "TensorCoreMXFP8Layout"),
    "nvfp4": ("nvfp4", "TensorCoreNVFP4Layout"),
    "mixed fp8": ("float8_e4m3fn", "TensorCoreFP8E4M3Layout"),
}
GGUF = ("Q8_0", "Q4_K")
#: What city96's conversion of FLUX leaves as it is: the ways in and out
WAYS_IN_AND_OUT = ("img_in", "txt_in", "vector_in", "time_in", "guidance_in", "final_layer")


def is_matrix(key: str, tensor: Tensor) -> bool:
    return key.endswith(".weight") and tensor.ndim == 2


def cast(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor in one precision, as most float8 files of FLUX are."""
    return {k: v.to(dtype) for k, v in state.items()}


def scaled_float8(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``scaled_fp8`` as ComfyUI wrote it in 2024 and 2025: matrices in float8 with a ``scale_weight``, the
    rest in bfloat16.
    """
    out = {"scaled_fp8": torch.tensor([], dtype=torch.float8_e4m3fn)}
    for key, value in state.items():
        if is_matrix(key, value):
            scale = (value.float().abs().max() / 448).clamp_min(1e-12)
            out[key] = (value.float() / scale).to(torch.float8_e4m3fn)
            out[key.removesuffix("weight") + "scale_weight"] = scale
        else:
            out[key] = value.to(torch.bfloat16)
    return out


def quantised(state: dict[str, Tensor], name: str, engine) -> tuple[dict[str, Tensor], dict[str, str]]:
    """ComfyUI's own quantised files (since v0.33): tensors and the file's metadata. Ways in and out stay
    bfloat16.
    """
    algorithm, layout = QUANTISED[name]
    tensor_class, out, layers = engine.quant_ops.QuantizedTensor, {}, {}
    # packed weights have half the width, by which the loader recognises txt_in
    plain = WAYS_IN_AND_OUT if name == "nvfp4" else WAYS_IN_AND_OUT[:1] + WAYS_IN_AND_OUT[5:]
    for key, value in state.items():
        if is_matrix(key, value) and not key.startswith(plain):
            options = {"scale": "recalculate"} if "fp8" in name and name != "mxfp8" else {}
            out |= tensor_class.from_float(value.to(torch.bfloat16), layout, **options).state_dict(key)
            layers[key.removesuffix(".weight")] = {"format": algorithm}
        else:
            out[key] = value.to(torch.bfloat16)
    return out, {"_quantization_metadata": json.dumps({"layers": layers})}


def write_gguf(
    path: Path, state: dict[str, Tensor], kind: str, architecture: str = "flux", everything: bool = False
) -> None:
    """A GGUF file of matrices in ``kind``; the ways in and out as F16 unless ``everything``, vectors and
    the rest as F32.
    """
    import gguf

    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in state.items():
        kept = not is_matrix(key, value) or value.shape[1] % 256
        if kept or (key.startswith(WAYS_IN_AND_OUT) and not everything):
            data = value.float() if value.ndim < 2 else value.half()
            writer.add_tensor(key, data.numpy())
        else:
            found = getattr(gguf.GGMLQuantizationType, kind)
            packed = q4_k(value) if kind == "Q4_K" else gguf.quants.quantize(value.float().numpy(), found)
            writer.add_tensor(key, packed, raw_dtype=found)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def q4_k(weight: Tensor):
    """Bytes ``[out, in / 256 * 144]`` of a matrix in Q4_K, which the gguf package reads but does not write.

    Blocks of 256 numbers, in each eight of 32 with a scale and a minimum of 6 bits (llama.cpp,
    ``quantize_row_q4_K_ref``; plain minimum and maximum here instead of its search).
    """
    x = weight.float().view(-1, 8, 32)
    low = (-x.amin(-1)).clamp_min(0)
    step = (x.amax(-1) + low) / 15
    d, dmin = ((v.amax(-1, keepdim=True) / 63).clamp_min(1e-7).half() for v in (step, low))
    scales = (step / d.float()).round().clamp(0, 63).to(torch.uint8)
    minima = (low / dmin.float()).round().clamp(0, 63).to(torch.uint8)
    size = (d.float() * scales).clamp_min(1e-12)[..., None]
    q = ((x + (dmin.float() * minima)[..., None]) / size).round().clamp(0, 15).to(torch.uint8)
    first = [scales[:, :4] | (scales[:, 4:] >> 4 << 6), minima[:, :4] | (minima[:, 4:] >> 4 << 6)]
    last = (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)
    nibbles = (q[:, 0::2] | (q[:, 1::2] << 4)).flatten(1)
    blocks = torch.cat([d.view(torch.uint8), dmin.view(torch.uint8), *first, last, nibbles], 1)
    return blocks.view(weight.shape[0], -1).numpy()


# -------------------------------------------------------------------------------------------- city96's loader


def gguf_missing(engine: Path) -> str | None:
    """Why GGUF files cannot be loaded with the ComfyUI in that folder, or None."""
    if importlib.util.find_spec("gguf") is None:
        return "the package gguf is not installed"
    if not (engine / "nodes.py").is_file():
        return "ComfyUI-GGUF needs a ComfyUI checkout"
    if _gguf_folder(engine) is None:
        return (
            "ComfyUI-GGUF is not there; clone github.com/city96/ComfyUI-GGUF into custom_nodes or name "
            "it in COMFYUI_GGUF_PATH"
        )
    return None


def _gguf_folder(engine: Path) -> Path | None:
    named = os.environ.get("COMFYUI_GGUF_PATH")
    folders = (
        [Path(named)] if named else [engine / "custom_nodes" / "ComfyUI-GGUF", Path.home() / "ComfyUI-GGUF"]
    )
    return next((folder for folder in folders if (folder / "ops.py").is_file()), None)


def load_gguf(engine: Path, path: Path):
    """A MODEL by city96's own node, from ``COMFYUI_GGUF_PATH``, the engine's custom_nodes or
    ``~/ComfyUI-GGUF``.
    """
    name = "trace_comfyui_gguf"
    if name not in sys.modules:
        folder = _gguf_folder(engine)
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    paths = sys.modules["folder_paths"]
    before, paths.get_full_path = paths.get_full_path, lambda *_: str(path)
    try:
        return sys.modules[f"{name}.nodes"].UnetLoaderGGUF().load_unet(path.name)[0]
    finally:
        paths.get_full_path = before
