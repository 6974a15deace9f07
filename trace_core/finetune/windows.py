"""Windows of the sampling trajectory, in percent of the schedule: 0 is pure noise, 1 the finished picture."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import TraceError

DECIDED = 0.5  #: share of a concept's whole change of x0 that must lie behind the start of the window
LATEST = 0.5  #: a window that starts later edits detail only (ANT, arXiv 2504.12782, figure 3)


def check_window(start: float, end: float) -> None:
    """Refuse what is no window.

    Raises:
        TraceError: naming both ends.
    """
    if not 0 <= start < end <= 1:
        raise TraceError(
            f"the window is {start} to {end}; it must be 0 <= start < end <= 1, in percent of the schedule "
            "/ 100"
        )


def inside(percent: Tensor, window: tuple[float, float], when: str) -> Tensor:
    """Which points are ``late`` (in the window), ``early`` (before it), or ``all``: ``[n]`` bool."""
    if when == "all":
        return torch.ones_like(percent, dtype=torch.bool)
    return percent < window[0] if when == "early" else (percent >= window[0]) & (percent <= window[1])


def influence(points) -> tuple[Tensor, Tensor]:
    """How much of x0 a concept changes at each noise level: ``sigma^2 ||p0(c) - p0(g)||^2``, a mean over
    trajectories.

    In prediction space the early steps look unimportant, and are not: there an error of the prediction moves
    x0 by sigma times it.

    Returns:
        the percents in ascending order ``[k]``, and the influence at each ``[k]``.
    """
    difference = points.predictions["concept"].float() - points.predictions["neutral"].float()
    size = points.sigma**2 * difference.square().mean(dim=(1, 2, 3))
    percents = points.percent.unique()
    return percents, torch.stack([size[points.percent == p].mean() for p in percents])


def auto_window(points) -> tuple[float, float]:
    """From where :data:`DECIDED` of a concept's influence lies behind, to the end.

    What is decided before is the closed form's work; there a finetune would change the layout of everything.

    Args:
        points: on the base model's own trajectories of the concept, with predictions ``concept`` and
            ``neutral``.
    """
    percents, size = influence(points)
    widths = torch.diff(percents, append=torch.ones(1))
    share = (size * widths).cumsum(0) / (size * widths).sum().clamp_min(1e-30)
    start = percents[int((share < DECIDED).sum().clamp_max(len(percents) - 1))].item()
    return round(min(start, LATEST), 3), 1.0
