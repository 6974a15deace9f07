"""Saliency maps of a finetune: the weights that matter for every prompt and every seed."""

from __future__ import annotations

import torch
from torch import Tensor


def largest(values: Tensor, share: float) -> Tensor:
    """Bool mask of the largest ``share`` of a tensor's entries, at least one."""
    count = max(1, round(share * values.numel()))
    return values >= values.flatten().kthvalue(values.numel() - count + 1).values


def joint_masks(maps: list[Tensor] | None, gradients: list[Tensor], share: float) -> list[Tensor]:
    """ANT, section 3.3: the masks so far, and the largest ``share`` of each layer's ``|gradient|``."""
    found = [largest(g.abs(), share) for g in gradients]
    return found if maps is None else [a & b for a, b in zip(maps, found)]


def trained_share(masks: list[Tensor]) -> float:
    """Share of the entries that the masks leave to the training."""
    return sum(int(m.sum()) for m in masks) / sum(torch.numel(m) for m in masks)
