"""What the hardened edit removes is out of reach of every text row."""

from __future__ import annotations

import pytest
import torch

from solver_cases import CONCEPTS, WIDE, WIDTH, Case, definite, random_rows
from trace_core.backbones.base import CONTEXT
from trace_core.closed_form.certificate import certificate
from trace_core.closed_form.edit import ContextEdit
from trace_core.closed_form.hardened import LEVELS, harden, hardened, keep_change
from trace_core.errors import TraceError

D, OUT = 24, 20


@pytest.fixture
def sums():
    weights = [random_rows(OUT, D, seed) for seed in range(3)]
    rows = random_rows(4, D, 9) * torch.tensor([[5.0], [1.0], [0.3], [0.1]])
    return {
        "weights": weights,
        "difference": rows.T @ rows,
        "gram": sum(w.T @ w for w in weights),
        "G": definite(D, 3),
        "rows": rows,
    }


def args(sums):
    return sums["difference"], sums["gram"], sums["G"]


def test_it_is_the_orthogonal_projection_of_the_stacked_outputs(sums):
    """All layers as one matrix S: ``S' = (I - E E^T) S`` on the concept, E the leading outputs of S D."""
    edit, info = hardened(*args(sums), energy=0.5)
    S = torch.cat(sums["weights"])
    outputs = S @ sums["rows"].T
    U, values, _ = torch.linalg.svd(outputs, full_matrices=False)
    rank = info["rank"]
    assert info["removed"] == pytest.approx((values[:rank].square().sum() / values.square().sum()).item())
    changed = S @ (torch.eye(D) + edit.U @ edit.V.T)
    E = U[:, :rank]
    assert torch.allclose(changed, S - E @ (E.T @ S), atol=1e-9)


@pytest.mark.parametrize("level", LEVELS)
def test_no_row_reaches_what_is_removed(sums, level):
    edit, info = hardened(*args(sums), energy=LEVELS[level])
    share = certificate(edit, sums["gram"], sums["difference"])
    assert share == pytest.approx(info["removed"] ** 0.5, abs=1e-3)
    assert info["removed"] >= LEVELS[level]


def test_towards_the_row_side_the_keep_set_changes_less_and_more_is_in_reach(sums):
    found = []
    for t in (0.0, 0.1, 1.0):
        edit, _ = hardened(*args(sums), energy=0.5, output_side=t)
        reach = certificate(edit, sums["gram"], sums["difference"])
        found.append((keep_change(edit, sums["gram"], sums["G"]), reach))
    assert found[0][0] < found[1][0] < found[2][0] and found[0][1] < found[1][1] < found[2][1]


def test_constrained_rows_stay_exactly(sums):
    fixed = random_rows(3, D, 11)
    edit, _ = hardened(*args(sums), energy=0.8, constrained=fixed)
    assert (fixed @ edit.V).norm() <= 1e-9 * fixed.norm() * edit.V.norm()


def test_strength_scales_and_never_overshoots(sums):
    plain = ContextEdit(torch.zeros(D, 0, dtype=torch.float64), torch.zeros(D, 0, dtype=torch.float64))
    half, _ = harden(plain, *args(sums), 1, strength=0.5)
    whole, price = harden(plain, *args(sums), 1)
    over, _ = harden(plain, *args(sums), 1, strength=1.5)
    none, _ = harden(plain, *args(sums), 1, strength=-1.0)
    assert torch.allclose(2 * half.U, whole.U) and torch.equal(over.U, whole.U) and not none.U.any()
    assert price["keep_change"]["plain"] == 0 < price["keep_change"]["robust"]
    assert price["directions"] == whole.rank and price["seconds"] >= 0


def test_the_concept_becomes_its_substitute_and_what_is_removed_stays_removed(fake):
    """The joint edit maps the concept where the plain edit does, up to what hardening removes of that."""
    case = Case(fake, concepts=CONCEPTS, width=WIDE)
    hard = Case(fake, concepts=CONCEPTS, width=WIDE, robust=2)
    H, difference = case.gram(CONTEXT), case.sums[CONTEXT].difference()
    plain, joint = case.edits[CONTEXT], hard.edits[CONTEXT]
    assert certificate(joint, H, difference) > 0.8 > certificate(plain, H, difference)
    fixed = torch.cat([case.sums[CONTEXT].constrained, case.sums[CONTEXT].centre])
    first, _ = hardened(difference, H, case.sums[CONTEXT].keep.value(), 0.8, constrained=fixed)
    rows = torch.cat([c[None] for c, _, _ in case.pairs()])
    assert torch.allclose(joint.map(rows), first.map(plain.map(rows)), atol=1e-6 * rows.abs().max())
    pairs = [(c, g, w) for c, g, w in case.pairs() if (c - g).norm() > 1e-5 * c.norm()]
    centre = sum(w * g for _, g, w in pairs) / sum(w for _, _, w in pairs)
    assert torch.allclose(first.map(centre[None])[0], centre, atol=1e-9 * centre.norm())
    assert hard.solved[CONTEXT][1]["robust"]["keep_change"]["robust"] > 0


@pytest.mark.parametrize(("options", "message"), [({"robust": 4}, "robust is 4"), ({"robust": -1}, "-1")])
def test_levels_are_checked(fake, options, message):
    with pytest.raises(TraceError, match=message):
        Case(fake, width=WIDTH, **options)


def test_other_policies_cannot_be_hardened(fake):
    with pytest.raises(TraceError, match="policy uce cannot be hardened"):
        Case(fake, "uce", robust=1)
