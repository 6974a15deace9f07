"""ESD (arXiv 2303.07345): negative guidance at every time step, on trajectories of the unerased model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .base import Objective, Term


def negative_guidance(predictions: Mapping[str, Tensor], eta: float) -> Tensor:
    """ESD, eq. 7: ``p0(0) - eta (p0(c) - p0(0))``. The eta of the paper's later code is larger by one."""
    return predictions["uncond"] - eta * (predictions["concept"] - predictions["uncond"])


ESD = Objective(
    name="esd",
    source="ESD (arXiv 2303.07345), eq. 7; ESD-x: scope text, no window, no keep term",
    student="base",
    terms=(Term("erase", "erase", "prompt", "all", ("uncond", "concept"), negative_guidance),),
    kinds={kind: {"eta": 1.0, "window": (0.0, 1.0)} for kind in ("object", "style", "person", "explicit")},
)
