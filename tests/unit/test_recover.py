"""RECE's adversarial rows against an independent dense evaluation."""

from __future__ import annotations

import pytest
import torch

from trace_core.evaluate.recover import Rewritten, adversarial_map


def layers(count: int, seed: int, d: int = 12) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(20 + i, d, generator=generator, dtype=torch.float64) for i in range(count)]


@pytest.mark.parametrize("strength", [0.1, 1e-3])
def test_adversarial_row_is_the_minimum(strength):
    """c' minimises ``sum ||W' c' - W c||^2 + lambda ||c'||^2``: by the stacked least squares problem,
    float64.
    """
    before, after, c = layers(3, 0), layers(3, 1), torch.randn(12, dtype=torch.float64)
    found = adversarial_map(before, after, strength) @ c
    stacked = torch.cat([*after, strength**0.5 * torch.eye(12, dtype=torch.float64)])
    wanted = torch.cat([*(w @ c for w in before), torch.zeros(12, dtype=torch.float64)])
    expected = torch.linalg.lstsq(stacked, wanted[:, None]).solution[:, 0]
    assert (found - expected).norm() <= 1e-8 * expected.norm()


def test_an_erasure_of_what_no_layer_needs_is_undone():
    """Where W' = W E with an invertible E, c' -> E^-1 c: nothing was erased, only moved."""
    before, E = layers(2, 2), torch.linalg.qr(layers(1, 3)[0][:12]).Q
    found = adversarial_map(before, [w @ E for w in before], 1e-12)
    assert (found - E.T).norm() <= 1e-8 * E.norm()


def test_the_empty_prompt_is_not_rewritten():
    class Clip:
        def tokenize(self, text):
            return text

        def encode_from_tokens(self, tokens, return_pooled=True):
            return torch.ones(1, 2, 3), torch.ones(1, 4)

    clip = Rewritten(
        Clip(),
        {"context": 2 * torch.eye(3, dtype=torch.float64), "pooled": 3 * torch.eye(4, dtype=torch.float64)},
    )
    for text, factors in (("", (1, 1)), ("cat", (2, 3))):
        rows, pooled = clip.encode_from_tokens(clip.tokenize(text))
        assert (rows == factors[0]).all() and (pooled == factors[1]).all()
