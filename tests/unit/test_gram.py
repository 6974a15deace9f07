"""Streaming sums: merging equal rows, folding in blocks and the order of rows change nothing but rounding."""

from __future__ import annotations

import pytest
import torch

from trace_core.closed_form import solvers
from trace_core.closed_form.erase import _Sums
from trace_core.closed_form.gram import Cross, DistinctRows, Gram
from trace_core.numerics import is_finite

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


@pytest.mark.parametrize("block", [2, 7, 16, 4096])
def test_cross_is_the_naive_sum(monkeypatch, block):
    """The same few counterparts for many prompts, then other ones."""
    monkeypatch.setattr(Cross, "BLOCK", block)
    right = prompts(30)
    left = [prompts(3, seed=5)[i % 3] for i in range(20)] + prompts(10, seed=6)
    weights = weights_of(right)
    cross = Cross(D)
    for x, y, w in zip(left, right, weights):
        cross.add(x, y, w)
    assert close(cross.value(), naive(left, right, weights))
    assert close(cross.left(), naive(left, left, weights))


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


def test_equal_rows_share_a_slot_and_only_they():
    table = DistinctRows(D, 100, "cpu")
    rows = torch.cat(prompts(6))
    slots = table.place(rows)
    assert table.place(rows[:9]) == slice(0, 9)
    assert table.size == 1 + 3 + 6 * 6
    assert torch.equal(table.rows[slots], rows)
    almost = rows.clone()
    almost[:, 1] += 1e-3  # most hashed numbers stay as they are
    assert torch.equal(table.rows[table.place(almost)], almost)


def test_rows_with_the_same_hash_are_kept_apart(monkeypatch):
    monkeypatch.setattr(DistinctRows, "_keys", lambda self, rows: [0] * len(rows))
    monkeypatch.setattr(Gram, "BLOCK", 64)
    rows = prompts(12)
    gram = Gram(D)
    for r in rows:
        gram.add(r)
    assert close(gram.value(), naive(rows, rows, [torch.ones(9, dtype=torch.float64)] * 12))


def test_rows_that_return_stay_in_the_table(monkeypatch):
    """Repeated prompts are folded once, however many there are."""
    monkeypatch.setattr(Gram, "BLOCK", 64)
    folded = []
    original = Gram._add
    monkeypatch.setattr(Gram, "_add", lambda self, slots: (folded.append(len(slots)), original(self, slots)))
    gram, rows = Gram(D), prompts(2)
    for i in range(50):
        for r in (*rows, prompts(1, seed=100 + i)[0][-3:]):
            gram.add(r)
    gram.value()
    assert sum(folded) <= 50 * 3 + 3 * 16


@pytest.mark.parametrize("solver", ["ridge", "projection"])
def test_pair_sums(solver):
    """Every sum that a solver reads, against its definition."""
    erase, want = prompts(8, seed=1), [prompts(2, seed=2)[i % 2] for i in range(8)]
    for e, w in zip(erase, want):
        w[:3] = e[:3]  # rows before the concept do not differ
    weights = weights_of(erase)
    sums = _Sums(D, solver)
    for e, w, a in zip(erase, want, weights):
        sums.add_pairs(e, w, a)
    assert sums.count == 8 * 6
    c, g, a = [e[3:] for e in erase], [w[3:] for w in want], [a[3:] for a in weights]
    d = [x.double() - y.double() for x, y in zip(c, g)]
    assert close(sums.difference(), naive(d, d, a))
    if solver == "ridge":
        assert close(sums.erase.value(), naive(c, c, a))
        assert close(sums.targets, -naive(d, c, a))
    else:
        rows = torch.cat(sums.rows)
        assert close(rows.T @ rows, naive(d, d, a))


@pytest.mark.parametrize("solver", ["ridge", "projection"])
def test_pairs_that_do_not_differ_leave_nothing(solver):
    sums = _Sums(D, solver)
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
