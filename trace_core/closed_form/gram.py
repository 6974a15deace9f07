"""Streaming Gram matrices, so that a thousand concepts fit in memory."""

from __future__ import annotations

import torch
from torch import Tensor


class Gram:
    """``sum_i w_i x_i x_i^T`` over rows added bit by bit, in float64.

    Rows are collected and folded in blocks: one matrix product for many prompts instead of one for each.
    """

    BLOCK = 8192  #: rows held before they are folded in

    def __init__(self, width: int, device: torch.device | str = "cpu"):
        self.width = width
        self.count = 0
        self._sum = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._waiting: list[Tensor] = []
        self._held = 0

    def add(self, rows: Tensor, weights: Tensor | float = 1.0) -> None:
        """Add rows ``[n, d]`` with non-negative weights ``[n]`` (or one for all)."""
        if rows.shape[0] == 0:
            return
        scale = torch.as_tensor(weights, dtype=torch.float64, device=self._sum.device).sqrt()
        rows = rows.to(self._sum.device, torch.float64)
        self._waiting.append(rows * (scale[:, None] if scale.ndim else scale))
        self.count += rows.shape[0]
        self._held += rows.shape[0]
        if self._held >= self.BLOCK:
            self._fold()

    def _fold(self) -> None:
        if self._waiting:
            block = torch.cat(self._waiting)
            self._sum.addmm_(block.T, block)
            self._waiting, self._held = [], 0

    def value(self) -> Tensor:
        """The sum so far, ``[d, d]`` float64 (not a copy)."""
        self._fold()
        return self._sum
