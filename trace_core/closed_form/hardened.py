"""Erasure against attacks on the text: remove the directions in which the network reads a concept.

A plain projection reads the directions that tell the concept from everything kept. They carry little of what
layers do with it, so other rows reach the same output. Here the directions are those with the most output.
They are read in the metric of the output, ``H = sum W^T W``, and what is removed is out of reach of every row
(see :mod:`~trace_core.closed_form.certificate`). The keep set pays for it.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from .edit import ContextEdit
from .solvers import cholesky

#: level -> share of the concept's output energy whose directions are removed. On demo-sd, one direction has
#: 60 to 90 % of it.
LEVELS = {1: 0.5, 2: 0.8, 3: 0.9}
RIDGE = 1e-9  #: relative regulariser of H, which is singular if the layers have few outputs


def harden(
    edit: ContextEdit,
    difference: Tensor,
    gram: Tensor,
    G: Tensor,
    level: int,
    strength: float = 1.0,
    constrained: Tensor | None = None,
) -> tuple[ContextEdit, dict]:
    """An edit with a hardened one behind it, ``(I + U1 V1^T)(I + U V^T)``.

    Rows pass through ``edit`` first: the concept becomes its substitute. What any row still has of the
    concept is then removed.

    Args:
        edit: the plain edit.
        difference, gram, G, constrained: as for :func:`hardened`.
        level: 1 to 3, see :data:`LEVELS`.
        strength: of the edit; removing more than everything would bring the concept back, so 0 to 1.

    Returns:
        the joint edit, and the price: ``directions`` removed, their ``share`` of the concept's output, the
        ``keep_change`` of the plain and of the joint edit, and ``seconds``.
    """
    begin = time.perf_counter()
    first, found = hardened(difference, gram, G, LEVELS[level], max(0.0, min(strength, 1.0)), constrained)
    joint = first.then(edit)
    change = [keep_change(e, gram, G) for e in (edit, joint)]
    return joint, {
        "directions": found["rank"],
        "share": found["removed"],
        "keep_change": {"plain": change[0], "robust": change[1]},
        "seconds": time.perf_counter() - begin,
    }


def hardened(
    difference: Tensor,
    gram: Tensor,
    G: Tensor,
    energy: float,
    strength: float = 1.0,
    constrained: Tensor | None = None,
    output_side: float = 1.0,
) -> tuple[ContextEdit, dict]:
    """``dW = -s W X (X^T M X)^-1 X^T M``: X the concept's directions with the most output energy.

    ``M = (1 - t) G^-1 + t H``, both scaled to a mean eigenvalue of 1, without its part along the constrained
    rows. X holds the leading left singular vectors of D in the metric of H. At t = 0 the edit changes the
    keep set least, at 1 what is removed is farthest out of reach.

    Args:
        difference: ``D D^T`` ``[d, d]`` of the concept's weighted difference rows.
        gram: ``H = sum W^T W`` ``[d, d]`` over the layers.
        G: the keep matrix with its regulariser, ``[d, d]``.
        energy: share of ``tr(H D D^T)`` to remove.
        strength: s.
        constrained: rows that must not change at all, ``[k, d]``.
        output_side: t.

    Returns:
        the edit, and ``rank``, ``removed``: the share of the output energy along X.
    """
    L = cholesky(gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype))
    energies, vectors = torch.linalg.eigh(L.T @ difference @ L)
    shares = energies.flip(0).clamp_min(0).cumsum(0) / energies.clamp_min(0).sum().clamp_min(1e-300)
    rank = int((shares < energy).sum()) + 1
    X = difference @ (L @ vectors.flip(1)[:, :rank])
    X = X / X.norm(dim=0)
    M = output_side * gram / gram.diagonal().mean()
    if output_side < 1:
        inverse = torch.cholesky_inverse(cholesky(G))
        M = M + (1 - output_side) * inverse / inverse.diagonal().mean()
    read = M @ X
    if constrained is not None and len(constrained):
        F = constrained.double().T
        read = read - M @ F @ torch.linalg.solve(F.T @ M @ F, F.T @ read)
    V = read @ torch.linalg.inv(X.T @ read)
    return ContextEdit(-strength * X, V), {"rank": rank, "removed": shares[rank - 1].item()}


def keep_change(edit: ContextEdit, gram: Tensor, keep: Tensor) -> float:
    """``||dW P|| / ||W P||`` over all layers, with ``keep = P P^T`` ``[d, d]`` and ``gram = sum W^T W``."""
    inner = ((edit.U.T @ gram @ edit.U) * (edit.V.T @ keep @ edit.V)).sum()
    return (inner.clamp_min(0) / (gram * keep).sum()).sqrt().item()
