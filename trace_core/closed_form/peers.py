"""Closed forms of other papers that the library's solvers do not cover, each as its paper or code has it.

Notation: ``C [d, n]`` rows of the concept, ``A [d, n]`` rows that take their place, ``F [d, k]`` rows that
stay, ``N = I - F F^+``, W ``[out, d]`` a layer's text columns.

Constants of the papers that depend on the size of CLIP's rows are carried over relative to the rows' energy,
see :data:`~trace_core.closed_form.policies.CLIP_ENERGY`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import TraceError
from . import solvers
from .adversarial import adversarial_map
from .edit import ContextEdit, LayerEdits
from .policies import CLIP_ENERGY, Policy
from .sums import RowSums

PROTECTED = 0.25  #: share of the dimensions that Double Projections protects
ROUNDING = 1e-6  #: smaller singular values, relative to the largest, are rounding
EXACT = 1e-10  #: the same for the change of a layer
COPIES = 10  #: SPEED's perturbed copies of a kept row
CENTRES = 3  #: SPEED's centres of the empty prompt's rows
#: Mean eigenvalue of ``W W^T`` of a layer as PyTorch initialises it: d rows of variance 1 / (3 d)
INITIAL = 1 / 3


@dataclass(frozen=True)
class Setting:
    """What a solver needs besides the sums.

    Attributes:
        strength: scales the edit.
        kind: kind of the first concept, by which papers choose their constants.
        gram: ``sum W^T W`` ``[d, d]`` over the stream's layers, computed on call.
        seed: of SPEED's perturbations.
    """

    strength: float
    kind: str
    gram: Callable[[], Tensor]
    seed: int = 0


def solve_peer(policy: Policy, sums: RowSums, setting: Setting) -> tuple[ContextEdit | LayerEdits, dict]:
    """The edit of a peer's policy, and the report of its solver.

    Raises:
        TraceError: if the concepts' strengths differ.
    """
    if sums.strengths_differ:
        raise TraceError(
            f"{policy.name} has one strength for all concepts; give all the same, or use projection"
        )
    values = {**policy.constants.get("object", {}), **policy.constants.get(setting.kind, {})}
    return SOLVERS[policy.solver](policy, sums, setting, values)


# ------------------------------------------------------------------------------------- Double Projections


def double(policy: Policy, sums: RowSums, setting: Setting, values: Mapping) -> tuple[ContextEdit, dict]:
    """Double Projections (arXiv 2604.10032): ``dW = W (A - C) X^+``, ``X = N C``.

    For one row this is the paper's ``W (g - c) x^T U2^T / ||x||^2``. F holds the leading directions of the
    kept rows. Without an anchor, A is the part of C in the span of F, the paper's projected anchor.
    """
    C, A = _columns(sums)
    F = _leading_directions(sums.keep.value(), int(PROTECTED * len(C)))
    anchored = A if values.get("anchored") else F @ (F.T @ C)
    X = C - F @ (F.T @ C)
    Q, size, right = torch.linalg.svd(X, full_matrices=False)
    rank = int((size > ROUNDING * C.norm(dim=0).max()).sum())
    U = (anchored - C) @ right[:rank].T / size[:rank]
    edit = ContextEdit(setting.strength * U, Q[:, :rank])
    return edit, {"rank": rank, "outside": (X.norm() / C.norm()).item()}


def _leading_directions(gram: Tensor, count: int) -> Tensor:
    """Orthonormal leading eigenvectors ``[d, k]`` of a Gram matrix, at most ``count``."""
    energies, vectors = torch.linalg.eigh(gram)
    found = min(count, int((energies > ROUNDING * energies[-1]).sum()))
    return vectors[:, len(vectors) - found :]


# --------------------------------------------------------------------------------------------------- SPEED


def speed(policy: Policy, sums: RowSums, setting: Setting, values: Mapping) -> tuple[LayerEdits, dict]:
    """SPEED (arXiv 2503.07392), as in its code: a layer's own choice of what it keeps.

    ``dW = W (A - C) C^T / n P [I - Q K (K^T P Q K + beta I)^-1 K^T P] Q``, ``Q = (C C^T P / n + rho I)^-1``.
    P projects onto the directions of the kept rows' mean Gram below tau. K holds the empty prompt's rows. A
    layer keeps the rows that the edit without P would move more than average, and perturbed copies of
    them. Rows are weighted, so sums stand for means.
    """
    C, A = _columns(sums)
    scale = sums.energy / CLIP_ENERGY
    rho, tau, beta = (values[k] * scale for k in ("rho", "tau", "beta"))
    kept, K, eye = torch.cat(sums.kept).double(), _empty_columns(sums), torch.eye(len(C), dtype=C.dtype)
    moment, cross = C @ C.T, (A - C) @ C.T

    def layer(W: Tensor) -> tuple[Tensor, Tensor]:
        rows = kept
        if values["filtered"]:
            rows = _most_moved(W, kept, cross @ torch.linalg.inv(moment + eye * scale))
            rows = torch.cat([rows, _perturbed(W, rows, setting.seed)])
        energies, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
        free = vectors[:, energies < tau]
        P = free @ free.T
        Q = torch.linalg.inv(moment @ P + rho * eye)
        inner = torch.linalg.pinv(
            K.T @ P @ Q @ K + beta * torch.eye(K.shape[1], dtype=C.dtype), rtol=ROUNDING
        )
        change = cross @ P @ (eye - Q @ K @ inner @ K.T @ P) @ Q
        left, right = _factors(change)
        return setting.strength * (W @ left), right

    return LayerEdits(layer), {"kept_rows": len(kept)}


def _most_moved(W: Tensor, rows: Tensor, change: Tensor) -> Tensor:
    """SPEED's influence-based filter: rows ``r`` with ``||W change r||`` above the mean."""
    moved = (rows @ change.T @ W.T).norm(dim=1)
    return rows[moved >= moved.mean()]


