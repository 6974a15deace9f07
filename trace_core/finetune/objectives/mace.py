"""MACE (arXiv 2403.06135), section 3.2: suppress the attention to a concept inside the concept's region."""

from __future__ import annotations

import torch
from torch import Tensor

from ...text.kinds import KINDS
from .base import Objective, Term

FOCUS = (0.2, 0.4, 50.0)  #: t1, t2 and gamma on a time of 0..1 (the paper's 200, 400 and 0.05 of 1,000 steps)


def focal_density(t: Tensor) -> Tensor:
    """MACE, eq. 5 without its constant: ``s(gamma (t - t1)) - s(gamma (t - t2))``, s the logistic function.

    Args:
        t: ``[n]`` time, 0 clean and 1 noise.
    """
    first, last, gamma = FOCUS
    return torch.sigmoid(gamma * (t - first)) - torch.sigmoid(gamma * (t - last))


#: Cross-attention keys and values (the released code trains both; only keys shape the maps). Each concept has
#: one LoRA, fused later. No term keeps anything else; the paper's low learning rate limits the drift.
_PAPER = {"scope": "text", "eta": 0.0, "window": (0.0, 1.0), "lr": 1e-4}
#: Neither the paper nor its code supports FLUX. At the paper's rate, text columns hardly lose attention
#: there. EraseAnything trains the same loss on FLUX at 1e-3.
_FLUX = {"lr": 5e-4}

MACE = Objective(
    name="mace",
    source="MACE (arXiv 2403.06135), eq. 3 and eq. 5; the region is the concept's own attention instead of "
    "another model's segmentation",
    student="base",
    terms=(
        Term("attention", "erase", "prompt", "all", ("region",), None, attention=True, focus=focal_density),
    ),
    kinds=dict.fromkeys(KINDS, _PAPER),
    transformer=dict.fromkeys(KINDS, _FLUX),
)
