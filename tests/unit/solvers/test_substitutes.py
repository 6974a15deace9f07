"""A substitute takes the concept's place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from solver_cases import CONTEXTS, KEEP, WIDE, Case
from trace_core.backbones.base import CONTEXT, POOLED
from trace_core.closed_form import solvers
from trace_core.closed_form.accumulate import accumulate
from trace_core.closed_form.export import export
from trace_core.closed_form.policies import erased_pairs
from trace_core.closed_form.solve import solve
from trace_core.text.concepts import Concept


def instead_rows(case, other: str) -> torch.Tensor:
    """Rows of the same prompts with something else in the concept's place, for every row of
    :meth:`Case.differences`.
    """
    (concept,) = case.concepts
    out = []
    mine, others = (
        erased_pairs(case.policy, c, "object", case.encoder, CONTEXTS)
        for c in (concept, replace(concept, anchor=other))
    )
    for (pairs, weights, *_), (aims, *_) in zip(mine, others):
        rows = zip(pairs.erase.double(), pairs.want.double(), aims.want.double(), weights.tolist())
        out += [o for c, g, o, w in rows if w > 0 and (c - g).norm() > 1e-6 * c.norm()]
    return torch.stack(out)


@pytest.mark.parametrize(("grade", "strength"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.5)])
def test_a_substitute_takes_the_concepts_place_in_every_layer(fake, grade, strength):
    """``W'(c - g) = W(c - g) - s W(c - o)``, though only ``c - g`` is read."""
    concept = Concept("cat", strength=grade)
    case = Case(fake, concepts=[concept], width=WIDE, energy=1.0, strength=strength)
    plain = case.edits[CONTEXT]
    config, others = case.config, {"cat": "dog"}
    sums = accumulate(
        case.backbone, case.encoder, case.policy, [concept], KEEP, config, lambda *_: None, others
    )
    edit, info = solve(case.policy, sums[CONTEXT], config)
    D, instead = case.differences(), instead_rows(case, "dog")
    C = torch.stack([c for c, g, _ in case.pairs() if (c - g).norm() > 1e-6 * c.norm()])
    assert info["rank"] == plain.rank and torch.allclose(
        edit.V @ edit.V.T, plain.V @ plain.V.T, atol=1e-6 * plain.V.norm() ** 2
    )
    wanted = D - grade * strength * (C - instead)
    error = (edit.map(D) - wanted).norm(dim=1) / D.norm(dim=1)
    assert error.max() < 1e-5
    assert (plain.map(D) - wanted).norm() > 0.1 * D.norm()
    M, across = sums[CONTEXT].displaced()
    assert M.trace() > 0 and not torch.allclose(M, across)


def test_a_substitutes_edit_from_the_rows_and_from_their_sums_is_the_same(fake, monkeypatch):
    concepts, edits, moved = [Concept("cat", strength=0.5), Concept("red house", "tree")], [], []
    for limit in (4096, 10):
        monkeypatch.setattr(solvers, "DIRECT_LIMIT", limit)
        case = Case(fake, concepts=concepts, energy=0.97)
        sums = accumulate(
            case.backbone,
            case.encoder,
            case.policy,
            concepts,
            KEEP,
            case.config,
            lambda *_: None,
            {"cat": "dog"},
        )[CONTEXT]
        assert bool(sums.rows) == (limit == 4096)
        edit, _ = solve(case.policy, sums, case.config)
        edits.append(edit.U @ edit.V.T)
        moved.append(torch.stack(sums.displaced()))
    assert (edits[0] - edits[1]).norm() < 1e-6 * edits[0].norm()
    assert (moved[0] - moved[1]).norm() < 1e-9 * moved[0].norm()


def test_concepts_without_a_substitute_move_as_before_beside_one_that_has(fake):
    both = [Concept("cat"), Concept("red house", "tree")]
    case = Case(fake, concepts=both, width=WIDE, energy=1.0)
    sums = accumulate(
        case.backbone, case.encoder, case.policy, both, KEEP, case.config, lambda *_: None, {"cat": "dog"}
    )
    edit, _ = solve(case.policy, sums[CONTEXT], case.config)
    alone = Case(fake, concepts=both[1:], width=WIDE, energy=1.0)
    D = alone.differences()
    assert (edit.map(D)).norm(dim=1).max() < 1e-4 * D.norm(dim=1).max()


def test_the_residual_is_measured_against_the_substitute(fake):
    concept = [Concept("cat")]
    case = Case(fake, concepts=concept, width=WIDE, energy=1.0)
    sums = accumulate(
        case.backbone, case.encoder, case.policy, concept, KEEP, case.config, lambda *_: None, {"cat": "dog"}
    )
    right, _ = solve(case.policy, sums[CONTEXT], case.config)
    for edit, low in ((right, True), (case.edits[CONTEXT], False)):
        _, measured, _ = export(case.backbone, {CONTEXT: edit}, {CONTEXT: sums[CONTEXT]})
        assert all((layer["residual"] < 1e-3) == low for layer in measured.values())
    assert all(layer["residual"] > 0.1 for layer in measured.values())


def test_the_pooled_vector_gives_way_to_the_substitutes(fake):
    concept = [Concept("cat")]
    case = Case(fake, concepts=concept, towers=("l", "t5xxl"), pooled=128, energy=1.0)
    sums = accumulate(
        case.backbone, case.encoder, case.policy, concept, KEEP, case.config, lambda *_: None, {"cat": "dog"}
    )
    edit, _ = solve(case.policy, sums[POOLED], case.config)
    c, g, o = (
        case.encoder.encode(t).pooled.double()[None]
        for t in ("a photo of a cat", "a photo of a", "a photo of a dog")
    )
    assert (edit.map(c - g) - (o - g)).norm() < 1e-5 * (c - g).norm()
