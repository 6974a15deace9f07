"""How near one text row can come to undoing an edit of the text rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .edit import ContextEdit

#: Singular values of ``I + U^T V`` below this are directions that the edit removes. Others are moved.
REMOVED = 1e-3
RIDGE = 1e-7  #: relative regulariser of H, which has float32 rounding, and is singular if outputs are few


def removed_directions(edit: ContextEdit) -> Tensor:
    """Basis N ``[d, k]`` of the rows that nothing reaches: ``N^T (I + U V^T) = 0``.

    ``n = V y`` with ``(I + U^T V) y = 0``. A projection removes every direction that it reads. An edit that
    writes something else in their place removes none.
    """
    inner = torch.eye(edit.rank, dtype=edit.U.dtype, device=edit.U.device) + edit.U.T @ edit.V
    _, values, right = torch.linalg.svd(inner)
    return edit.V @ right[values < REMOVED].T


def _factor(H: Tensor) -> Tensor:
    """Lower Cholesky factor of H with the smallest ridge that makes it positive definite."""
    ridge, eye = RIDGE * H.norm(), torch.eye(len(H), dtype=H.dtype)
    while True:  # ends at the latest where the ridge exceeds H
        factor, failed = torch.linalg.cholesky_ex(H + ridge * eye)
        if not failed:
            return factor
        ridge *= 10


def certificate(edit: ContextEdit, H: Tensor, difference: Tensor) -> float:
    """Smallest share of the concept's difference that stays gone in all layers, whatever one row is given.

    For a row d the smallest squared residual of ``W' d' = W d`` over all d' and layers is
    ``d^T N (N^T H^-1 N)^-1 N^T d``, with ``H = sum W^T W`` and N of :func:`removed_directions`. At 0 some row
    brings the concept back exactly. The bound says nothing of attacks without text.

    Args:
        H: ``[d, d]`` float64 over the layers' text columns.
        difference: ``sum a d d^T`` ``[d, d]`` of the difference rows.

    Returns:
        the square root of the residuals' share of ``tr(H sum a d d^T)``, 0..1.
    """
    total = (H * difference).sum()
    # a ridge of full rank weighs and never removes
    N = None if edit.is_plain else removed_directions(edit)
    if N is None or not N.shape[1] or total <= 0:
        return 0.0
    reach = torch.linalg.solve_triangular(_factor(H), N, upper=False)
    inverse = torch.linalg.inv(reach.T @ reach)
    left = (inverse * (N.T @ difference @ N)).sum()
    return (left / total).clamp(0, 1).sqrt().item()


def layers_certificate(H: Tensor, edited: Tensor, cross: Tensor, difference: Tensor) -> float:
    """:func:`certificate` of layers that are edited one by one, from sums over the layers.

    The smallest squared residual is ``tr(D^T H D) - tr(D^T X^T (sum W'^T W')^-1 X D)``.

    Args:
        H: ``sum W^T W``.
        edited: ``sum W'^T W'``.
        cross: ``X = sum W'^T W``.
        difference: ``D D^T``, ``[d, d]`` as the others.
    """
    total = (H * difference).sum()
    if total <= 0:
        return 0.0
    half = torch.linalg.solve_triangular(_factor(edited), cross, upper=False)
    left = total - (half.T @ half * difference).sum()
    return (left / total).clamp(0, 1).sqrt().item()
