"""Streaming sums over text rows, so that a thousand concepts fit in memory. Everything is summed in float64.

The rows of prompts repeat: the start token is always the same, prompts that begin alike have the same first rows (the
encoders are causal), and the neutral counterparts of all concepts are the same few prompts. Rows that are equal bit by bit
are added up before any matrix product, which changes nothing but the time.
"""

from __future__ import annotations

import torch
from torch import Tensor

PANELS = 4  #: of a symmetric product; only those on and above the diagonal are computed
PROBES = 8  #: numbers of a row that are hashed; rows with the same hash are compared in full


def add_symmetric(total: Tensor, rows: Tensor) -> None:
    """``total += rows^T rows``, its upper block triangle only; ``total [d, d]``, ``rows [n, d]``, of one dtype."""
    width = total.shape[0]
    step = -(-width // PANELS)
    for at in range(0, width, step):
        total[at : at + step, at:].addmm_(rows[:, at : at + step].T, rows[:, at:])


def mirror(total: Tensor) -> Tensor:
    """Copy the upper triangle to the lower one, in place."""
    return total.copy_(total.triu() + total.triu(1).T)


def accumulate(total: Tensor, slots: Tensor | slice, values: Tensor) -> None:
    """``total[slots] += values``, where a slot may occur more than once."""
    if isinstance(slots, slice):
        total[slots] += values
    else:
        total.index_add_(0, slots, values)


class DistinctRows:
    """A table of rows in which a row that comes again is found again.

    Attributes:
        rows: ``[capacity, d]``, the first ``size`` of them in use, as precise as the rows that were given.
        hits: ``[capacity]`` in how many calls each came since the last :meth:`keep`, and before it counts once.
    """

    def __init__(self, width: int, capacity: int, device: torch.device | str):
        self.capacity = capacity
        self.size = 0
        self.rows = torch.empty(capacity, width, device=device)
        self.hits = torch.zeros(capacity, dtype=torch.long, device=device)
        self._slots: dict[int, int] = {}
        columns = torch.linspace(0, width - 1, min(PROBES, width)).long()
        odd = torch.randint(1 << 62, columns.shape, generator=torch.Generator().manual_seed(0)) | 1
        self._columns, self._odd = columns.to(device), odd.to(device)

    @property
    def room(self) -> int:
        return self.capacity - self.size

    def place(self, rows: Tensor) -> Tensor | slice:
        """Slots of the rows ``[n]``, a slice where they follow one another; there must be room for all of them.

        Rows that are new take a free slot.
        """
        if rows.dtype != self.rows.dtype and rows.dtype == torch.float64:
            self.rows = self.rows.double()
        first, slots, fresh = self.size, [], []
        for number, key in enumerate(self._keys(rows)):
            slot = self._slots.setdefault(key, self.size)
            if slot == self.size:
                self.size += 1
                fresh.append(number)
            slots.append(slot)
        if fresh:
            new = rows if len(fresh) == len(rows) else rows[torch.tensor(fresh, device=rows.device)]
            self.rows[first : self.size] = new
        at = self._together(slots)
        if len(fresh) < len(rows) and not torch.equal(self.rows[at], rows):
            at = self._separate(rows, slots)
        self.hits[at] += 1  # a row that comes twice in one call counts once
        return at

    def _together(self, slots: list[int]) -> Tensor | slice:
        if slots == list(range(slots[0], slots[0] + len(slots))):
            return slice(slots[0], slots[0] + len(slots))
        return torch.tensor(slots, device=self.rows.device)

    def _keys(self, rows: Tensor) -> list[int]:
        """One 64-bit number a row; equal rows have equal numbers."""
        bits = rows[:, self._columns].double().view(torch.int64)
        return (bits * self._odd ^ bits >> 29).sum(1).tolist()

    def _separate(self, rows: Tensor, slots: list[int]) -> Tensor:
        """Slots of their own for rows that share a hash with another row, but not all numbers."""
        slots = torch.tensor(slots, device=self.rows.device)
        for number in (self.rows[slots] != rows).any(1).nonzero()[:, 0].tolist():
            self.rows[self.size] = rows[number]
            slots[number] = self.size
            self.size += 1
        return slots

    def keep(self, kept: Tensor) -> None:
        """Forget all rows but those at the slots ``kept``, which move to the front in that order."""
        new = torch.full((self.size,), -1)
        new[kept] = torch.arange(len(kept))
        new = new.tolist()
        self._slots = {key: new[slot] for key, slot in self._slots.items() if new[slot] >= 0}
        self.rows[: len(kept)] = self.rows[kept]
        self.size = len(kept)
        self.hits.zero_()
        self.hits[: self.size] = 1


class _Stream:
    """What :class:`Gram` and :class:`Cross` share: a table of distinct rows that is folded into sums when it is full."""

    BLOCK = 4096  #: distinct rows held before they are folded in

    def __init__(self, width: int, device: torch.device | str = "cpu"):
        """``width`` is d."""
        self.width = width
        self.count = 0  #: rows added
        self._device = torch.device(device)
        self._table: DistinctRows | None = None

    def _place(self, rows: Tensor) -> Tensor | slice:
        if self._table is None:
            self._table = DistinctRows(self.width, self.BLOCK, self._device)
            self._start(self.BLOCK)
        if len(rows) > self._table.room:
            self._fold()
        self.count += len(rows)
        return self._table.place(rows)

    def _batches(self, n: int):
        """Slices of at most half a table, so that there is always room for one after folding."""
        step = max(1, self.BLOCK // 2)
        return (slice(at, at + step) for at in range(0, n, step))

    def _fold(self, everything: bool = False) -> None:
        """Fold the rows that came once, or everything; rows that come again and again stay and cost no product."""
        table = self._table
        if table is None or table.size == 0:
            return
        again = table.hits[: table.size] > 1
        if everything or 2 * int(again.sum()) > table.capacity:
            again[:] = False
        gone, kept = (~again).nonzero()[:, 0], again.nonzero()[:, 0]
        for part in gone.split(2048):  # bounds the float64 copies
            self._add(part)
        if everything:
            self._table = None  # give the memory back; it is made again when more rows come
            self._stop()
        else:
            self._keep(kept)
            table.keep(kept)

    def _start(self, capacity: int) -> None:
        raise NotImplementedError

    def _stop(self) -> None:
        raise NotImplementedError

    def _add(self, slots: Tensor) -> None:
        raise NotImplementedError

    def _keep(self, slots: Tensor) -> None:
        raise NotImplementedError


class Gram(_Stream):
    """``sum_i w_i x_i x_i^T`` over rows added bit by bit, in float64."""

    def __init__(self, width: int, device: torch.device | str = "cpu"):
        super().__init__(width, device)
        self._sum = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, rows: Tensor, weights: Tensor | float = 1.0) -> None:
        """Add rows ``[n, d]`` with non-negative weights ``[n]`` (or one for all)."""
        rows = rows.to(self._device)
        weights = torch.as_tensor(weights, dtype=torch.float64, device=self._device).expand(len(rows))
        for part in self._batches(len(rows)):
            slots = self._place(rows[part])
            accumulate(self._weights, slots, weights[part])

    def value(self) -> Tensor:
        """The sum so far, ``[d, d]`` float64 (not a copy)."""
        self._fold(everything=True)
        return mirror(self._sum)

    def _start(self, capacity):
        self._weights = torch.zeros(capacity, dtype=torch.float64, device=self._device)

    def _stop(self):
        del self._weights

    def _add(self, slots):
        add_symmetric(self._sum, self._table.rows[slots].double().mul_(self._weights[slots].sqrt()[:, None]))

    def _keep(self, slots):
        kept = self._weights[slots]
        self._weights.zero_()
        self._weights[: len(slots)] = kept


class Cross(_Stream):
    """``sum_i w_i x_i y_i^T`` and ``sum_i w_i x_i x_i^T`` over pairs of rows added bit by bit, in float64.

    Cheap where the same x comes again: its y are added up, and the product is taken once for all.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu"):
        super().__init__(width, device)
        self._sum = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._left = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, left: Tensor, right: Tensor, weights: Tensor) -> None:
        """Add pairs x ``[n, d]``, y ``[n, d]`` with non-negative weights ``[n]``."""
        left, right = left.to(self._device), right.to(self._device)
        weights = weights.to(self._device, torch.float64)
        for part in self._batches(len(left)):
            slots = self._place(left[part])
            accumulate(self._weights, slots, weights[part])
            accumulate(self._right, slots, right[part].double() * weights[part, None])

    def value(self) -> Tensor:
        """``sum w x y^T`` so far, ``[d, d]`` float64 (not a copy)."""
        self._fold(everything=True)
        return self._sum

    def left(self) -> Tensor:
        """``sum w x x^T`` so far, ``[d, d]`` float64 (not a copy)."""
        self._fold(everything=True)
        return mirror(self._left)

    def _start(self, capacity):
        self._weights = torch.zeros(capacity, dtype=torch.float64, device=self._device)
        self._right = torch.zeros(capacity, self.width, dtype=torch.float64, device=self._device)

    def _stop(self):
        del self._weights, self._right

    def _add(self, slots):
        rows = self._table.rows[slots].double()
        self._sum.addmm_(rows.T, self._right[slots])
        add_symmetric(self._left, rows.mul_(self._weights[slots].sqrt()[:, None]))

    def _keep(self, slots):
        for total in (self._weights, self._right):
            kept = total[slots]
            total[: self._table.size].zero_()
            total[: len(slots)] = kept
