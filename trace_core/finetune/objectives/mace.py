"""MACE (arXiv 2403.06135), section 3.2: the attention to a concept is suppressed where the concept is."""

from __future__ import annotations

import torch
from torch import Tensor

from ...text.kinds import KINDS
from .base import Objective, Term

FOCUS = (0.2, 0.4, 50.0)  #: t1, t2 and gamma on a time of 0..1 (the paper's 200, 400 and 0.05 of 1,000 steps)


def focal_density(t: Tensor) -> Tensor:
    """MACE, eq. 5, without its constant: ``s(gamma (t - t1)) - s(gamma (t - t2))``, s the logistic function.

    Args:
        t: ``[n]`` time, 0 clean and 1 noise.
    """
    first, last, gamma = FOCUS
    return torch.sigmoid(gamma * (t - first)) - torch.sigmoid(gamma * (t - last))


#: Cross-attention keys and values (the released code trains both; only keys shape the maps). One LoRA a
#: concept, fused later. No term holds on to anything else: the paper's low rate does.
_PAPER = {"scope": "text", "eta": 0.0, "window": (0.0, 1.0), "lr": 1e-4}
#: Neither paper nor code has FLUX. At that rate its text columns hardly lose attention; EraseAnything trains
#: the same loss there at 1e-3.
_FLUX = {"lr": 5e-4}

MACE = Objective(
    name="mace",
    source="MACE (arXiv 2403.06135), eq. 3 and eq. 5; the region is the concept's own attention, not "
    "another model's segmentation",
    student="base",
    terms=(
        Term("attention", "erase", "prompt", "all", ("region",), None, attention=True, focus=focal_density),
    ),
    kinds=dict.fromkeys(KINDS, _PAPER),
    flux=dict.fromkeys(KINDS, _FLUX),
)
