"""GEM (arXiv 2606.00140): leave the concept's prediction until the anchor's is nearer, then stop.

The loss reads the student's prediction on the concept's prompt, and the base model's on the concept's prompt
and on the anchor, which is the empty prompt.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...text.kinds import KINDS
from .base import Objective, Term

GAMMA = 100.0  #: weight of the loss
WINDOW = 10 / 28  #: the first 10 steps of SD 3's 28, as a share of the schedule


def nearer_to_anchor(
    prediction: Tensor, predictions: Mapping[str, Tensor], sigma: Tensor, eta: float
) -> Tensor:
    """GEM's loss per sample: ``max(0, ||v(c) - v0(a)|| - eta ||v(c) - v0(c)||)``, ``[n]``.

    The norms are those of a whole prediction. At ``eta`` 1 the loss is zero on the anchor's side of the plane
    in the middle between both references.
    """
    to_anchor = (prediction - predictions["uncond"]).flatten(1).norm(dim=1)
    to_concept = (prediction - predictions["concept"]).flatten(1).norm(dim=1)
    return (to_anchor - eta * to_concept).clamp_min(0)


#: The paper trains queries and keys of FLUX's dual blocks, and no UNet. The nearest scope is ``keys``:
#: queries and keys of the text's stream, and in a UNet the keys of the cross-attention. 25 updates of one
#: trajectory each are the paper's 250 latents.
_PAPER = {
    "scope": "keys",
    "eta": 1.0,
    "window": (0.0, WINDOW),
    "lr": 1e-3,
    "steps": 25,
    "trajectories": 1,
    "refresh": 1,
    "sampling_steps": 28,
}

GEM = Objective(
    name="gem",
    source="GEM (arXiv 2606.00140), loss and values of the released code; the anchor is the empty prompt, "
    "and the learning rate warms up and falls as in every finetune here",
    student="student",
    whole=True,
    overshoot=False,
    terms=(
        Term(
            "erase",
            "erase",
            "prompt",
            "late",
            ("uncond", "concept"),
            None,
            weight=GAMMA,
            error=nearer_to_anchor,
        ),
    ),
    kinds=dict.fromkeys(KINDS, _PAPER),
)
