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

    def __init__(self, width: int, capacity: int, device: torch.device | str, look: bool = True):
        """``look``: whether to look for rows that came before; without, every row takes a new slot."""
        self.look = look
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
        if not self.look:
            self.size += len(rows)
            self.rows[first : self.size] = rows
            return slice(first, self.size)
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
    """What :class:`Gram` and :class:`Cross` share: a table of distinct rows that is folded into sums when it is full.

    Rows are first copied to a stage, so that a prompt costs two copies and the table is asked once for many.
    """

    BLOCK = 4096  #: distinct rows held before they are folded in
    STAGE = 1024  #: rows copied before the table is asked

    def __init__(self, width: int, device: torch.device | str = "cpu", repeats: bool = True):
        """``width`` is d; without ``repeats`` no time is spent on looking for equal rows."""
        self.width = width
        self.count = 0  #: rows added
        self._device = torch.device(device)
        self._repeats = repeats
        self._table: DistinctRows | None = None
        self._stage: list[Tensor] = []
        self._staged = 0

    def _put(self, *parts: Tensor) -> None:
        """Stage ``parts``, of ``n`` rows each: what is looked up, and what :meth:`_accumulate` gets with it."""
        if not self._table:
            self._table = DistinctRows(self.width, self.BLOCK, self._device, self._repeats)
            self._start(self.BLOCK)
        size = max(1, min(self.STAGE, self.BLOCK // 2))  # after folding there is room for one stage
        self.count += len(parts[0])
        for at in range(0, len(parts[0]), size):
            chunk = [part[at : at + size] for part in parts]
            if self._staged + len(chunk[0]) > size:
                self._unstage()
            if [stage.dtype for stage in self._stage] != [part.dtype for part in chunk]:
                self._unstage()
                self._stage = [torch.empty(size, *part.shape[1:], dtype=part.dtype, device=self._device) for part in chunk]
            end = self._staged + len(chunk[0])
            for stage, part in zip(self._stage, chunk):
                stage[self._staged : end] = part
            self._staged = end

    def _unstage(self) -> None:
        if self._staged:
            staged = [part[: self._staged] for part in self._stage]
            if self._staged > self._table.room:
                self._fold()
            self._accumulate(self._table.place(staged[0]), *staged)
        self._staged = 0

    def _finish(self) -> None:
        """Fold everything and give the tables back; they are made again when more rows come."""
        if self._table:
            self._unstage()
            self._fold(everything=True)
            self._table, self._stage = None, []
            self._stop()

    def _fold(self, everything: bool = False) -> None:
        """Fold the rows that came once, or everything; rows that come again and again stay and cost no product."""
        table = self._table
        again = table.hits[: table.size] > 1
        if everything or 2 * int(again.sum()) > table.capacity:
            again[:] = False
        gone, kept = (~again).nonzero()[:, 0], again.nonzero()[:, 0]
        for part in gone.split(2048):  # bounds the float64 copies
            self._add(part)
        self._keep(kept)
        table.keep(kept)

    def _start(self, capacity: int) -> None:
        raise NotImplementedError

    def _accumulate(self, slots: Tensor | slice, *parts: Tensor) -> None:
        raise NotImplementedError

    def _stop(self) -> None:
        raise NotImplementedError

    def _add(self, slots: Tensor) -> None:
        raise NotImplementedError

    def _keep(self, slots: Tensor) -> None:
        raise NotImplementedError


class Gram(_Stream):
    """``sum_i w_i x_i x_i^T`` over rows added bit by bit, in float64."""

    def __init__(self, width: int, device: torch.device | str = "cpu", repeats: bool = True):
        super().__init__(width, device, repeats)
        self._sum = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, rows: Tensor, weights: Tensor | float = 1.0) -> None:
        """Add rows ``[n, d]`` with non-negative weights ``[n]`` (or one for all)."""
        weights = torch.as_tensor(weights, dtype=torch.float64, device=self._device).expand(len(rows))
        self._put(rows, weights)

    def value(self) -> Tensor:
        """The sum so far, ``[d, d]`` float64 (not a copy)."""
        self._finish()
        return mirror(self._sum)

    def _start(self, capacity):
        self._weights = torch.zeros(capacity, dtype=torch.float64, device=self._device)

    def _accumulate(self, slots, rows, weights):
        accumulate(self._weights, slots, weights)

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

    def __init__(self, width: int, device: torch.device | str = "cpu", repeats: bool = True):
        super().__init__(width, device, repeats)
        self._sum = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._left = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, left: Tensor, right: Tensor, weights: Tensor) -> None:
        """Add pairs x ``[n, d]``, y ``[n, d]`` with non-negative weights ``[n]``."""
        self._put(left, right, weights.double())

    def value(self) -> Tensor:
        """``sum w x y^T`` so far, ``[d, d]`` float64 (not a copy)."""
        self._finish()
        return self._sum

    def left(self) -> Tensor:
        """``sum w x x^T`` so far, ``[d, d]`` float64 (not a copy)."""
        self._finish()
        return mirror(self._left)

    def _start(self, capacity):
        self._weights = torch.zeros(capacity, dtype=torch.float64, device=self._device)
        self._right = torch.zeros(capacity, self.width, dtype=torch.float64, device=self._device)

    def _accumulate(self, slots, left, right, weights):
        accumulate(self._weights, slots, weights)
        accumulate(self._right, slots, right.double() * weights[:, None])

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
