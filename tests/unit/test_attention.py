"""The loss on attention maps, against maps written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trace_core.errors import TraceError
from trace_core.finetune import attention
from trace_core.finetune.attention import focus_region, grid_of, suppression

B, H, D, M = 2, 3, 5, 11


def layer(pixels: int, seed: int, keys: int = M):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(B, H, n, D, generator=generator, dtype=torch.float64) for n in (pixels, keys))


def maps(q, k):
    """``softmax(q k^T / sqrt(d))``, number by number, ``[b, h, n, m]``."""
    scores = np.einsum("bhnd,bhmd->bhnm", q.numpy(), k.numpy()) / np.sqrt(D)
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self.double())


COLUMNS = torch.tensor([[False] * 3 + [True] * 2 + [False] * 6, [False] + [True] * 3 + [False] * 7])


@pytest.mark.parametrize("chunk", [1, 500, 64 << 20])
def test_suppression_is_maces_sum_of_squares(monkeypatch, chunk):
    """MACE, eq. 3: squares of what heads and the region's pixels give the concept's columns, over all
    layers.
    """
    monkeypatch.setattr(attention, "CHUNK", chunk)
    layers = [layer(16, 0), layer(4, 1)]
    region = torch.zeros(B, 1, 4, 4, dtype=torch.float64)
    region[0, :, :2] = 1
    region[1, :, 2:, 2:] = 0.9
    wanted = np.zeros(B)
    for (q, k), edge in zip(layers, (4, 2)):
        rows = region[:, 0, :: 4 // edge, :: 4 // edge].reshape(B, -1).numpy() > 0.5
        mask = rows[:, None, :, None] & COLUMNS.numpy()[:, None, None, :]
        wanted += ((maps(q, k) * mask) ** 2).sum(axis=(1, 2, 3))
    assert np.abs(suppression(layers, region, COLUMNS).numpy() - wanted).max() < 1e-8


def test_text_columns_come_first_where_the_picture_is_a_key_too():
    """FLUX: softmax over text and picture, the loss on the text's columns alone."""
    q, k = layer(16, 2, keys=M + 16)
    mask = np.concatenate([COLUMNS.numpy(), np.zeros((B, 16), bool)], axis=1)[:, None, None, :]
    wanted = ((maps(q, k) * mask) ** 2).sum(axis=(1, 2, 3))
    assert np.abs(suppression([(q, k)], None, COLUMNS).numpy() - wanted).max() < 1e-8


@pytest.mark.parametrize("chunk", [1, 64 << 20])
def test_gradient_is_the_slope(monkeypatch, chunk):
    monkeypatch.setattr(attention, "CHUNK", chunk)
    q, k = layer(4, 3)
    direction = torch.randn(k.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    k.requires_grad_()
    (gradient,) = torch.autograd.grad(suppression([(q, k)], None, COLUMNS).sum(), k)
    with torch.no_grad():
        ends = [suppression([(q, k + s * direction)], None, COLUMNS).sum().item() for s in (1e-5, -1e-5)]
    assert (gradient * direction).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


def test_region_is_where_the_picture_looks():
    """One pixel whose query is the concept's key."""
    k = torch.eye(8, dtype=torch.float64).expand(1, 1, 8, 8)
    q = torch.zeros(1, 1, 16, 8, dtype=torch.float64)
    q[..., 5, 3] = 60.0
    columns = torch.arange(8)[None] == 3
    region = focus_region([(q, k)], columns, (4, 4))
    assert region.shape == (1, 1, 4, 4) and region.amin() == 0 and region.amax() == 1
    assert (region[0, 0] > 0.5).nonzero().tolist() == [[1, 1]]


def test_layers_that_are_no_reduction_of_the_latent_are_refused():
    assert grid_of(6, (4, 6)) == (2, 3) and grid_of(24, (4, 6)) == (4, 6) and grid_of(4, (8, 8)) == (2, 2)
    with pytest.raises(TraceError, match="an attention layer of 5 pixels does not fit a 4 x 4 latent"):
        grid_of(5, (4, 4))