def _perturbed(W: Tensor, rows: Tensor, seed: int) -> Tensor:
    """SPEED's augmentation: copies ``r + v v^T e`` along the direction v that the layer reads least."""
    least = torch.linalg.svd(W, full_matrices=True).Vh[-1]
    noise = torch.randn(
        COPIES * len(rows), len(least), generator=torch.Generator().manual_seed(seed), dtype=W.dtype
    )
    return rows.repeat(COPIES, 1) + (noise @ least)[:, None] * least


def _empty_columns(sums: RowSums) -> Tensor:
    """The start token and :data:`CENTRES` centres of the empty prompt's other rows, ``[d, k]`` (k-means)."""
    starts, rest = sums.constrained, sums.empty
    fixed = [] if starts is None else [starts.double()]
    if rest is not None and len(rest):
        fixed.append(k_means(rest.double(), CENTRES))
    width = sums.keep.width
    return torch.cat(fixed).T if fixed else torch.zeros(width, 0, dtype=torch.float64)


def k_means(rows: Tensor, count: int, turns: int = 20) -> Tensor:
    """Centres ``[k, d]`` of rows ``[n, d]``, k at most ``count``, started at evenly spaced rows (Lloyd)."""
    centres = rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).long()]
    for _ in range(turns):
        nearest = torch.cdist(rows, centres).argmin(1)
        centres = torch.stack(
            [
                rows[nearest == i].mean(0) if (nearest == i).any() else centre
                for i, centre in enumerate(centres)
            ]
        )
    return centres


# ----------------------------------------------------------------------------------------------------- OCE


