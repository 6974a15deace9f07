"""Small numerical helpers that belong to no method."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity. Twenty times faster than ``isfinite(...).all()`` on a
    CPU.

    The extremes of a tensor are NaN if any of its numbers is.
    """
    return tensor.numel() == 0 or all(math.isfinite(x) for x in torch.stack(torch.aminmax(tensor)).tolist())
