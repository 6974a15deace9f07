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
    return bring_back(own, half, reach * own.diagonal().mean().item())


def bring_back(edited: Tensor, cross: Tensor, strength: float) -> Tensor:
    """RECE, eq. 6: ``A = (sum W'^T W' + l I)^-1 sum W'^T W``, ``[d, d]``, from both sums ``[d, d]`` and l."""
    return torch.cholesky_solve(
        cross, cholesky(edited + strength * torch.eye(len(edited), dtype=edited.dtype))
    )
