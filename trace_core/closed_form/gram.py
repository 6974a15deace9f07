"""Streaming sums over text rows in float64, so that a thousand concepts fit in memory.

All concepts share a few neutral counterpart prompts. The weights of a repeated tensor are added up first, and
its matrix product is computed once. The result is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PANELS = 4  #: blocks per side of a symmetric product; only blocks on and above the diagonal are computed


def add_symmetric(total: Tensor, rows: Tensor) -> None:
    """``total += rows^T rows`` for the upper block triangle.

    ``total [d, d]`` and ``rows [n, d]`` share a dtype.
    """
    for start, end in _panels(total.shape[0]):
        total[start:end, start:].addmm_(rows[:, start:end].T, rows[:, start:])


def mirror(total: Tensor) -> Tensor:
    """Copy the upper triangle to the lower triangle, in place."""
    for start, end in _panels(total.shape[0]):
        block = total[start:end, start:end]
        block.copy_(block.triu() + block.triu(1).T)
        total[end:, start:end] = total[start:end, end:].T
    return total


def _panels(width: int) -> list[tuple[int, int]]:
    step = -(-width // PANELS)
    return [(start, min(start + step, width)) for start in range(0, width, step)]


class Gram:
    """``sum_i w_i x_i x_i^T`` over rows added in batches, in float64."""

    BLOCK = 2048  #: rows buffered in float64 for one product
    HELD = 4096  #: rows of held tensors, which may be added again

    def __init__(self, width: int):
        """``width``: d."""
        self.width = width
        self.count = 0  #: rows added
        self._sum = torch.zeros(width, width, dtype=torch.float64)
        self._block: Tensor | None = None
        self._filled = 0
        self._repeats: dict[int, tuple[Tensor, Tensor]] = {}
        self._repeated_rows = 0

    def add(self, rows: Tensor, weights: Tensor | float = 1.0) -> None:
        """Add rows ``[n, d]`` with non-negative weights ``[n]`` (or one for all)."""
        self.count += len(rows)
        self._add(rows, weights)

    def add_repeated(self, rows: Tensor, weights: Tensor) -> None:
        """:meth:`add` for a tensor that may be added again.

        Its weights are summed, and its product is taken once.

        The tensor is held by reference and must not change before :meth:`value` is called.
        """
        self.count += len(rows)
        if id(rows) not in self._repeats:
            if self._repeated_rows + len(rows) > self.HELD:
                self._release()
            # holding the tensor keeps its id unique
            self._repeats[id(rows)] = rows, torch.zeros(len(rows), dtype=torch.float64)
            self._repeated_rows += len(rows)
        self._repeats[id(rows)][1].add_(weights)

    def value(self) -> Tensor:
        """The sum so far, ``[d, d]`` float64, not a copy."""
        self._release()
        if self._block is not None:
            self._fold()
            self._block = None  # allocated again when more rows are added
            mirror(self._sum)
        return self._sum

    def _add(self, rows: Tensor, weights: Tensor | float) -> None:
        weights = torch.as_tensor(weights, dtype=torch.float64)
        if weights.ndim and not weights.all():
            rows, weights = rows[weights > 0], weights[weights > 0]
        roots = weights.sqrt()[:, None] if weights.ndim else weights.sqrt().expand(len(rows), 1)
        if self._block is None:
            self._block = torch.empty(self.BLOCK, self.width, dtype=torch.float64)
        for part, root in zip(rows.split(self.BLOCK), roots.split(self.BLOCK)):
            if self._filled + len(part) > self.BLOCK:
                self._fold()
            place = self._block[self._filled : self._filled + len(part)].copy_(part)
            if weights.ndim or weights != 1:
                place.mul_(root)
            self._filled += len(part)

    def _fold(self) -> None:
        add_symmetric(self._sum, self._block[: self._filled])
        self._filled = 0

    def _release(self) -> None:
        for rows, weights in self._repeats.values():
            self._add(rows, weights)
        self._repeats, self._repeated_rows = {}, 0


class Cross:
    """``sum_i w_i x_i y_i^T`` over pairs added in batches, in float64, and the sums over x and y alone.

    Repeated tensors of x are cheap: their y rows are summed, and the product is taken once.

    Attributes:
        left: ``sum w x x^T``; computed only if its value is read, or very many different x are added.
        right: ``sum w y y^T``.
    """

    BLOCK, HELD = Gram.BLOCK, Gram.HELD

    def __init__(self, width: int):
        """``width``: d."""
        self.width = width
        self.left, self.right = Gram(width), Gram(width)
        self._sum = torch.zeros(width, width, dtype=torch.float64)
        self._repeats: dict[tuple[int, int], tuple[Tensor, int]] = {}
        self._rows = 0
        self._sums: Tensor | None = None  # sums of y for every row of the held tensors

    def add(self, left: Tensor, places: Sequence[int], right: Tensor, weights: Tensor) -> None:
        """Add pairs ``x_i = left[places[i]]``, ``y_i = right[i]`` with positive weights ``[n]``.

        Args:
            left: ``[m, d]``, held by reference; it must not change before the sums are read. A repeated
                tensor is recognised by its identity.
            places: n row numbers of ``left``, which may repeat.
            right: ``[n, d]``.
            weights: ``[n]``.
        """
        weights, at = weights.double(), torch.tensor(places)
        self.left.add_repeated(left, torch.zeros(len(left), dtype=torch.float64).index_add_(0, at, weights))
        roots = weights.sqrt()[:, None]
        right = right.double() * roots
        self.right.add(right)
        first = min(places)
        sums = self._sums_for(left, first)
        begin, run = (
            places[0] - first,
            next((i for i, place in enumerate(places) if place != places[0] + i), len(places)),
        )
        # most rows are consecutive, and a slice is fast
        sums[begin : begin + run].addcmul_(right[:run], roots[:run])
        if run < len(places):
            sums.index_add_(0, at[run:] - first, right[run:] * roots[run:])

    def value(self) -> Tensor:
        """``sum w x y^T`` so far, ``[d, d]`` float64, not a copy."""
        if self._repeats:
            self._fold()
        self._sums = None
        return self._sum

    def _sums_for(self, left: Tensor, first: int) -> Tensor:
        """The sums ``[m - first, d]`` for the rows from ``first`` on; earlier rows are seldom used."""
        key, size = (id(left), first), len(left) - first
        if key not in self._repeats:
            if self._sums is not None and self._rows + size > len(self._sums):
                self._fold()
            if self._sums is None or size > len(self._sums):
                self._sums = torch.empty(max(self.HELD, size), self.width, dtype=torch.float64)
            self._sums[self._rows : self._rows + size] = 0  # untouched memory is not allocated
            self._repeats[key] = left, self._rows
            self._rows += size
        start = self._repeats[key][1]
        return self._sums[start : start + size]

    def _fold(self) -> None:
        block = torch.empty(min(self.BLOCK, self._rows), self.width, dtype=torch.float64)
        end = filled = 0
        for left in [
            part
            for (_, first), (tensor, _) in self._repeats.items()
            for part in tensor[first:].split(len(block))
        ]:
            if filled + len(left) > len(block):
                self._sum.addmm_(block[:filled].T, self._sums[end - filled : end])
                filled = 0
            block[filled : filled + len(left)] = left
            filled, end = filled + len(left), end + len(left)
        self._sum.addmm_(block[:filled].T, self._sums[end - filled : end])
        self._repeats, self._rows = {}, 0
