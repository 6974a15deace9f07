"""The start token is never remapped."""

from __future__ import annotations

import pytest

from solver_cases import CONCEPTS, LENGTH, WIDE, WIDTH, Case
from trace_core.closed_form import POLICIES
from trace_core.closed_form.policies import erased_pairs
from trace_core.text.concepts import Concept
from trace_core.text.encoding import BOS, TextEncoder


@pytest.mark.parametrize("policy", POLICIES)
def test_the_start_token_is_never_remapped(fake, policy):
    encoder = TextEncoder(fake.FakeClip(WIDTH, LENGTH))
    for pairs, weights, *_ in erased_pairs(POLICIES[policy], Concept("cat", "dog"), "object", encoder, {}):
        assert BOS not in {g for g, w in zip(pairs.groups, weights) if w > 0}


def bos_change(fake, energy):
    """Largest ||dW bos|| / ||W bos|| over the layers."""
    case = Case(fake, concepts=CONCEPTS, width=WIDE, energy=energy)
    bos = case.encoder.encode("a cat", "cat").embeddings[0].double()
    return max(
        ((edited @ bos - weight @ bos).norm() / (weight @ bos).norm()).item()
        for _, weight, edited in case.edited()
    )


@pytest.mark.parametrize("energy", [0.9, 1.0])
def test_the_start_token_row_is_kept(fake, energy):
    """Every kept prompt begins with it, so the keep matrix guards it better than any other row."""
    assert bos_change(fake, energy) <= 1e-3


@pytest.mark.parametrize("energy", [0.9, 1.0])
def test_the_start_token_row_is_unchanged(fake, energy):
    """W' bos = W bos: the row is in every prompt and never carries a concept."""
    assert bos_change(fake, energy) <= 1e-10
