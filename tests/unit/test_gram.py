"""Streaming sums: what is added for a prompt again, folding in blocks and the order of rows change nothing
but rounding.
"""

from __future__ import annotations

import pytest
import torch

from trace_core.backbones.numerics import is_finite
from trace_core.closed_form import solvers
from trace_core.closed_form.gram import Cross, Gram
from trace_core.closed_form.sums import RowSums

D = 40


def prompts(n: int, seed: int = 0, dtype=torch.float32) -> list[torch.Tensor]:
    """``n`` prompts of 9 rows each: a start row with giant numbers, two shared rows, six of their own."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(5, D, generator=generator, dtype=dtype)
    shared[0, 3] = 30.0
    out = []
    for i in range(n):
        own = 0.1 * torch.randn(6, D, generator=generator, dtype=dtype) + shared[4]
        out.append(torch.cat([shared[:1], shared[1 + i % 2 : 3 + i % 2], own]))
    return out


def weights_of(rows: list[torch.Tensor]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(len(r), generator=generator, dtype=torch.float64) for r in rows]


def naive(left, right, weights) -> torch.Tensor:
    x, y, w = torch.cat(left).double(), torch.cat(right).double(), torch.cat(weights)
    return sum(w[i] * torch.outer(x[i], y[i]) for i in range(len(x)))


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).norm() <= 1e-12 * b.norm()) and bool((a - b).abs().max() <= 1e-10 * b.abs().max())


@pytest.mark.parametrize("block", [1, 2, 7, 16, 64, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_is_the_naive_sum(monkeypatch, block, dtype):
    monkeypatch.setattr(Gram, "BLOCK", block)
    rows = prompts(30, dtype=dtype)
    weights = weights_of(rows)
    gram = Gram(D)
    for r, w in zip(rows, weights):
        gram.add(r, w)
    assert gram.count == 270
    assert close(gram.value(), naive(rows, rows, weights))
    assert torch.equal(gram.value(), gram.value().T)


@pytest.mark.parametrize("held", [1, 9, 40, 4096])
@pytest.mark.parametrize("block", [1, 7, 16, 1024])
def test_cross_is_the_naive_sum(monkeypatch, block, held):
    """The same few counterparts for many prompts, then other ones; rows in sequence, repeated and out of
    order.
    """
    for kind in (Gram, Cross):
        monkeypatch.setattr(kind, "BLOCK", block)
        monkeypatch.setattr(kind, "HELD", held)
    right, few = prompts(30), prompts(3, seed=5)
    left = [few[i % 3] for i in range(20)] + prompts(10, seed=6)
    places = [[*range(9)], [2, 3, 4, 5, 6, 7, 8, 8, 8], [0, 0, 1, 1, 5, 6, 7, 3, 2], [8, *range(8)]]
    weights = weights_of(right)
    cross, partners = Cross(D), []
    for i, (x, y, w) in enumerate(zip(left, right, weights)):
        cross.add(x, places[i % 4], y, w)
        partners.append(x[places[i % 4]])
        if i == 13:
            cross.value(), cross.left.value()
    assert close(cross.value(), naive(partners, right, weights))
    assert close(cross.left.value(), naive(partners, partners, weights))
    assert close(cross.right.value(), naive(right, right, weights))


@pytest.mark.parametrize("held", [1, 9, 40, 4096])
def test_gram_of_tensors_that_return(monkeypatch, held):
    monkeypatch.setattr(Gram, "HELD", held)
    few = prompts(4)
    rows = [few[i % 4] for i in range(25)]
    weights = weights_of(rows)
    weights[3][2:5] = 0
    gram = Gram(D)
    for r, w in zip(rows, weights):
        gram.add_repeated(r, w)
        gram.add(r, w)
    assert gram.count == 2 * 25 * 9
    assert close(gram.value(), 2 * naive(rows, rows, weights))


@pytest.mark.parametrize("block", [8, 32, 4096])
def test_order_does_not_matter(monkeypatch, block):
    monkeypatch.setattr(Gram, "BLOCK", block)
    rows = torch.cat(prompts(30))
    weights = torch.cat(weights_of(prompts(30)))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(2))
    one, two, three = Gram(D), Gram(D), Gram(D)
    one.add(rows, weights)
    two.add(rows[order], weights[order])
    for i in order.tolist():
        three.add(rows[i : i + 1], weights[i : i + 1])
    assert close(two.value(), one.value())
    assert close(three.value(), one.value())


def test_rows_can_be_added_after_the_sum_was_read():
    rows = prompts(12)
    gram = Gram(D)
    for r in rows:
        gram.add(r, 0.5)
        gram.value()
    assert close(gram.value(), naive(rows, rows, [torch.full((9,), 0.5, dtype=torch.float64)] * 12))


def test_weights_scale_rows_and_zero_leaves_them_out():
    rows = torch.cat(prompts(3))
    gram, some = Gram(D), Gram(D)
    weights = torch.ones(len(rows), dtype=torch.float64)
    weights[::2] = 0
    gram.add(rows, weights)
    some.add(rows[1::2])
    assert close(gram.value(), some.value())
    gram.add(rows[:0], weights[:0])
    assert close(gram.value(), some.value())


def test_the_caller_may_reuse_its_tensor():
    rows = torch.cat(prompts(2))
    gram, wanted = Gram(D), rows.double().T @ rows.double()
    gram.add(rows)
    rows.zero_()
    assert close(gram.value(), wanted)


def test_float32_and_float64_rows_mix():
    single, double = prompts(3), prompts(3, seed=4, dtype=torch.float64)
    gram = Gram(D)
    for r in (*single, *double, *single):
        gram.add(r)
    rows = [*single, *double, *single]
    assert close(gram.value(), naive(rows, rows, [torch.ones(9, dtype=torch.float64)] * 9))


def test_prompts_that_return_are_multiplied_once(monkeypatch):
    """Repeated prompts cost one product, however many there are, and what is held has a bound."""
    multiplied = []
    original = Gram._add
    monkeypatch.setattr(
        Gram, "_add", lambda self, rows, *a: (multiplied.append(len(rows)), original(self, rows, *a))
    )
    gram, rows, ones = Gram(D), prompts(2), torch.ones(9, dtype=torch.float64)
    for _ in range(50):
        for r in rows:
            gram.add_repeated(r, ones)
    gram.value()
    assert multiplied == [9, 9]
    monkeypatch.setattr(Gram, "HELD", 30)
    for r in prompts(20):
        gram.add_repeated(r, ones)
        assert sum(len(kept) for kept, _ in gram._repeats.values()) <= 30


@pytest.mark.parametrize("count", [1, 3, 12])
def test_rows_of_a_thousand_concepts_are_not_kept(monkeypatch, count):
    """Anchors of their own, for every concept: memory stays bounded."""
    for kind in (Gram, Cross):
        monkeypatch.setattr(kind, "BLOCK", 16)
        monkeypatch.setattr(kind, "HELD", 9 * count)
    cross = Cross(D)
    for i in range(40):
        x, y = prompts(1, seed=i)[0], prompts(1, seed=i + 100)[0]
        cross.add(x, range(9), y, torch.ones(9, dtype=torch.float64))
        assert (
            len(cross._repeats) <= count
            and len(cross._sums) == 9 * count
            and len(cross.left._repeats) <= count
        )


@pytest.mark.parametrize("limit", [10, 4096])
@pytest.mark.parametrize("solver", ["ridge", "projection"])
def test_pair_sums(monkeypatch, solver, limit):
    """Every sum that a solver reads, against its definition."""
    monkeypatch.setattr(solvers, "DIRECT_LIMIT", limit)
    erase, want = prompts(8, seed=1), [prompts(2, seed=2)[i % 2] for i in range(8)]
    for e, w in zip(erase, want):
        w[:3] = e[:3]  # rows before the concept do not differ
    weights = weights_of(erase)
    sums = RowSums(D, solver)
    source = torch.cat([torch.zeros(2, D), want[0]])
    for i, (e, w, a) in enumerate(zip(erase, want, weights)):
        sums.add_pairs(e, w, a, *([source, range(2, 11)] if torch.equal(w, want[0]) and i else ()))
    assert sums.count == 8 * 6
    c, g, a = [e[3:] for e in erase], [w[3:] for w in want], [a[3:] for a in weights]
    d = [x.double() - y.double() for x, y in zip(c, g)]
    assert close(sums.difference(), naive(d, d, a))
    if solver == "ridge":
        assert close(sums.erase.value(), naive(c, c, a))
        assert close(sums.targets, -naive(d, c, a))
    elif limit < 8 * 6:
        assert not sums.rows
    else:
        rows = torch.cat(sums.rows)
        assert close(rows.T @ rows, naive(d, d, a))


@pytest.mark.parametrize("solver", ["ridge", "projection"])
def test_pairs_that_do_not_differ_leave_nothing(solver):
    sums = RowSums(D, solver)
    for rows, weights in zip(prompts(4), weights_of(prompts(4))):
        sums.add_pairs(rows, rows.clone(), weights)
    assert sums.count == 0 and not sums.difference().any()
    if solver == "ridge":
        assert not sums.targets.any()


def of_rank(rank: int) -> torch.Tensor:
    """``[D, D]`` with singular values from 100 down to 0.1 at most, ``rank`` of them, and rounding."""
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    values = torch.zeros(D, dtype=torch.float64)
    values[:rank] = torch.logspace(2, -1, D, dtype=torch.float64)[:rank]
    return (a * values) @ b + 1e-12 * torch.randn(D, D, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("rank", [1, 7, D // 2, int(solvers.NEARLY_FULL * D), 38, D])
def test_nearly_full_is_certified_without_singular_values(rank):
    matrix = of_rank(rank)
    assert solvers.nearly_full(matrix, 1e-9) is (rank > solvers.NEARLY_FULL * D)
    assert not solvers.nearly_full(matrix, 0.5), "no more than three values exceed half the norm"


def test_nearly_full_never_says_yes_wrongly():
    """Where the first rows are deficient and the whole is not, no is an answer too: it only costs an SVD."""
    matrix = of_rank(D)
    matrix[1] = matrix[0]
    assert int((torch.linalg.svdvals(matrix) > 1e-3).sum()) == D - 1
    assert solvers.nearly_full(matrix, 1e-9) is False
    generator = torch.Generator().manual_seed(6)
    R, C = (torch.randn(D, D, generator=generator, dtype=torch.float64) for _ in range(2))
    C[:, 1] = C[:, 0]  # the first rows of V depend on each other
    G = C.T @ C + 0.1 * torch.eye(D, dtype=torch.float64)
    edit, info = solvers.ridge(R.T @ C, None, G)
    dense = torch.linalg.solve(G, (R.T @ C).T).T
    assert (edit.U @ edit.V.T - dense).norm() <= 1e-10 * dense.norm() and info["rank"] == D - 1


@pytest.mark.parametrize("rank", [D, D - 3, D // 2])
def test_ridge_of_high_rank_is_the_dense_solution(rank):
    """Whether the edit is left as it is (nearly full rank) or made smaller: the same change of a weight."""
    generator = torch.Generator().manual_seed(4)
    R, C = (torch.randn(rank, D, generator=generator, dtype=torch.float64) for _ in range(2))
    G = C.T @ C + torch.eye(D, dtype=torch.float64)
    W = torch.randn(7, D, generator=generator, dtype=torch.float64)
    edit, info = solvers.ridge(R.T @ C, None, G, 0.7)
    dense = 0.7 * torch.linalg.solve(G, (W @ R.T @ C).T).T
    assert (W @ edit.U @ edit.V.T - dense).norm() <= 1e-10 * dense.norm()
    up, down = edit.factors(W)
    assert (up.double() @ down.double() - dense).norm() <= 1e-6 * dense.norm()
    assert info["rank"] == edit.rank == (D if rank > 0.75 * D else rank)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), -float("inf")])
def test_is_finite(dtype, bad):
    for size in (0, 1, 7, 1000):
        tensor = torch.linspace(-60000, 60000, size).to(dtype)
        if bad is not None and size:
            tensor[size // 2] = bad
        assert is_finite(tensor) == bool(torch.isfinite(tensor).all())
