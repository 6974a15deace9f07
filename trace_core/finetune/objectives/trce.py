"""TRCE (arXiv 2503.07389), stage 2: a margin loss early in the trajectory.

The prediction must be closer to the safe prediction than to the concept's prediction, by a margin.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .base import Objective, Term, predicted

GUIDANCE = 15.0  #: amplification of both references
MARGIN = 0.01


def amplified(predictions: Mapping[str, Tensor], name: str) -> Tensor:
    """``p0(y) + 15 (p0(y) - p0(0))``: a prediction, pushed away from the unconditional prediction."""
    return predictions[name] + GUIDANCE * (predictions[name] - predictions["uncond"])


def contrast(
    prediction: Tensor, predictions: Mapping[str, Tensor], sigma: Tensor, eta: float = 0.0
) -> Tensor:
    """TRCE's margin loss per sample: ``max(0, ||e - prefer||^2 - ||e - reject||^2 + m)``, ``[n]``.

    The norms are means over the numbers of a prediction.
    """
    near = (prediction - amplified(predictions, "neutral")).square().mean(dim=(1, 2, 3))
    far = (prediction - amplified(predictions, "concept")).square().mean(dim=(1, 2, 3))
    return (near - far + MARGIN).clamp_min(0)


def plain_error(
    prediction: Tensor, predictions: Mapping[str, Tensor], sigma: Tensor, eta: float = 0.0
) -> Tensor:
    """``||e - p_1(0)||^2`` per sample against the model after stage 1, mean over numbers; ``[n]``."""
    return (prediction - predictions["start uncond"]).square().mean(dim=(1, 2, 3))


_STEER = ("neutral", "concept", "uncond")
#: The noisier half of the schedule, and layers that do not read the text, so that stage 1 stays as it is
_PAPER = {"scope": "image", "eta": 0.0, "window": (0.0, 0.5)}

TRCE = Objective(
    name="trce",
    source="TRCE (arXiv 2503.07389), stage 2; gradients are cleared at every step, and latents keep "
    "their own times",
    student="base",
    unconditional=True,
    terms=(
        Term("steer", "erase", "prompt", "late", _STEER, None, weight=0.5, error=contrast),
        Term("steer uncond", "erase", "uncond", "late", _STEER, None, weight=0.5, error=contrast),
        Term(
            "preserve",
            "keep",
            "uncond",
            "all",
            ("start uncond",),
            predicted("start uncond"),
            weight=100.0,
            share=2.0,
            error=plain_error,
        ),
    ),
    kinds=dict.fromkeys(("object", "style", "person", "explicit"), _PAPER),
)
