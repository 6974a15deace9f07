"""ANT (arXiv 2504.12782): reverse the guidance of a concept late in the trajectory.

Early in the trajectory the concept's prediction is kept, and the unconditional prediction is kept throughout.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .base import Objective, Term, predicted


def reversed_guidance(predictions: Mapping[str, Tensor], eta: float) -> Tensor:
    """ANT, L_erase: ``p0(0) - eta (p0(c) - p0(0))``."""
    return predictions["uncond"] - eta * (predictions["concept"] - predictions["uncond"])


#: All linear layers, as in the released multi-concept code; the single-concept code trains the whole network.
#: Weights (lambda1, lambda2, lambda3) and t' of 50 steps counted down from the paper's table 6. t' = 43
#: leaves the first 7 of 50 steps unchanged.
_ART = {
    "scope": "linear",
    "eta": 1.0,
    "window": (0.06, 1.0),
    "weights": {"early": 0.4, "uncond late": 0.5, "uncond early": 0.2},
}
#: The paper erases no objects. With the window of persons, two objects tried on demo-sd were not erased, so
#: objects use the window of art.
_PERSON = {**_ART, "window": (0.2, 1.0)}
_EXPLICIT = {
    "scope": "linear",
    "eta": 1.0,
    "window": (0.14, 1.0),
    "weights": {"early": 1.0, "uncond late": 0.5, "uncond early": 0.5},
}

ANT = Objective(
    name="ant",
    source="ANT (arXiv 2504.12782), figure 1 and table 6; the unconditional gradients, dead in the released "
    "code, are active here",
    student="student",
    terms=(
        Term("erase", "erase", "prompt", "late", ("uncond", "concept"), reversed_guidance),
        Term("early", "erase", "prompt", "early", ("concept",), predicted("concept")),
        Term("uncond late", "erase", "uncond", "late", ("uncond",), predicted("uncond")),
        Term("uncond early", "erase", "uncond", "early", ("uncond",), predicted("uncond")),
    ),
    kinds={"object": _ART, "style": _ART, "person": _PERSON, "explicit": _EXPLICIT},
)
