"""The two closed-form solvers: float64, Cholesky, no explicit inverse, always regularised."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import TraceError
from .edit import ContextEdit

#: Up to this many difference rows, the rows are decomposed directly; beyond it, their Gram matrix is.
DIRECT_LIMIT = 4096
#: Share of the dimensions above which an edit is not worth the SVD that would reduce its rank
NEARLY_FULL = 0.75


def regularise(
    keep: Tensor, alpha: float | None, absolute: float | None = None, trace: float | None = None
) -> Tensor:
    """``G = keep + lambda I`` with ``lambda = alpha tr(keep) / d``, or an absolute lambda.

    Args:
        keep: Gram matrix ``[d, d]`` float64 without the regulariser.
        alpha: relative regulariser.
        absolute: lambda itself, in place of ``alpha``.
        trace: replaces ``tr(keep)``, to exclude rows from the scale.

    Raises:
        TraceError: if lambda is not positive.
    """
    width = keep.shape[0]
    scale = keep.diagonal().sum().item() if trace is None else trace
    strength = absolute if absolute is not None else (alpha or 0.0) * scale / width
    if not (strength > 0 and math.isfinite(strength)):
        raise TraceError(
            f"the regulariser lambda is {strength}; it must be positive (alpha {alpha}, keep rows present?)"
        )
    return keep + strength * torch.eye(width, dtype=keep.dtype, device=keep.device)


def cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor. A failure is retried with a jitter of 1e-12 of the mean diagonal.

    Raises:
        TraceError: if the matrix is not positive definite even then.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed.item():
        jitter = 1e-12 * matrix.diagonal().mean()
        factor, failed = torch.linalg.cholesky_ex(
            matrix + jitter * torch.eye(len(matrix), dtype=matrix.dtype)
        )
    if failed.item() or not torch.isfinite(factor).all():
        raise TraceError("the keep matrix is not positive definite; raise alpha")
    return factor


def projection(
    differences: Tensor,
    G: Tensor,
    strength: float = 1.0,
    energy: float = 1.0,
    max_rank: int | None = None,
    constrained: Tensor | None = None,
    row_strengths: Tensor | None = None,
    displacements: Tensor | None = None,
) -> tuple[ContextEdit, dict]:
    """TRACE's closed form: ``dW = -s W D (D^T M D)^-1 D^T M``, an exact removal of the concept's directions.

    Of all edits with ``W' D = (1 - s) W D`` and ``W' F = W F``, it changes the keep set least, in the norm of
    G. M is G^-1 without its part along the constrained rows F: ``M = G^-1 - G^-1 F (F^T G^-1 F)^-1 F^T
    G^-1``. Let ``G = L L^T``, and let P project off the columns of ``L^-1 F``. The solution follows from the
    singular value decomposition ``P L^-1 D = Q S R^T``. The leading directions with the share ``energy`` of
    the squared singular values are projected out.

    Args:
        differences: weighted rows ``c_i - g_i``, ``[n, d]``.
        G: ``[d, d]`` float64, symmetric positive definite.
        strength: s; 0 changes nothing, 1 erases.
        energy: share of the whitened energy to project out, in (0, 1]; 1 removes every direction above
            rounding.
        max_rank: upper bound of the rank.
        constrained: rows F that must not change at all, ``[k, d]``.
        row_strengths: ``[n]``, a strength s_i for every row, times ``strength``: ``W' d_i = (1 - s s_i) W
            d_i``. For linearly dependent rows of different strengths, the least-squares values.
        displacements: displacements m_i ``[n, d]`` that replace the d_i: ``W' d_i = W d_i - s s_i W m_i``.

    Returns:
        the edit, and ``rank``, ``energy_left`` (the measured share that stays).
    """
    L = cholesky(G)
    D = differences.double().T
    weighted = D if displacements is None else displacements.double().T
    weighted = weighted if row_strengths is None else weighted * row_strengths
    # squaring is precise enough for the leading directions
    if energy < 1 and D.shape[1] >= D.shape[0]:
        return _project(
            L, D @ D.T, strength, energy, max_rank, constrained, None if weighted is D else weighted @ D.T
        )
    off = _whitened_constraints(L, constrained)
    whitened = _project_out(off, torch.linalg.solve_triangular(L, D, upper=False))
    Q, values, Rt = torch.linalg.svd(whitened, full_matrices=False)
    rank, left = _leading(values.square(), energy, max_rank, floor=1e-24)
    U = weighted @ Rt[:rank].T / values[:rank]
    return _edit(L, _project_out(off, Q[:, :rank]), U, strength), {"rank": rank, "energy_left": left}


def projection_from_gram(
    gram: Tensor,
    G: Tensor,
    strength: float = 1.0,
    energy: float = 1.0,
    max_rank: int | None = None,
    constrained: Tensor | None = None,
    strength_weighted: Tensor | None = None,
) -> tuple[ContextEdit, dict]:
    """:func:`projection` from ``D D^T`` ``[d, d]``, for more difference rows than fit in memory.

    ``strength_weighted``: ``D diag(s_i) D^T`` ``[d, d]`` for rows with strengths, or ``M diag(s_i) D^T`` for
    rows with
        displacements.
    """
    return _project(cholesky(G), gram, strength, energy, max_rank, constrained, strength_weighted)


def _project(L, gram, strength, energy, max_rank, constrained, strength_weighted):
    """The projection from ``S = D D^T``: ``P L^-1 S L^-T P = Q E Q^T``, and ``D R S^-1 = S L^-T Q E^-1``.

    With strengths, ``D diag(s) D^T`` takes the place of S in the last formula.
    """
    off = _whitened_constraints(L, constrained)
    half = torch.linalg.solve_triangular(L, gram, upper=False)
    whitened = _project_out(off, _project_out(off, torch.linalg.solve_triangular(L, half.T, upper=False)).T)
    values, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
    energies, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    rank, left = _leading(energies, energy, max_rank, floor=1e-13)
    Q = vectors[:, :rank]
    U = (
        (gram if strength_weighted is None else strength_weighted)
        @ torch.linalg.solve_triangular(L.T, Q, upper=True)
        / energies[:rank]
    )
    return _edit(L, _project_out(off, Q), U, strength), {"rank": rank, "energy_left": left}


def _edit(L: Tensor, Q: Tensor, U: Tensor, strength: float) -> ContextEdit:
    """``V = L^-T Q``.

    The caller has removed from Q the rounding along the constrained rows, which is large for small singular
    values.
    """
    return ContextEdit(-strength * U, torch.linalg.solve_triangular(L.T, Q, upper=True))


def _whitened_constraints(L: Tensor, constrained: Tensor | None) -> Tensor | None:
    """Orthonormal basis ``[d, k]`` of ``L^-1 F``."""
    if constrained is None or constrained.shape[0] == 0:
        return None
    return torch.linalg.qr(torch.linalg.solve_triangular(L, constrained.double().T, upper=False)).Q


def _project_out(basis: Tensor | None, columns: Tensor) -> Tensor:
    """Columns ``[d, n]`` without their part along an orthonormal basis.

    A second pass removes rounding errors.
    """
    for _ in range(0 if basis is None else 2):
        columns = columns - basis @ (basis.T @ columns)
    return columns


def _leading(energies: Tensor, energy: float, max_rank: int | None, floor: float) -> tuple[int, float]:
    """Number of leading energies with the share ``energy`` of their sum, and the share that is left."""
    total = energies.sum()
    if total <= 0:
        return 0, 0.0
    shares = energies.cumsum(0) / total
    above = int((energies > floor * energies[0]).sum())
    rank = above if energy >= 1 else min(above, int((shares < energy).sum()) + 1)
    rank = min(rank, max_rank or rank)
    return rank, (1 - shares[rank - 1]).clamp_min(0).item()


def ridge(
    targets: Tensor,
    rows: Tensor,
    G: Tensor,
    strength: float = 1.0,
    tolerance: float = 1e-9,
    max_rank: int | None = None,
) -> tuple[ContextEdit, dict]:
    """Ridge regression of UCE, MACE, RECE, TRCE-1 (UCE eq. 7; MACE eq. 2): ``dW = W R C^T G^-1``.

    Args:
        targets: ``R C^T`` ``[d, d]`` with ``R = [a_i s_i (g_i - c_i)]`` (s_i: strength of the concept,
            usually 1), or R^T ``[n, d]`` if ``rows`` is C^T.
        rows: C^T ``[n, d]``, or None if ``targets`` is already the product.
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
        return _no_edit(G.shape[0]), {"rank": 0, "truncation": 0.0}
    if U is None and strength and not max_rank and nearly_full(V, tolerance):
        return ContextEdit(torch.eye(len(V), dtype=V.dtype), strength * V), {
            "rank": len(V),
            "truncation": 0.0,
        }
    return _truncate(U, V, strength, tolerance, max_rank)


