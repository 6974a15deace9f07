"""Noise from ComfyUI's rounding of patched weights, which on float8 can be as large as a small edit."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backbones import compat
from ..backbones.base import engine_of
from ..backbones.weights import effective, layer_at, storage_of, stored
from .erasure import ErasureLora

TELL = 0.5  #: relative noise from which to warn, in the Frobenius norm
LAYERS = 3  #: measured layers, spread over the file
NUMBERS = 1 << 20  #: measured numbers per layer, in whole rows


def noise(model, lora: ErasureLora, strength: float = 1.0) -> float:
    """``||round(W + dW) - (W + dW)|| / ||dW||`` over some layers, by ComfyUI's rounding; 0 without rounding.

    GGUF weights are not rounded: the patch is added to their dequantised values.
    """
    names = sorted(lora.modules)
    chosen = {names[i * (len(names) - 1) // max(1, LAYERS - 1)] for i in range(LAYERS)} if names else set()
    error = total = 0.0
    for name in sorted(chosen):
        layer, key = layer_at(model.model, name), f"{name}.weight"
        if layer is None:
            continue
        weight = effective(model, key, engine_of(model).lora.calculate_weight)
        flat, edit = weight.flatten(1) if weight.ndim > 1 else weight[:, None], lora.delta(name) * strength
        rows = slice(None, None, max(1, -(-flat.numel() // NUMBERS)))
        wanted = flat[rows] + edit.to(flat.device).view_as(flat)[rows]
        error += (_rounded(model, layer, stored(model, key), wanted, key) - wanted).square().sum().item()
        total += edit.view_as(flat)[rows].square().sum().item()
    return (error / total) ** 0.5 if total else 0.0


@torch.no_grad()
def _rounded(model, layer, tensor: Tensor, wanted: Tensor, key: str) -> Tensor:
    """A float32 weight ``[rows, in]`` after the rounding of the layer's ``set_weight``, on a copy."""
    engine = engine_of(model)
    seed = compat.seed_of(engine, key)
    if hasattr(tensor, "requantize_from_float"):
        options = {"scale": "recalculate", "stochastic_rounding": seed, "inplace_ops": True}
        return tensor.requantize_from_float(wanted.clone(), **options).dequantize().float()
    if hasattr(tensor, "tensor_type") and getattr(layer, "is_ggml_quantized", lambda **_: True)(
        weight=tensor
    ):
        return wanted
    scale = getattr(layer, "scale_weight", None)
    scale = 1.0 if scale is None else scale.detach().to(wanted.device, wanted.dtype)
    return engine.float.stochastic_rounding(wanted / scale, tensor.dtype, seed=seed).float() * scale


def warning(model, lora: ErasureLora, strength: float = 1.0) -> str | None:
    """A warning with a remedy if the rounding is large relative to the edit, else None."""
    share = noise(model, lora, strength)
    if share < TELL:
        return None
    module = next(m for m in sorted(lora.modules) if layer_at(model.model, m) is not None)
    return (
        f"the rounding of the patched weights to {storage_of(stored(model, module + '.weight'))} adds noise "
        f"of {100 * share:.0f} % of this edit's size; use start 0 and end 0.999 to add the erasure in the "
        "forward pass, which is not rounded, or load the model's bf16 or fp16 file"
    )
