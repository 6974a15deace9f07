"""Windows of the sampling trajectory, as fractions of the schedule: 0 is noise, 1 the picture."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import TraceError

DECIDED = 0.5  #: share of a concept's total change of x0 that precedes the start of the window
LATEST = 0.5  #: latest start; a later window edits only detail (ANT, arXiv 2504.12782, figure 3)


def check_window(start: float, end: float) -> None:
    """Refuse an invalid window.

    Raises:
        TraceError: naming both ends.
    """
    if not 0 <= start < end <= 1:
        raise TraceError(
            f"the window is {start} to {end}; it must be 0 <= start < end <= 1, as fractions of the schedule"
        )


def inside(percent: Tensor, window: tuple[float, float], when: str) -> Tensor:
    """Mask of points ``late`` (in the window), ``early`` (before it), or ``all``: ``[n]`` bool."""
    if when == "all":
        return torch.ones_like(percent, dtype=torch.bool)
    return percent < window[0] if when == "early" else (percent >= window[0]) & (percent <= window[1])


def influence(points) -> tuple[Tensor, Tensor]:
    """A concept's change of x0 per noise level: ``sigma^2 ||p0(c) - p0(g)||^2``, a mean over trajectories.

    The early steps look unimportant in prediction space but are important, because an error of the prediction
    moves x0 by sigma times the error.

    Returns:
        the percents in ascending order ``[k]``, and the influence at each ``[k]``.
    """
    difference = points.predictions["concept"].float() - points.predictions["neutral"].float()
    size = points.sigma**2 * difference.square().mean(dim=(1, 2, 3))
    percents = points.percent.unique()
    return percents, torch.stack([size[points.percent == p].mean() for p in percents])


def auto_window(points) -> tuple[float, float]:
    """The window from the point where :data:`DECIDED` of a concept's influence has passed, to the end.

    Earlier influence is left to the closed form, because a finetune there would change the layout of every
    picture.

    Args:
        points: points on the base model's own trajectories of the concept, with predictions ``concept`` and
            ``neutral``.
    """
    percents, size = influence(points)
    widths = torch.diff(percents, append=torch.ones(1))
    share = (size * widths).cumsum(0) / (size * widths).sum().clamp_min(1e-30)
    start = percents[int((share < DECIDED).sum().clamp_max(len(percents) - 1))].item()
    return round(min(start, LATEST), 3), 1.0
