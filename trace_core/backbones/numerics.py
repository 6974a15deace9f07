"""Small numerical helpers for all methods."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity.

    The extremes of a tensor are NaN if any number is, so two reductions decide. On a CPU this is twenty times
    faster than ``isfinite(...).all()``.
    """
    return tensor.numel() == 0 or all(math.isfinite(x) for x in torch.stack(torch.aminmax(tensor)).tolist())
