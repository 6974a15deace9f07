"""Weights in every storage format: plain, float8 with or without a scale, quantised tensors, GGUF.

Only requested keys are read, through the interface of their own layer: ComfyUI's ``get_key_weight`` and
``convert_weight`` (scaled float8; quantised tensors since v0.33), or ``get_weight`` of GGUF layers, whose
tensors contain raw bytes. Reading the whole state dict, as ``get_key_patches`` does, fails on keys that are
not parameters (``weight_scale``, ``comfy_quant``, GGUF's ``temp``). For some keys, the stored tensor's shape
also differs from the weight's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ModelError, is_out_of_memory

PLAIN = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
)  #: data types that PyTorch computes with


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer. ComfyUI's mixed-precision class only has the same attributes."""
    if isinstance(module, nn.Linear):
        return True
    return all(
        hasattr(module, name) for name in ("in_features", "out_features", "comfy_cast_weights")
    ) and hasattr(module, "weight")


def shape_of(module: nn.Module) -> torch.Size:
    """``[out, in]`` of a linear layer, whatever its storage; for other layers the shape of the weight."""
    return torch.Size((module.out_features, module.in_features)) if is_linear(module) else module.weight.shape


def layer_at(model: nn.Module, name: str) -> nn.Module | None:
    """The module with this name if it has a weight, else None."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return None
    return module if getattr(module, "weight", None) is not None else None


def stored(patcher, key: str) -> Tensor:
    """A weight's stored tensor, without patches that ComfyUI applies while the model is loaded."""
    weight = patcher.model.get_submodule(key.rpartition(".")[0]).weight
    if key in patcher.backup:
        weight = patcher.backup[key].weight
    if key in getattr(patcher, "hook_backup", {}):
        weight = patcher.hook_backup[key][0]
    return weight


def storage_of(tensor: Tensor) -> str:
    """Name of a tensor's storage format.

    Examples: ``float16``, ``float8_e4m3fn``, ``scaled float8_e4m3fn``, ``nvfp4``, ``Q4_K``.
    """
    if getattr(tensor, "tensor_type", None) is not None:
        return str(getattr(tensor.tensor_type, "name", tensor.tensor_type))
    layout = getattr(tensor, "_layout_cls", None)
    if layout is not None:
        name = (
            str(layout).removeprefix("TensorCore").removeprefix("TensorWise").removesuffix("Layout").lower()
        )
        return f"scaled {storage_of(tensor._qdata)}" if name.startswith("fp8") else name
    return str(tensor.dtype).removeprefix("torch.")


def is_plain(tensor: Tensor | None) -> bool:
    """Whether PyTorch can compute with a tensor directly."""
    own_class = type(tensor) in (Tensor, nn.Parameter) or tensor is None
    return own_class and (tensor is None or tensor.dtype in PLAIN)


def original(patcher, key: str) -> Tensor:
    """The base model's weight ``[out, in]`` (or of any rank), dequantised to new float32 on its device.

    Raises:
        ModelError: if the engine cannot dequantise this format.
    """
    module, tensor = patcher.model.get_submodule(key.rpartition(".")[0]), stored(patcher, key)
    try:
        weight = _dequantised(module, tensor)
    except Exception as error:  # any error of the format's own code
        if is_out_of_memory(error):
            raise
        raise ModelError(_unreadable(key, tensor, f" ({error})")) from error
    if is_linear(module) and weight.shape != shape_of(module):
        raise ModelError(
            _unreadable(key, tensor, f" (it gives {tuple(weight.shape)} for {tuple(shape_of(module))})")
        )
    return weight


def _unreadable(key: str, tensor: Tensor, why: str) -> str:
    return (
        f"{key} is stored as {storage_of(tensor)}, which cannot be read here{why}; load the fp16, bf16 "
        "or fp8 file of this model"
    )


@torch.no_grad()
def _dequantised(module: nn.Module, tensor: Tensor) -> Tensor:
    if hasattr(tensor, "tensor_type") and hasattr(module, "get_weight"):  # GGUF
        # without the patches that the GGUF loader attaches to the tensor itself
        bare = tensor.as_subclass(type(tensor))
        bare.tensor_type, bare.tensor_shape = tensor.tensor_type, tensor.tensor_shape
        return module.get_weight(bare, torch.float32).as_subclass(Tensor).to(torch.float32, copy=True)
    weight = tensor.detach().to(torch.float32, copy=True)
    convert = getattr(module, "convert_weight", None)
    return convert(weight, inplace=False).float() if convert is not None else weight


def effective(patcher, key: str, calculate_weight) -> Tensor:
    """The weight in float32 with this MODEL's patches applied by ComfyUI's ``calculate_weight``."""
    weight, patches = original(patcher, key), patcher.patches.get(key)
    return calculate_weight(patches, weight, key) if patches else weight
