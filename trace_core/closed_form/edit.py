"""The edit: a low-rank change of the text space that serves every layer that reads it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ContextEdit:
    """``dW = W U V^T`` for every text-consuming weight W: the same as mapping the context by ``I + U V^T``.

    Attributes:
        U: ``[d, r]`` float64.
        V: ``[d, r]`` float64.
    """

    U: Tensor
    V: Tensor

    @property
    def rank(self) -> int:
        return self.U.shape[1]

    def factors(self, weight: Tensor, columns: int | None = None) -> tuple[Tensor, Tensor]:
        """LoRA factors of the edit for one weight ``[out, in]``: ``up [out, r]``, ``down [r, in]``, float32.

        Only the first ``columns`` inputs are text (SDXL's pooled vector); the others get zeros. The two factors of every
        rank are given the same norm, so that neither leaves the range of float16.
        """
        columns = weight.shape[1] if columns is None else columns
        up = weight[:, :columns].double() @ self.U.to(weight.device)
        down = torch.zeros(self.rank, weight.shape[1], dtype=torch.float64, device=weight.device)
        down[:, :columns] = self.V.T.to(weight.device)
        balance = (up.norm(dim=0) / down.norm(dim=1).clamp_min(1e-300)).sqrt()
        balance = torch.where(balance > 0, balance, torch.ones_like(balance))
        return (up / balance).float(), (down * balance[:, None]).float()

    def map(self, rows: Tensor) -> Tensor:
        """Rows ``[n, d]`` as the edited network sees them: ``c + U V^T c``."""
        rows = rows.double()
        return rows + rows @ self.V @ self.U.T
