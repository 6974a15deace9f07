"""The projection's guarantees in float64: erased to the last row, and least change of what is kept."""

from __future__ import annotations

import pytest
import torch

from solver_cases import CONCEPTS, KEEP, WIDE, WIDTH, Case, definite, random_rows
from trace_core.backbones.base import CONTEXT, POOLED
from trace_core.closed_form import POLICIES, projection, ridge, solvers
from trace_core.errors import ConceptError
from trace_core.text.concepts import Concept


@pytest.mark.parametrize("towers", [("l",), ("l", "t5xxl")])
@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0, -1.0, 1.7])
def test_full_rank_erases_every_row_in_every_layer(fake, strength, towers):
    """||W'(c - g)|| = |1 - s| ||W(c - g)||, to 1e-6 of ||W(c - g)||."""
    case = Case(fake, concepts=CONCEPTS, width=WIDE, towers=towers, energy=1.0, strength=strength, alpha=1e-3)
    D = case.differences()
    assert len(D) > 200, "too few rows to show anything"
    assert case.edits[CONTEXT].rank < WIDE, "an edit of full rank would erase everything"
    for _, weight, edited in case.edited():
        before, after = weight @ D.T, edited @ D.T
        error = (after - (1 - strength) * before).norm(dim=0) / before.norm(dim=0)
        assert error.max() <= 1e-6


def test_full_rank_erases_the_pooled_vector(fake):
    """... and leaves the columns behind it, which are no text, as they are."""
    case = Case(fake, concepts=CONCEPTS, towers=("l", "t5xxl"), pooled=128, energy=1.0)
    layer, weight, edited = list(case.edited())[-1]
    assert layer.stream == POOLED
    assert torch.equal(edited[:, 128:], weight[:, 128:])
    for concept in CONCEPTS:
        c, g = (
            case.encoder.encode(t).pooled.double()
            for t in (f"a {concept.target}", f"a {concept.anchor}".strip())
        )
        assert ((edited - weight)[:, :128] @ (c - g) + weight[:, :128] @ (c - g)).norm() <= 1e-6 * (
            weight[:, :128] @ (c - g)
        ).norm()


@pytest.mark.parametrize("smallest", [0, -3])
def test_full_rank_on_badly_scaled_rows(smallest):
    """Rows of very different length, near-duplicates of the longest and of the shortest, keep matrix of
    condition 1e8.
    """
    D = random_rows(20, 64, 0) * torch.logspace(0, smallest, 20, dtype=torch.float64)[:, None]
    near = [D[:5] + 1e-7 * random_rows(5, 64, 1), D[-5:] + 1e-5 * 10**smallest * random_rows(5, 64, 2)]
    D = torch.cat([D, D[:10] * 0.3, *near])
    edit, info = projection(D, definite(64, 2, 1e8))
    left = (D + D @ edit.V @ edit.U.T).norm(dim=1) / D.norm(dim=1)
    assert left.max() <= 1e-6
    assert 20 <= info["rank"] <= 30


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("from_gram", [False, True])
def test_energy_threshold_leaves_what_is_reported(fake, energy, from_gram, monkeypatch):
    """The share of ||P L^-1 D||^2 left, computed from the edit alone, is ``energy_left``, and one rank less
    leaves more.

    P takes off the direction of the start token, which must not change.
    """
    if from_gram:
        monkeypatch.setattr(solvers, "DIRECT_LIMIT", 0)
    case = Case(fake, concepts=CONCEPTS, energy=energy)
    edit, info = case.solved[CONTEXT]
    part = case.sums[CONTEXT]
    assert bool(part.rows) is not from_gram
    G = solvers.regularise(part.keep.value(), case.policy.alpha, trace=part.trace)
    weighted = torch.stack([(c - g) * w**0.5 for c, g, w in case.pairs()]).T

    def whiten(columns):
        return torch.linalg.solve_triangular(torch.linalg.cholesky(G), columns, upper=False)

    start = whiten(case.encoder.encode("").embeddings[:1].double().T)
    off = torch.eye(len(G), dtype=torch.float64) - start @ start.T / start.square().sum()

    def left(U, V):
        whitened, base = off @ whiten(weighted + U @ (V.T @ weighted)), off @ whiten(weighted)
        return (whitened.square().sum() / base.square().sum()).item()

    assert left(edit.U, edit.V) == pytest.approx(info["energy_left"], abs=1e-9)
    assert info["energy_left"] <= 1 - energy + 1e-12
    assert edit.rank == info["rank"] < WIDTH
    assert left(edit.U[:, :-1], edit.V[:, :-1]) > 1 - energy


def test_max_rank_is_obeyed_and_reported(fake):
    case = Case(fake, concepts=CONCEPTS, energy=1.0, max_rank=3)
    edit, info = case.solved[CONTEXT]
    assert edit.rank == info["rank"] == 3
    assert 0.05 < info["energy_left"] < 1


