"""The two closed-form solvers. Float64, Cholesky, no explicit inverse, never an unregularised system."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import TraceError
from .edit import ContextEdit

DIRECT_LIMIT = 4096  #: up to this many difference rows they are decomposed themselves, beyond it their Gram matrix is


def regularise(keep: Tensor, alpha: float | None, absolute: float | None = None) -> Tensor:
    """``G = keep + lambda I`` with ``lambda = alpha tr(keep) / d``, or an absolute lambda.

    Args:
        keep: Gram matrix ``[d, d]`` float64 without the regulariser.

    Raises:
        TraceError: if lambda is not positive; a singular system has no answer worth having.
    """
    width = keep.shape[0]
    strength = absolute if absolute is not None else (alpha or 0.0) * keep.diagonal().sum().item() / width
    if not (strength > 0 and math.isfinite(strength)):
        raise TraceError(f"the regulariser lambda is {strength}; it must be positive (alpha {alpha}, keep rows present?)")
    return keep + strength * torch.eye(width, dtype=keep.dtype, device=keep.device)


def cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor; on failure once more with a jitter of 1e-12 of the mean diagonal.

    Raises:
        TraceError: if the matrix is not positive definite even then.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed.item():
        jitter = 1e-12 * matrix.diagonal().mean()
        factor, failed = torch.linalg.cholesky_ex(matrix + jitter * torch.eye(len(matrix), dtype=matrix.dtype))
    if failed.item() or not torch.isfinite(factor).all():
        raise TraceError("the keep matrix is not positive definite; raise alpha")
    return factor


def projection(differences: Tensor, G: Tensor, strength: float = 1.0, energy: float = 1.0,
               max_rank: int | None = None) -> tuple[ContextEdit, dict]:  # fmt: skip
    """TRACE's closed form: ``dW = -s W D (D^T G^-1 D)^-1 D^T G^-1``, the concept's directions gone, exactly.

    Of all edits with ``W' D = (1 - s) W D`` it changes the keep set least, in the norm of G. With ``G = L L^T`` it is the
    orthogonal projection off the columns of ``L^-1 D``; the leading ones that hold the share ``energy`` of their squared
    norm are projected out.

    Args:
        differences: weighted rows ``c_i - g_i``, ``[n, d]``; or their Gram matrix ``[d, d]`` when n is large
            (symmetric, recognised by :func:`is_gram`).
        G: ``[d, d]`` float64, symmetric positive definite.
        strength: s; 0 changes nothing, 1 erases.
        energy: share of the whitened energy to project out, in (0, 1]; 1 takes every direction above rounding.
        max_rank: upper bound of the rank.

    Returns:
        the edit, and ``rank``, ``energy_kept`` (the share that is left, as measured).
    """
    L = cholesky(G)
    D = differences.double().T
    whitened = torch.linalg.solve_triangular(L, D, upper=False)
    if energy < 1 and D.shape[1] >= D.shape[0]:  # only leading directions are wanted, which squaring does not blur
        values, vectors = torch.linalg.eigh(whitened @ whitened.T)
        return _project(L, vectors.flip(1), values.flip(0).clamp_min(0), strength, energy, max_rank, floor=1e-13)
    vectors, values, _ = torch.linalg.svd(whitened, full_matrices=False)
    return _project(L, vectors, values.square(), strength, energy, max_rank, floor=1e-20)


def projection_from_gram(gram: Tensor, G: Tensor, strength: float = 1.0, energy: float = 1.0,
                         max_rank: int | None = None) -> tuple[ContextEdit, dict]:  # fmt: skip
    """:func:`projection` from ``D D^T`` ``[d, d]`` instead of D, for more difference rows than fit in memory."""
    L = cholesky(G)
    half = torch.linalg.solve_triangular(L, gram, upper=False)
    whitened = torch.linalg.solve_triangular(L, half.T, upper=False)
    values, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
    return _project(L, vectors.flip(1), values.flip(0).clamp_min(0), strength, energy, max_rank, floor=1e-13)


def _project(L, vectors, energies, strength, energy, max_rank, floor):
    total = energies.sum()
    width = L.shape[0]
    if total <= 0:
        return _nothing(width), {"rank": 0, "energy_left": 0.0}
    shares = energies.cumsum(0) / total
    above = int((energies > floor * energies[0]).sum())
    rank = above if energy >= 1 else min(above, int((shares < energy).sum()) + 1)
    rank = min(rank, max_rank or rank)
    basis = vectors[:, :rank]
    V = torch.linalg.solve_triangular(L.T, basis, upper=True)
    left = (1 - shares[rank - 1]).clamp_min(0).item()
    return ContextEdit(-strength * (L @ basis), V), {"rank": rank, "energy_left": left}


def ridge(targets: Tensor, rows: Tensor, G: Tensor, strength: float = 1.0, tolerance: float = 1e-9,
          max_rank: int | None = None) -> tuple[ContextEdit, dict]:  # fmt: skip
    """Ridge regression of UCE, MACE, RECE, TRCE-1 (UCE eq. 7; MACE eq. 2): ``dW = W R C^T G^-1``.

    Args:
        targets: ``R C^T`` ``[d, d]`` with ``R = [a_i (g_i - c_i)]``, or R^T ``[n, d]`` when ``rows`` holds C^T.
        rows: C^T ``[n, d]``, or None when ``targets`` is already the product.
        G: ``sum a c c^T + sum b p p^T + lambda I``, ``[d, d]`` float64.
        strength: scales the edit.
        tolerance: singular values of the edit below this share of the largest are dropped.
        max_rank: upper bound of the rank.

    Returns:
        the edit, and ``rank``, ``truncation`` (Frobenius share lost by ``max_rank`` and ``tolerance``).
    """
    if rows is None:
        U, V = None, torch.cholesky_solve(targets.T, cholesky(G))  # dW = W V^T
    else:
        U, V = targets.double().T, torch.cholesky_solve(rows.double().T, cholesky(G))
        if U.shape[1] >= U.shape[0]:
            U, V = None, V @ U.T
    if not (V.any() if U is None else U.any() and V.any()):
        return _nothing(G.shape[0]), {"rank": 0, "truncation": 0.0}
    if U is None and strength and not max_rank and _has_full_rank(V, tolerance):
        return ContextEdit(torch.eye(len(V), dtype=V.dtype), strength * V), {"rank": len(V), "truncation": 0.0}
    return _truncate(U, V, strength, tolerance, max_rank)


def _has_full_rank(matrix: Tensor, tolerance: float) -> bool:
    """Whether every singular value of ``matrix`` ``[d, d]`` is surely above ``tolerance`` times the largest.

    By Sylvester's law of inertia: ``X X^T - t^2 I`` has a Cholesky factor exactly if all singular values of X exceed t. That
    is some ten times faster than computing them. t is never below 1e-6 of the norm, which float64 still resolves in
    the product; where the answer is no, the singular values have to be looked at.
    """
    product = matrix @ matrix.T
    bound = max(tolerance, 1e-6) ** 2 * product.diagonal().sum()
    product.diagonal().sub_(bound)
    return torch.linalg.cholesky_ex(product)[1].item() == 0


def _truncate(U: Tensor | None, V: Tensor, strength: float, tolerance: float, max_rank: int | None):
    """``U V^T`` (``V^T`` for no U) by its singular values above ``tolerance`` times the largest, at most ``max_rank``."""
    if U is None:
        left, values, right = torch.linalg.svd(V.T)
    else:  # [d, n] with n < d: the singular values of an [n, n] matrix
        (left, R), (right, S) = torch.linalg.qr(U), torch.linalg.qr(V)
        inner = torch.linalg.svd(R @ S.T)
        left, values, right = left @ inner.U, inner.S, inner.Vh @ right.T
    rank = int((values > tolerance * values[0]).sum())
    rank = min(rank, max_rank or rank)
    lost = (values[rank:].square().sum() / values.square().sum()).sqrt().item()
    edit = ContextEdit(strength * left[:, :rank] * values[:rank], right[:rank].T.contiguous())
    return edit, {"rank": rank, "truncation": lost}


def _nothing(width: int) -> ContextEdit:
    empty = torch.zeros(width, 0, dtype=torch.float64)
    return ContextEdit(empty, empty.clone())
