"""Steps that several transformers share: rotary position embedding, and norms before the text input layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import PREFIX, Backbone
from .weights import original


def rotated(x: Tensor, pe: Tensor) -> Tensor:
    """Rotary position embedding (Su et al., arXiv 2104.09864) of ``x [..., d]``.

    ``pe``: rotation matrices ``[..., d/2, 2, 2]`` as ComfyUI makes them, which broadcast to x.
    """
    pairs = x.to(pe.dtype).unflatten(-1, (-1, 1, 2))
    return (pe[..., 0] * pairs[..., 0] + pe[..., 1] * pairs[..., 1]).flatten(-2).type_as(x)


def rms_normalised(backbone: Backbone, name: str, rows: Tensor) -> Tensor:
    """Rows ``[n, d]`` behind the network's RMSNorm of this name (Zhang and Sennrich, arXiv 1910.07467)."""
    weight = original(backbone.patcher, f"{PREFIX}{name}.weight").float().cpu()
    eps = backbone.network.get_submodule(name).eps
    return F.rms_norm(rows, weight.shape, weight, torch.finfo(rows.dtype).eps if eps is None else eps)
