"""Attention from picture to prompt: the attention maps, and the share of a concept's tokens in them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import TraceError

CHUNK = 64 << 20  #: largest size of attention probabilities in memory, in bytes

#: Queries of the picture ``[b, h, n, d]`` and keys of all tokens, text first, ``[b, h, m, d]``, of one layer
Layer = tuple[Tensor, Tensor]


def _chunks(q: Tensor, k: Tensor) -> list[tuple[int, int]]:
    """Ranges of queries whose probabilities fit :data:`CHUNK`."""
    row = max(1, q.shape[0] * q.shape[1] * k.shape[2] * 4)
    step = max(1, CHUNK // row)
    return [(at, min(at + step, q.shape[2])) for at in range(0, q.shape[2], step)]


def _probabilities(q: Tensor, k: Tensor, columns: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(d))`` at the ``columns [b, m]`` (bool), zero at the others: ``[b, h, n, m]``."""
    scores = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.softmax(dim=-1)[..., : columns.shape[1]] * columns[:, None, None, :]


def _masked_squares(q: Tensor, k: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return (_probabilities(q, k, columns).square() * rows[:, None, :, None]).sum(dim=(1, 2, 3))


def suppression(layers: Sequence[Layer], region: Tensor | None, columns: Tensor) -> Tensor:
    """MACE, eq. 3: ``sum_l ||A_l * M||_F^2`` per sample, over heads, region pixels and concept columns.

    Probabilities are computed in chunks of queries, and again for the gradient.

    Args:
        layers: queries and keys of every layer.
        region: ``[b, 1, h, w]`` at the latent's size, above one half where the concept is; None for
            everywhere.
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
    """Where the picture attends to the concept: its columns' attention, averaged and scaled to 0..1.

    The average is over layers and heads.

    Args:
        layers: queries and keys of every layer.
        columns: ``[b, m]`` bool, the concept's own words.
        shape: height and width of the latent.

    Returns:
        ``[b, 1, h, w]``. Values above one half count as the concept. The map replaces MACE's segmentation by
        another model.
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
    """The region at a layer's resolution, ``[b, n]`` of zeros and ones."""
    small = F.interpolate(region.float(), grid_of(count, region.shape[-2:]), mode="nearest")
    return (small.flatten(1) > 0.5).float()


def grid_of(count: int, shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of a layer with ``count`` pixels, for a latent of size ``shape``.

    Raises:
        TraceError: if the layer's pixels are not a reduction of the latent's.
    """
    height, width = shape
    factor = max(1, round((height * width / count) ** 0.5))
    grid = -(-height // factor), -(-width // factor)
    if grid[0] * grid[1] != count:
        raise TraceError(
            f"an attention layer of {count} pixels does not fit a {height} x {width} latent; choose a size "
            "that divides by 64"
        )
    return grid
