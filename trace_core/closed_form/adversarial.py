"""Rows that bring an erased concept back, in closed form (RECE, arXiv 2407.12383)."""

from __future__ import annotations

import torch
from torch import Tensor

from .edit import ContextEdit
from .solvers import cholesky

#: RECE's lambda of 0.1, as a share of the mean diagonal of ``sum W'^T W'``. SD 1.4's 24,960 outputs of
#: cross-attention give a diagonal of 24,960 / (3 * 768) = 10.8 as PyTorch initialises them.
REACH = 0.1 / 10.8


def adversarial_map(edit: ContextEdit, gram: Tensor, reach: float = REACH) -> Tensor:
    """RECE, eq. 6, for an edit of the text rows: ``A = (T^T H T + l I)^-1 T^T H``, ``T = I + U V^T``.

    The edited layers map the rows ``A c`` to about what the layers mapped c to.

    Args:
        gram: ``H = sum W^T W`` ``[d, d]`` over the layers.
        reach: l, as a share of the mean diagonal of ``T^T H T``.

    Returns:
        A ``[d, d]`` float64.
    """
    half = gram + edit.V @ (edit.U.T @ gram)  # T^T H
    own = half + (half @ edit.U) @ edit.V.T
    own = (own + own.T) / 2
    ridge = reach * own.diagonal().mean() * torch.eye(len(own), dtype=own.dtype)
    return torch.cholesky_solve(half, cholesky(own + ridge))
