"""TRACE (arXiv 2505.23312), stage 2: late in the trajectory, steer the rest of the concept to neutral."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .base import Objective, Term, predicted


def erase_target(predictions: Mapping[str, Tensor], eta: float) -> Tensor:
    """TRACE's late target ``p0(g) - eta (p0(c) - p0(g))``: neutral, or past neutral by eta.

    g is the same prompt with the concept's anchor or substitute (see :mod:`trace_core.text.substitutes`), or
    without the concept. TRACE and ANT use the empty prompt instead, whose pictures lack the style and setting
    that the prompt asked for.
    """
    neutral = predictions["neutral"]
    return neutral - eta * (predictions["concept"] - neutral) if eta else neutral


TRACE = Objective(
    name="trace",
    source="TRACE (arXiv 2505.23312), stage 2; on-policy refresh and neutral target measured here",
    student="student",
    terms=(
        Term("erase", "erase", "prompt", "late", ("neutral", "concept"), erase_target, share=0.35),
        Term("keep", "keep", "prompt", "all", ("concept",), predicted("concept"), share=0.45),
        Term("uncond", "keep", "uncond", "all", ("uncond",), predicted("uncond"), weight=0.5, share=0.1),
        Term("early", "erase", "prompt", "early", ("start",), predicted("start"), share=0.1),
    ),
    # past neutral, a negative prompt would draw the concept; a substitute replaces the overshoot
    kinds={
        "object": {"eta": 0.0},
        # a style depends on the whole schedule, so there is more to learn
        "style": {"eta": 0.0, "window": (0.0, 1.0), "longer": 2},
        "person": {"eta": 0.0},
        "explicit": {"eta": 0.0},
    },
    # layers behind the text layers bind two things, and everything with one of the two must stay
    combined={"scope": "attention", "weights": {"keep": 3.0}, "longer": 3, "wider": 4},
)