def nearly_full(matrix: Tensor, tolerance: float) -> bool:
    """Whether more than :data:`NEARLY_FULL` of X's singular values exceed ``tolerance ||X||_F``.

    X is ``[d, d]``. A certificate replaces the SVD. The singular values of a subset S of the rows are at most
    those of X with the same index (Cauchy interlacing). All of S exceed the bound t if ``S S^T - t^2 I`` is
    positive definite, which a Cholesky factorisation tests in a twentieth of the time. If the test fails,
    nothing is known. The answer is then False, which costs an SVD. t is at least 1e-6 ||X||_F, which float64
    resolves in the product.
    """
    count = int(NEARLY_FULL * len(matrix)) + 1
    if count > len(matrix):
        return False
    subset = matrix[:count]
    bound = max(tolerance, 1e-6) * torch.linalg.vector_norm(matrix)
    product = subset @ subset.T
    product.diagonal().sub_(bound**2)
    return not torch.linalg.cholesky_ex(product).info.any()


def _truncate(U: Tensor | None, V: Tensor, strength: float, tolerance: float, max_rank: int | None):
    """``U V^T`` (``V^T`` without U), with singular values below ``tolerance`` times the largest cut off."""
    if U is None:
        left, values, right = torch.linalg.svd(V.T)
    else:  # [d, n] with n < d: only an [n, n] matrix needs an SVD
        (left, R), (right, S) = torch.linalg.qr(U), torch.linalg.qr(V)
        inner = torch.linalg.svd(R @ S.T)
        left, values, right = left @ inner.U, inner.S, inner.Vh @ right.T
    rank = int((values > tolerance * values[0]).sum())
    rank = min(rank, max_rank or rank)
    lost = (values[rank:].square().sum() / values.square().sum()).sqrt().item()
    edit = ContextEdit(strength * left[:, :rank] * values[:rank], right[:rank].T.contiguous())
    return edit, {"rank": rank, "truncation": lost}


def _no_edit(width: int) -> ContextEdit:
    empty = torch.zeros(width, 0, dtype=torch.float64)
    return ContextEdit(empty, empty.clone())
