"""The edit: a low-rank change of the text space, shared by every layer that reads it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class ContextEdit:
    """``dW = W U V^T`` for every text-reading weight W, which equals mapping the text rows by ``I + U V^T``.

    Attributes:
        U: ``[d, r]`` float64.
        V: ``[d, r]`` float64.
    """

    U: Tensor
    V: Tensor

    @property
    def rank(self) -> int:
        return self.U.shape[1]

    @property
    def is_empty(self) -> bool:
        return not self.rank

    def then(self, other: ContextEdit) -> ContextEdit:
        """This edit followed by another that was computed on top of it.

        ``(I + U1 V1^T)(I + U2 V2^T) = I + [U1, U2 + U1 V1^T U2] [V1, V2]^T``.
        """
        return ContextEdit(
            torch.cat([self.U, other.U + self.U @ (self.V.T @ other.U)], 1), torch.cat([self.V, other.V], 1)
        )

    def factors(
        self, weight: Tensor, columns: int | None = None, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """LoRA factors for one weight ``[out, in]``: ``up [out, r]``, ``down [r, in]``, in ``dtype``.

        Only the first ``columns`` inputs are text (SDXL's pooled vector), and the others get zeros. For every
        rank both factors get the same norm, which keeps them in the range of float16. If U is the identity,
        the factors are W and V^T up to a power of two, and all layers with only text inputs share one
        ``down``.
        """
        columns = weight.shape[1] if columns is None else columns
        if self.is_plain:
            scale, rows = self._scaled_rows
            if dtype not in self._rounded:
                self._rounded[dtype] = rows.to(dtype)
            up, rows = weight[:, :columns].float(), self._rounded[dtype]
            up = (up if scale == 1 else up * scale).to(dtype)
        else:
            up = weight[:, :columns].double() @ self.U.to(weight.device)
            return balanced(up, self.V.T.to(weight.device), weight.shape[1], dtype)
        if columns == weight.shape[1]:
            return up, rows
        down = torch.zeros(self.rank, weight.shape[1], dtype=dtype, device=rows.device)
        down[:, :columns] = rows
        return up, down

    @cached_property
    def _scaled_rows(self) -> tuple[float, Tensor]:
        """A power of two s near ``sqrt(max |V|)``, and ``V^T / s`` in float32, contiguous by rows."""
        scale = 2.0 ** round(math.log2(self.V.abs().max().clamp_min(1e-30).item()) / 2)
        return scale, (self.V.T / scale).float().contiguous()

    @cached_property
    def _rounded(self) -> dict[torch.dtype, Tensor]:
        """The rows of :attr:`_scaled_rows` in other precisions, filled on use."""
        return {}

    @cached_property
    def is_plain(self) -> bool:
        """Whether U is the identity (an edit of full rank), so that ``W U`` needs no product."""
        return self.rank == len(self.U) and torch.equal(
            self.U, torch.eye(self.rank, dtype=self.U.dtype, device=self.U.device)
        )

    def map(self, rows: Tensor) -> Tensor:
        """Rows ``[n, d]`` as the edited network effectively reads them: ``c + U V^T c``."""
        rows = rows.double()
        return rows + rows @ self.V @ self.U.T


class LayerEdits:
    """An edit of every layer by itself, ``dW = left right`` with factors that depend on the layer's W.

    Attributes:
        rank: the largest rank of the layers solved so far.
    """

    is_empty = is_plain = False

    def __init__(self, solve: Callable[[Tensor], tuple[Tensor, Tensor]]):
        """``solve``: text columns W ``[out, d]`` float64 -> ``left [out, r]``, ``right [r, d]`` float64."""
        self._solve, self.rank = solve, 0

    def factors(
        self, weight: Tensor, columns: int | None = None, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """LoRA factors as those of :meth:`ContextEdit.factors`."""
        columns = weight.shape[1] if columns is None else columns
        left, right = self._solve(weight[:, :columns].double().cpu())
        self.rank = max(self.rank, left.shape[1])
        return balanced(left, right, weight.shape[1], dtype)

    def then(self, other: ContextEdit) -> LayerEdits:
        """These edits followed by an edit of the text rows: ``(W + left right)(I + U V^T)``."""

        def both(W: Tensor) -> tuple[Tensor, Tensor]:
            left, right = self._solve(W)
            return torch.cat([left, W @ other.U + left @ (right @ other.U)], 1), torch.cat([right, other.V.T])

        return LayerEdits(both)


def balanced(up: Tensor, rows: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Factors with equal norms per rank, in range of float16. ``down`` gets zeros up to ``width``."""
    balance = (up.norm(dim=0) / rows.norm(dim=1).clamp_min(1e-300)).sqrt()
    balance = torch.where(balance > 0, balance, torch.ones_like(balance))
    up, rows = (up / balance).float().to(dtype), (rows * balance[:, None]).float().to(dtype)
    if rows.shape[1] == width:
        return up, rows
    down = torch.zeros(len(rows), width, dtype=dtype, device=rows.device)
    down[:, : rows.shape[1]] = rows
    return up, down
