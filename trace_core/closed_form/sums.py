"""Sums over text rows for the solvers, accumulated in batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..text.encoding import BOS
from . import solvers
from .gram import Cross, Gram

SAME = 1e-5  #: rows with a smaller relative difference are the same row, from different places in a batch


class RowSums:
    """Sums of one text stream for a solver and the report: over pairs (c, g) of weight a, and over keep rows.

    Only the sums of the chosen solver are accumulated. ``ridge`` uses sums of c and g, in which repeated
    prompts are cheap. ``projection`` uses sums of d = c - g, which stay precise where c and g are close. If
    the strengths s of the concepts differ, second sums include the factor s. If all strengths are equal,
    :attr:`strength` scales the whole edit.

    With substitutes, the projection moves c to rows o instead of g. The displacement is then ``m = c - o``,
    with sums of its own.
    """

    def __init__(
        self, width: int, solver: str, strengths: Iterable[float] = (1.0,), substituted: bool = False
    ):
        """``substituted``: some concept has a substitute with rows o."""
        values = set(strengths)
        self.strength = values.pop() if len(values) == 1 else 1.0
        self._differ = bool(values)
        self._strength_weighted = (
            (Cross if solver in ("ridge", "rece") else Gram)(width) if self._differ else None
        )
        self._row_strengths: list[Tensor] = []  # s of every row in rows
        self._displacements: list[Tensor] = []  # sqrt(a) m of every row in rows, with substitutes
        self._substituted = substituted and solver == "projection"
        self.keep = Gram(width)
        self.count = 0  #: pairs that differ
        #: ``sqrt(a) d`` for the projection, up to the direct limit; beyond it empty
        self.rows: list[Tensor] = []
        self.constrained: Tensor | None = None  #: rows that must not change, [k, d]
        #: orthonormal directions of rows that are kept exactly, [k, d]
        self.exact: Tensor | None = None
        self.weight = self._starts = 0.0  # weight of the keep rows without start tokens; energy of those
        self._centre, self._centre_weight = torch.zeros(width, dtype=torch.float64), 0.0
        self._ridge = solver in ("ridge", "rece")
        self._listed = solver not in ("ridge", "projection")  # the papers' solvers need the rows themselves
        #: (c, g, a) of every added pair, for the papers' solvers
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self.kept: list[Tensor] = []  #: keep rows with a weight, for the papers' solvers
        self.whole: list[tuple[Tensor, Tensor]] = []  #: all rows of a concept's prompt and its counterpart
        self.empty: Tensor | None = None  #: rows of the empty prompt without its start token
        if self._ridge:
            self._pairs = Cross(width)  # sum a g c^T, sum a c c^T, sum a g g^T
        else:
            self._difference = Gram(width)  # sum a d d^T of rows folded already
        if self._substituted:
            self._displacement_gram = Gram(width)  # sum a m m^T of rows folded already
            # sum a m d^T of rows folded already, and the same with the factor s
            self._across, self._across_weighted = (
                torch.zeros(width, width, dtype=torch.float64) for _ in "ab"
            )

    def add_pairs(
        self,
        erase: Tensor,
        want: Tensor,
        weights: Tensor,
        source: Tensor | None = None,
        partners: Sequence[int] = (),
        strength: float = 1.0,
        instead: Tensor | None = None,
    ) -> None:
        """Add rows c, g ``[n, d]`` of a concept with weights a ``[n]``. Pairs with equal rows are left out.

        ``instead``: rows o ``[n, d]`` of the substitute, for the projection.

        ``source``: a tensor with the rows g that many prompts share, and ``partners``: the n row numbers in
        it. It must not change before the sums are read.
        """
        moved = (weights > 0) & ((erase - want).norm(dim=1) > SAME * erase.norm(dim=1))
        at = moved.nonzero()[:, 0].tolist()
        if not at:
            return
        self.count += len(at)
        if source is None:
            source, partners = want, range(len(want))
        partners = [partners[i] for i in at]
        at = slice(at[0], at[-1] + 1) if at[-1] - at[0] + 1 == len(at) else at  # a slice avoids a copy
        erase, want, weights, instead = (
            erase[at],
            want[at],
            weights[at],
            want[at] if instead is None else instead[at],
        )
        if self._listed:
            self.pairs.append((erase, want, weights))
        if self._ridge:
            self._pairs.add(source, partners, erase, weights)
            if self._differ:
                self._strength_weighted.add(source, partners, erase, weights * strength)
            return
        self._centre += (want.double() * weights[:, None]).sum(dim=0)
        self._centre_weight += weights.sum().item()
        self.rows.append((erase.double() - want.double()).mul_(weights.sqrt()[:, None]))
        self._row_strengths.append(torch.full((len(erase),), strength, dtype=torch.float64))
        if self._substituted:
            self._displacements.append((erase.double() - instead.double()).mul_(weights.sqrt()[:, None]))
        if self.count > solvers.DIRECT_LIMIT:
            self._release()

    def _release(self) -> None:
        """Fold the rows into sums, after they exceed the direct limit."""
        for number, (rows, strengths) in enumerate(zip(self.rows, self._row_strengths)):
            self._difference.add(rows)
            if self._substituted:
                displacements = self._displacements[number]
                self._displacement_gram.add(displacements)
                self._across.addmm_(displacements.T, rows)
                self._across_weighted.addmm_((displacements * strengths[:, None]).T, rows)
            elif self._differ:
                self._strength_weighted.add(rows, strengths)
        self.rows, self._row_strengths, self._displacements = [], [], []

    @property
    def erase(self) -> Gram:
        """``sum a c c^T``, for the ridge."""
        return self._pairs.right

    def add_keep(
        self, rows: Tensor, weights: Tensor, groups: Sequence[int] = (), repeated: bool = False
    ) -> None:
        """Add keep rows ``[n, d]`` with weights ``[n]``. ``groups`` marks the start tokens.

        ``repeated``: the same tensor may be added again and must not change.
        """
        (self.keep.add_repeated if repeated else self.keep.add)(rows, weights)
        starts = [i for i, group in enumerate(groups) if group == BOS]
        self.weight += weights.sum().item() - weights[starts].sum().item()
        if self._listed:
            self.kept.append(rows[weights > 0])
        if starts:
            self._starts += (weights[starts] * rows[starts].double().square().sum(dim=1)).sum().item()

    @property
    def trace(self) -> float:
        """Trace of the keep matrix without its start-token rows, whose very large values would dominate."""
        return self.keep.value().diagonal().sum().item() - self._starts

    @property
    def centre(self) -> Tensor:
        """Mean counterpart row g, ``[1, d]``, for the projection."""
        return (self._centre / max(self._centre_weight, 1e-300))[None]

    @property
    def strengths_differ(self) -> bool:
        return self._differ

    @property
    def energy(self) -> float:
        """Mean squared norm of a keep row, without start tokens."""
        return self.trace / max(self.weight, 1e-300)

    @property
    def targets(self) -> Tensor:
        """``sum a s (g - c) c^T``, ``[d, d]``, for the ridge. s is 1 if the strengths do not differ."""
        pairs = self._strength_weighted if self._differ else self._pairs
        return pairs.value() - pairs.right.value()

    @property
    def row_strengths(self) -> Tensor | None:
        """s of every row of :attr:`rows`, ``[n]``, for the projection.

        None if the strengths do not differ.
        """
        return torch.cat(self._row_strengths) if self._differ else None

    @property
    def displacements(self) -> Tensor | None:
        """``sqrt(a) m`` of every row of :attr:`rows`, ``[n, d]``, for the projection.

        None without substitutes.
        """
        return torch.cat(self._displacements) if self._substituted else None

    @property
    def strength_weighted(self) -> Tensor | None:
        """``sum a s m d^T``, ``[d, d]``, of the folded rows.

        None if all strengths are equal and every m is d.
        """
        if self._substituted:
            return self._across_weighted if self._differ else self._across
        return self._strength_weighted.value() if self._differ else None

    def difference(self) -> Tensor:
        """``sum a d d^T``, ``[d, d]``."""
        if self._ridge:
            cross = self._pairs.value()
            return self.erase.value() - cross - cross.T + self._pairs.left.value()
        if not self.rows:
            return self._difference.value()
        total = Gram(self._difference.width)
        for rows in self.rows:
            total.add(rows)
        return total.value()

    def displaced(self) -> tuple[Tensor, Tensor]:
        """``sum a m m^T`` and ``sum a m d^T``, each ``[d, d]``."""
        if not self._substituted:
            return (self.difference(),) * 2
        if not self.rows:
            return self._displacement_gram.value(), self._across
        total, across = Gram(self._displacement_gram.width), torch.zeros_like(self._across)
        for displacements, rows in zip(self._displacements, self.rows):
            total.add(displacements)
            across.addmm_(displacements.T, rows)
        return total.value(), across
