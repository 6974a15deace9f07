"""The share of pictures that show what no prompt names, and the prediction without it."""

from __future__ import annotations

import pytest
import torch

from trace_core.errors import TraceError
from trace_core.finetune.implied import LEAST, MOST, share_of, without
from trace_core.finetune.options import FinetuneConfig


def predictions(share: float) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Those of a prompt that draws the concept with this probability, and the one without the concept."""
    n, t = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {"concept": share * t + (1 - share) * n, "neutral": t, "whole": t - n}, n


@pytest.mark.parametrize("share", [0.25, 0.5, 0.85])
def test_the_mixture_is_taken_apart(share):
    found, n = predictions(share)
    p = share_of(found["neutral"] - found["concept"], found["whole"])
    assert p.shape == (3, 1, 1, 1) and torch.allclose(p, torch.full_like(p, share))
    assert torch.allclose(without(found, 0.0), n)


def test_a_prompt_that_does_not_imply_the_concept_stays():
    found, _ = predictions(LEAST - 0.01)
    assert torch.equal(without(found, 0.0), found["concept"])


def test_a_prompt_that_nearly_always_draws_it_has_a_bounded_target():
    found, n = predictions(0.99)
    moved = (without(found, 0.0) - found["concept"]).norm() / (found["neutral"] - found["concept"]).norm()
    assert moved.item() == pytest.approx(MOST / (1 - MOST))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"implied": "at the beach"}, "implied must be a list of prompts"),
        ({"implied": ["at the beach", " "]}, "none of them empty"),
        ({"implied": ["at the beach"], "objective": "esd"}, "esd does not train on prompts that imply"),
        ({"implied": ["at the beach"], "robust": 2}, "two trainings; set robust to 0 or 1"),
    ],
)
def test_what_cannot_be_trained_is_refused(options, said):
    with pytest.raises(TraceError, match=said):
        FinetuneConfig(**options)
