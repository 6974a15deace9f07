"""Attention from the picture to the prompt: who looks at which token, and how much of that is a concept's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import TraceError

CHUNK = 64 << 20  #: bytes of attention probabilities that exist at one time

#: Of one layer: queries of the picture ``[b, h, n, d]``, keys of all tokens with the text's first ``[b, h, m,
#: d]``
Layer = tuple[Tensor, Tensor]


def _chunks(q: Tensor, k: Tensor) -> list[tuple[int, int]]:
    """Ranges of queries whose probabilities fit into :data:`CHUNK`."""
    row = max(1, q.shape[0] * q.shape[1] * k.shape[2] * 4)
    step = max(1, CHUNK // row)
    return [(at, min(at + step, q.shape[2])) for at in range(0, q.shape[2], step)]


def _probabilities(q: Tensor, k: Tensor, columns: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(d))`` at some columns, the others zero: ``[b, h, n, m]``; ``columns [b, m]``
    bool.
    """
    scores = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.softmax(dim=-1)[..., : columns.shape[1]] * columns[:, None, None, :]


def _masked_squares(q: Tensor, k: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return (_probabilities(q, k, columns).square() * rows[:, None, :, None]).sum(dim=(1, 2, 3))


def suppression(layers: Sequence[Layer], region: Tensor | None, columns: Tensor) -> Tensor:
    """MACE, eq. 3: ``sum_l ||A_l * M||_F^2`` of every sample, over heads, the region's pixels and the
    concept's columns.

    Probabilities are computed in chunks of queries and, for the gradient, a second time.

    Args:
        layers: queries and keys of every layer.
        region: ``[b, 1, h, w]`` of the latent, above one half where the concept is; None for everywhere.
        columns: ``[b, m]`` bool, the concept's text rows.

    Returns:
        ``[b]``.
    """
    total = torch.zeros(len(columns), device=columns.device)
    for q, k in layers:
        rows = (
            torch.ones(len(q), q.shape[2], device=q.device) if region is None else _rows(region, q.shape[2])
        )
        for start, end in _chunks(q, k):
            part = q[:, :, start:end], k, rows[:, start:end], columns
            total = total + (
                checkpoint(_masked_squares, *part, use_reentrant=False)
                if q.requires_grad or k.requires_grad
                else _masked_squares(*part)
            )
    return total


@torch.no_grad()
def focus_region(layers: Sequence[Layer], columns: Tensor, shape: tuple[int, int]) -> Tensor:
    """Where the picture looks at the concept: the mean over layers and heads of its columns' attention, 0..1
    of its range.

    Args:
        layers: queries and keys of every layer.
        columns: ``[b, m]`` bool, the concept's own words.
        shape: height and width of the latent.

    Returns:
        ``[b, 1, h, w]``; above one half is taken for the concept. It stands in for the segmentation that MACE
        asks another model for.
    """
    total = torch.zeros(len(columns), 1, *shape, device=columns.device)
    for q, k in layers:
        mass = torch.cat(
            [_probabilities(q[:, :, a:b], k, columns).sum(dim=-1).mean(dim=1) for a, b in _chunks(q, k)],
            dim=1,
        )
        total += F.interpolate(
            mass.view(len(mass), 1, *grid_of(mass.shape[1], shape)), shape, mode="bilinear"
        )
    low, high = (f(total.flatten(1), dim=1).view(-1, 1, 1, 1) for f in (torch.amin, torch.amax))
    return (total - low) / (high - low).clamp_min(1e-12)


def _rows(region: Tensor, count: int) -> Tensor:
    """The region at a layer's resolution, ``[b, n]`` of 0 and 1."""
    small = F.interpolate(region.float(), grid_of(count, region.shape[-2:]), mode="nearest")
    return (small.flatten(1) > 0.5).float()


def grid_of(count: int, shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of a layer with so many pixels, on a latent of ``shape``.

    Raises:
        TraceError: if the layer's pixels are no reduction of the latent's.
    """
    height, width = shape
    factor = max(1, round((height * width / count) ** 0.5))
    grid = -(-height // factor), -(-width // factor)
    if grid[0] * grid[1] != count:
        raise TraceError(
            f"{count} pixels in an attention layer are no {height} x {width} latent; choose a size that "
            "divides by 64"
        )
    return grid