def oce(policy: Policy, sums: RowSums, setting: Setting, values: Mapping) -> tuple[LayerEdits, dict]:
    """OCE (arXiv 2605.28902), as in its code: ``W' = R W`` with the orthogonal ``R = U V^T`` of T's SVD.

    ``T = -e E E^T (I - E* E*^T) + a sum W k k^T W^T + b W C_g W^T + l W W^T`` with E and E* orthonormal bases
    of W C and W A, k the kept things' last tokens, C_g the mean moment of all kept rows. The first term is
    scaled like the others, by the energy of the rows and of the layer.
    """
    C, A = _columns(sums)
    scale = sums.energy / CLIP_ENERGY
    kept, moment = torch.cat(sums.kept).double().T, sums.keep.value() / max(sums.weight, 1e-300)
    K = kept @ kept.T

    def layer(W: Tensor) -> tuple[Tensor, Tensor]:
        E, guides = orthonormal(W @ C), orthonormal(W @ A)
        own = W @ W.T
        size = own.diagonal().mean() / INITIAL
        erased = E @ (E.T - (E.T @ guides) @ guides.T)
        T = -values["e"] * scale * size * erased + values["l"] * scale * own
        T = T + values["a"] * (W @ K @ W.T) + values["b"] * (W @ moment @ W.T)
        U, _, Vh = torch.linalg.svd(T)
        if torch.linalg.det(U @ Vh) < 0:
            U[:, -1] = -U[:, -1]  # a rotation, not a reflection
        left, right = _factors((U @ Vh - torch.eye(len(T), dtype=T.dtype)) @ W)
        return setting.strength * left, right

    return LayerEdits(layer), {}


def orthonormal(columns: Tensor) -> Tensor:
    """Orthonormal basis ``[out, k]`` of columns ``[out, n]``."""
    U, values, _ = torch.linalg.svd(columns, full_matrices=False)
    return U[:, values > ROUNDING * values[0].clamp_min(1e-300)]


# ---------------------------------------------------------------------------------------------------- RECE


def rece(policy: Policy, sums: RowSums, setting: Setting, values: Mapping) -> tuple[ContextEdit, dict]:
    """RECE (arXiv 2407.12383): UCE's edit, then rounds that erase the rows which bring the concept back.

    A round finds ``c' = A c`` for all rows of the concept's prompt (eq. 6, see
    :func:`~trace_core.closed_form.adversarial.adversarial_map`) and applies UCE's edit from c' to the guide's
    row in the same place, on top of the edits so far.
    """
    G = solvers.regularise(sums.keep.value(), None, policy.relative * sums.energy)
    edit, info = solvers.ridge(sums.targets, None, G + sums.erase.value(), setting.strength)
    pairs = sums.whole or [(c, g) for c, g, _ in sums.pairs]  # a pooled vector is one row
    C = torch.cat([c for c, _ in pairs]).double()
    A = torch.cat([g for _, g in pairs]).double()
    G = solvers.regularise(values["keep"] * sums.keep.value(), None, values["lambda"] * sums.energy)
    gram = setting.gram()
    for _ in range(int(values["rounds"])):
        adversarial = C @ adversarial_map(edit, gram, values["reach"]).T
        more, _ = solvers.ridge(
            A - adversarial, adversarial, G + adversarial.T @ adversarial, setting.strength
        )
        edit = edit.then(more)
    return edit, {**info, "rank": edit.rank, "rounds": int(values["rounds"])}


# --------------------------------------------------------------------------------------------------- common


def _columns(sums: RowSums) -> tuple[Tensor, Tensor]:
    """C and A, ``[d, n]`` float64, each column times the square root of its weight. Weights sum to 1."""
    total = sum(w.sum() for _, _, w in sums.pairs)
    roots = [(w / total).sqrt()[:, None] for _, _, w in sums.pairs]
    C = torch.cat([c.double() * r for (c, _, _), r in zip(sums.pairs, roots)])
    A = torch.cat([g.double() * r for (_, g, _), r in zip(sums.pairs, roots)])
    return C.T, A.T


def _factors(change: Tensor) -> tuple[Tensor, Tensor]:
    """``change = left right`` by an SVD, without singular values that are rounding."""
    U, values, Vh = torch.linalg.svd(change, full_matrices=False)
    rank = int((values > EXACT * values[0].clamp_min(1e-300)).sum())
    return U[:, :rank] * values[:rank], Vh[:rank]


SOLVERS = {"double": double, "speed": speed, "oce": oce, "rece": rece}
