"""TRACE (arXiv 2505.23312), stage 2: late in the trajectory, steer what is left of the concept to neutral."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .base import Objective, Term, predicted


def erase_target(predictions: Mapping[str, Tensor], eta: float) -> Tensor:
    """TRACE's late target ``p0(g) - eta (p0(c) - p0(g))``: neutral, or past it by eta.

    g is the same prompt with the concept's anchor or substitute (see :mod:`trace_core.text.substitutes`), or
    without the concept; TRACE and ANT take the empty prompt, whose pictures have neither the style nor the
    setting that the prompt asked for.
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
    # past neutral the concept would be drawn where it is the negative prompt; a substitute makes up for it
    kinds={
        "object": {"eta": 0.0},
        # all of the schedule decides a style: there is more to learn
        "style": {"eta": 0.0, "window": (0.0, 1.0), "longer": 2},
        "person": {"eta": 0.0},
        "explicit": {"eta": 0.0},
    },
    # what binds two things is in deeper layers than the text's, and all that has one of them must stay
    combined={"scope": "attention", "weights": {"keep": 3.0}, "longer": 3, "wider": 4},
)