@pytest.mark.parametrize("energy", [0.9, 1.0])
def test_gram_form_is_the_direct_form(energy):
    """Few directions and a mild keep matrix: both forms find the same edit."""
    D, G = random_rows(12, 48, 3), definite(48, 4, 1e3)
    direct, gram = projection(D, G, 0.8, energy), solvers.projection_from_gram(D.T @ D, G, 0.8, energy)
    assert direct[1]["rank"] == gram[1]["rank"]
    assert direct[1]["energy_left"] == pytest.approx(gram[1]["energy_left"], abs=1e-9)
    assert (direct[0].U @ direct[0].V.T - gram[0].U @ gram[0].V.T).norm() <= 1e-7 * (
        direct[0].U @ direct[0].V.T
    ).norm()


def test_projection_is_the_constrained_least_squares_solution():
    """min tr(dW G dW^T) subject to dW D = -s W D, by its dense formula: dW = -s W D (D^T G^-1 D)^-1 D^T
    G^-1.
    """
    D, G, W = random_rows(9, 40, 5).T, definite(40, 6), random_rows(7, 40, 7)
    edit, _ = projection(D.T, G, 0.7, energy=1.0)
    inverse = torch.linalg.inv(G)
    dense = -0.7 * W @ D @ torch.linalg.inv(D.T @ inverse @ D) @ D.T @ inverse
    assert (W @ edit.U @ edit.V.T - dense).norm() <= 1e-8 * dense.norm()


def test_keep_set_changes_less_than_by_the_orthogonal_projection(fake):
    """The point of the G norm: on the keep rows it beats W(I - D D^+), which erases the same rows as
    exactly.
    """
    case = Case(fake, width=WIDE, energy=1.0)
    D = case.differences()
    basis = torch.linalg.svd(D, full_matrices=False)
    Q = basis.Vh[basis.S > 1e-9 * basis.S[0]]
    keep = case.sums[CONTEXT].keep.value()
    for _, weight, edited in case.edited():
        ours, orthogonal = edited - weight, -weight @ Q.T @ Q
        assert ((weight + orthogonal) @ D.T).norm() <= 1e-6 * (weight @ D.T).norm()
        damage = [((change @ keep) * change).sum().sqrt().item() for change in (ours, orthogonal)]
        assert damage[0] < 0.9 * damage[1]


def test_more_keep_weight_changes_the_keep_set_less(fake):
    changes = []
    for weight in (0.01, 1.0, 100.0):
        case = Case(fake, energy=1.0, max_rank=20, keep_weight=weight)
        rows = torch.cat([case.encoder.encode(k, k).embeddings for k in KEEP]).double()
        changes.append((case.edits[CONTEXT].map(rows) - rows).norm().item())
    assert changes[2] < changes[1] < changes[0]


# ------------------------------------------------------------------------------------- nothing to do


@pytest.mark.parametrize("policy", POLICIES)
def test_concept_equal_to_its_anchor_is_refused(fake, policy):
    """The parser refuses it; built by hand it must not give an edit either."""
    with pytest.raises(
        ConceptError, match="the text encoder gives the same rows for 'cat -> cat' and its anchor"
    ):
        Case(fake, policy, concepts=[Concept("cat", "cat")])


@pytest.mark.parametrize("policy", POLICIES)
def test_anchor_that_differs_only_for_people_is_refused(fake, policy):
    """Another spelling, the same tokens."""
    with pytest.raises(
        ConceptError, match="the text encoder gives the same rows for .* and its anchor; name another anchor"
    ):
        Case(fake, policy, concepts=[Concept("cat", "CAT 🐈")])


@pytest.mark.parametrize("solver", ["projection", "gram", "ridge"])
def test_no_difference_gives_exactly_no_change(solver):
    G, zero = definite(16), torch.zeros(5, 16, dtype=torch.float64)
    if solver == "projection":
        edit, info = projection(zero, G)
    elif solver == "gram":
        edit, info = solvers.projection_from_gram(zero.T @ zero, G)
    else:
        edit, info = ridge(zero, random_rows(5, 16, 0), G)
    assert info["rank"] == edit.rank == 0
    rows = random_rows(3, 16, 1)
    assert torch.equal(edit.map(rows), rows)


@pytest.mark.parametrize("policy", POLICIES)
def test_strength_zero_changes_nothing(fake, policy):
    for _, weight, edited in Case(fake, policy, strength=0.0).edited():
        assert torch.equal(weight, edited)


def test_overshoot_maps_the_concept_beyond_its_counterpart(fake):
    """W'(c - g) = -eta W (c - g) at strength 1."""
    case = Case(fake, concepts=CONCEPTS, width=WIDE, energy=1.0, eta=0.5)
    for _, weight, edited in case.edited():
        D = case.differences().T
        assert (edited @ D + 0.5 * weight @ D).norm() <= 1e-6 * (weight @ D).norm()
