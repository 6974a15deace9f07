"""Attacks on an erasure of the demo models: they run, change nothing, and find what was not erased at all."""

from __future__ import annotations

import pytest
import torch

from trace_core.closed_form import ClosedFormConfig, erase
from trace_core.demo import domain, loader
from trace_core.errors import ConceptError
from trace_core.evaluate.recover import inversion, recoverability
from trace_core.text.concepts import Concept


@pytest.fixture(scope="module", params=["demo-sd", "demo-flux"])
def demo(request, engine):
    return request.param, *loader.load(request.param)


@pytest.fixture(scope="module")
def lora(demo):
    _, model, clip, _ = demo
    return erase(
        model,
        clip,
        [Concept("cat")],
        domain.keep_list([Concept("cat")]),
        ClosedFormConfig(contexts=domain.CONTEXTS),
    ).lora


def test_both_attacks_report(demo, lora):
    _, model, clip, vae = demo
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    found = recoverability(model, lora, clip, vae, domain.domain(), "cat", samples=2, steps=2, every=1)
    assert found["plain"] <= 0.5
    assert 0 <= found["adversarial_rows"] <= 1
    assert [step for step, _ in found["inversion"]["curve"]] == [0, 1, 2]
    model.unpatch_model()
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())


def test_rows_that_are_trained_come_closer(demo, lora):
    """What the judge is given changes from step to step, and is the same again with the same seed."""
    _, model, clip, _ = demo
    made = []
    for _ in range(2):
        latents = []
        inversion(
            model,
            lora,
            clip,
            "a photo of a cat",
            lambda x, latents=latents: latents.append(x) or 0.0,
            samples=1,
            steps=2,
            every=2,
        )
        made.append(latents)
    assert not torch.equal(made[0][0], made[0][1])
    assert all(torch.equal(a, b) for a, b in zip(*made))


def test_unknown_concept_is_refused(demo, lora):
    _, model, clip, vae = demo
    with pytest.raises(ConceptError, match="does not know 'unicorn'"):
        recoverability(model, lora, clip, vae, domain.domain(), "unicorn")
