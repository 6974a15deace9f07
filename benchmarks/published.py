"""The published closed form, written from the papers: what the library's is timed against."""

from __future__ import annotations

import torch
from synthetic import Clock


class Published:
    """``W' = (sum a W g c^T + sum b W p p^T + lambda W)(sum a c c^T + sum b p p^T + lambda I)^-1``, for
    one matrix.
    """

    def __init__(self, weight: torch.Tensor, form: str):
        self.weight, self.form, self.seconds = weight, form, 0.0
        self.values = torch.zeros_like(weight)
        self.grams = torch.zeros(weight.shape[1], weight.shape[1], dtype=weight.dtype)

    def add(self, batch: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], stacked) -> None:
        begin = Clock.now()
        if self.form == "batched":
            c, g, a = stacked
            weighted = (c * a[..., None]).mT
            self.values += torch.bmm((g @ self.weight.T).mT * a[:, None], c).sum(0)
            self.grams += torch.bmm(weighted, c).sum(0)
        for c, g, a in batch if self.form != "batched" else ():
            value, weighted = (g @ self.weight.T) * a[:, None], c * a[:, None]
            if self.form == "loop":
                self.values.addmm_(value.T, c)
                self.grams.addmm_(weighted.T, c)
            else:
                self.values += (value[:, :, None] @ c[:, None, :]).sum(0)
                self.grams += (weighted[:, :, None] @ c[:, None, :]).sum(0)
        self.seconds += Clock.now() - begin

    def change(self, lam: float) -> torch.Tensor:
        """W' - W."""
        begin = Clock.now()
        eye = torch.eye(len(self.grams), dtype=self.grams.dtype)
        edited = (self.values + lam * self.weight) @ torch.inverse(self.grams + lam * eye)
        self.seconds += Clock.now() - begin
        return edited - self.weight


def stack(batch):
    """Prompts of one batch as ``[prompts, rows, d]``, padded with rows of weight 0 to the longest."""
    return [torch.nn.utils.rnn.pad_sequence(parts, batch_first=True) for parts in zip(*batch)]
