"""Weights in whatever form a file keeps them: plain, float8 with or without a scale, quantised tensors, GGUF.

Only the keys that are asked for are read, each by what its own layer offers: ComfyUI's ``get_key_weight`` and
``convert_weight`` (scaled float8; quantised tensors since v0.33), the ``get_weight`` of GGUF layers, whose
tensors hold raw bytes. Reading every key of the state dict, as ``get_key_patches`` does, fails on the keys
that are no parameters (``weight_scale``, ``comfy_quant``, GGUF's ``temp``), and on some a key's tensor has
another shape than the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ModelError

PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  #: what PyTorch calculates with


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer; ComfyUI's for mixed precision is no ``nn.Linear``, but has all
    that one has.
    """
    if isinstance(module, nn.Linear):
        return True
    return all(
        hasattr(module, name) for name in ("in_features", "out_features", "comfy_cast_weights")
    ) and hasattr(module, "weight")


def shape_of(module: nn.Module) -> torch.Size:
    """``[out, in]`` of a linear layer, whatever the shape of its bytes; of other layers, that of their
    weight.
    """
    return torch.Size((module.out_features, module.in_features)) if is_linear(module) else module.weight.shape


def layer_at(model: nn.Module, name: str) -> nn.Module | None:
    """The module of that name if it has a weight, else None."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return None
    return module if getattr(module, "weight", None) is not None else None


def stored(patcher, key: str) -> Tensor:
    """A weight's tensor as the model keeps it, without the patches that ComfyUI may have put on it while
    the model is loaded.
    """
    weight = patcher.model.get_submodule(key.rpartition(".")[0]).weight
    if key in patcher.backup:
        weight = patcher.backup[key].weight
    if key in getattr(patcher, "hook_backup", {}):
        weight = patcher.hook_backup[key][0]
    return weight


def storage_of(tensor: Tensor) -> str:
    """How a tensor is kept, as its format is called: ``float16``, ``float8_e4m3fn``, ``scaled
    float8_e4m3fn``, ``nvfp4``, ``Q4_K``
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
    """Whether PyTorch can calculate with a tensor as it is."""
    own_class = type(tensor) in (Tensor, nn.Parameter) or tensor is None
    return own_class and (tensor is None or tensor.dtype in PLAIN)


def original(patcher, key: str) -> Tensor:
    """The base model's weight ``[out, in]`` (or of any rank) in float32, dequantised: a new tensor, on the
    device where it is kept.

    Raises:
        ModelError: if the engine cannot turn this format into numbers.
    """
    module, tensor = patcher.model.get_submodule(key.rpartition(".")[0]), stored(patcher, key)
    try:
        weight = _dequantised(module, tensor)
    except Exception as error:  # whatever a format's own code runs into
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
        # without the patches that its loader hangs on the tensor itself
        bare = tensor.as_subclass(type(tensor))
        bare.tensor_type, bare.tensor_shape = tensor.tensor_type, tensor.tensor_shape
        return module.get_weight(bare, torch.float32).as_subclass(Tensor).to(torch.float32, copy=True)
    weight = tensor.detach().to(torch.float32, copy=True)
    convert = getattr(module, "convert_weight", None)
    return convert(weight, inplace=False).float() if convert is not None else weight


def effective(patcher, key: str, calculate_weight) -> Tensor:
    """The weight with the patches of this MODEL on it, as it is applied; float32. ``calculate_weight``:
    ComfyUI's.
    """
    weight, patches = original(patcher, key), patcher.patches.get(key)
    return calculate_weight(patches, weight, key) if patches else weight
