"""Every concept has its own strength."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from solver_cases import CONCEPTS, GRADED, WIDE, WIDTH, Case, definite, random_rows
from trace_core.backbones.base import CONTEXT
from trace_core.closed_form import projection, solvers


@pytest.mark.parametrize("form", ["direct", "gram", "gram of many rows"])
def test_graded_projection_is_the_constrained_least_squares_solution(form):
    """min tr(dW G dW^T) subject to dW d_i = -s s_i W d_i: dW = -s W D diag(s_i) (D^T G^-1 D)^-1 D^T G^-1."""
    D, G, W = random_rows(9, 40, 5).T, definite(40, 6), random_rows(7, 40, 7)
    grades = torch.tensor([1.0, 0.5, 2.0, 0.1, 1.0, 1.0, 0.7, 1.5, 0.3], dtype=torch.float64)
    if form == "direct":
        edit, _ = projection(D.T, G, 0.7, energy=1.0, row_strengths=grades)
    elif form == "gram":
        edit, _ = solvers.projection_from_gram(D @ D.T, G, 0.7, 1.0, strength_weighted=(D * grades) @ D.T)
    else:  # the same rows five times, an fifth as heavy: as many as there are dimensions, so they are squared
        edit, _ = projection(
            D.T.repeat(5, 1) / 5**0.5, G, 0.7, energy=1 - 1e-15, row_strengths=grades.repeat(5)
        )
    inverse = torch.linalg.inv(G)
    dense = -0.7 * W @ (D * grades) @ torch.linalg.inv(D.T @ inverse @ D) @ D.T @ inverse
    assert (W @ edit.U @ edit.V.T - dense).norm() <= 1e-8 * dense.norm()


def test_every_concept_has_its_own_strength(fake):
    """||W'(c - g)|| = |1 - s_i (1 + eta)| ||W(c - g)|| for the rows of concept i, in every layer."""
    case = Case(fake, concepts=GRADED, width=WIDE, energy=1.0, eta=0.2)
    for concept in GRADED:
        D = Case(fake, concepts=[concept], width=WIDE).differences().T
        for _, weight, edited in case.edited():
            before = weight @ D
            error = (edited @ D - (1 - 1.2 * concept.strength) * before).norm(dim=0) / before.norm(dim=0)
            assert error.max() <= 1e-6


def test_strengths_are_the_same_from_many_rows(fake, monkeypatch):
    """From sums over rows, kept where there are too many of them."""
    direct = Case(fake, concepts=GRADED, energy=0.99).edits[CONTEXT]
    monkeypatch.setattr(solvers, "DIRECT_LIMIT", 0)
    case = Case(fake, concepts=GRADED, energy=0.99)
    assert not case.sums[CONTEXT].rows
    x = random_rows(5, WIDTH, 0)
    assert (case.edits[CONTEXT].map(x) - direct.map(x)).norm() <= 1e-8 * (direct.map(x) - x).norm()


@pytest.mark.parametrize("policy", ["projection", "uce", "mace"])
def test_one_strength_for_all_is_the_edit_times_it(fake, policy):
    """... and keeps no second sums."""
    half = [replace(c, strength=0.5) for c in CONCEPTS]
    graded, plain = Case(fake, policy, half), Case(fake, policy, CONCEPTS, strength=0.5)
    assert graded.sums[CONTEXT]._strength_weighted is None
    torch.testing.assert_close(
        graded.edits[CONTEXT].map(random_rows(5, WIDTH, 0)),
        plain.edits[CONTEXT].map(random_rows(5, WIDTH, 0)),
        rtol=1e-12,
        atol=1e-12,
    )
