"""What of a concept no text row can bring back."""

from __future__ import annotations

import pytest
import torch

from trace_core.closed_form.certificate import certificate, removed_directions
from trace_core.closed_form.edit import ContextEdit
from trace_core.closed_form.solvers import projection

WIDTH, OUT, ROWS = 24, 20, 4


@pytest.fixture(params=[0, 1])
def case(request):
    draw = torch.Generator().manual_seed(request.param)

    def matrix(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    keep = matrix(60, WIDTH)
    return {
        "weights": [matrix(OUT, WIDTH) for _ in range(3)],
        "rows": matrix(ROWS, WIDTH),
        "G": keep.T @ keep + torch.eye(WIDTH),
        "matrix": matrix,
    }


def best_residual(edit, weights, rows) -> float:
    """By dense least squares over every row at once: min ||W' d' - W d|| for each d."""
    edited = torch.cat([w + w @ edit.U @ edit.V.T for w in weights])
    wanted = torch.cat(weights) @ rows.T
    found = torch.linalg.lstsq(edited, wanted, driver="gelsd").solution
    return ((edited @ found - wanted).norm() / wanted.norm()).item()


def gram(weights):
    return sum(w.T @ w for w in weights)


def test_it_is_the_smallest_residual_of_any_row(case):
    edit, _ = projection(case["rows"], case["G"])
    found = certificate(edit, gram(case["weights"]), case["rows"].T @ case["rows"])
    assert found == pytest.approx(best_residual(edit, case["weights"], case["rows"]), rel=1e-4)
    assert found > 0.01 and removed_directions(edit).shape[1] == ROWS


@pytest.mark.parametrize("strength", [0.5, 1.5])
def test_a_weaker_or_stronger_edit_can_be_undone(case, strength):
    edit, _ = projection(case["rows"], case["G"], strength)
    assert certificate(edit, gram(case["weights"]), case["rows"].T @ case["rows"]) == 0
    assert best_residual(edit, case["weights"], case["rows"]) < 1e-8


def test_what_is_moved_to_something_else_can_be_moved_back(case):
    moved = case["rows"] - case["matrix"](ROWS, WIDTH)
    edit, _ = projection(case["rows"], case["G"], displacements=moved)
    assert certificate(edit, gram(case["weights"]), case["rows"].T @ case["rows"]) == 0
    assert best_residual(edit, case["weights"], case["rows"]) < 1e-8


def test_an_edit_of_full_rank_removes_nothing(case):
    edit = ContextEdit(torch.eye(WIDTH, dtype=torch.float64), 0.1 * case["matrix"](WIDTH, WIDTH))
    assert certificate(edit, gram(case["weights"]), torch.eye(WIDTH, dtype=torch.float64)) == 0
