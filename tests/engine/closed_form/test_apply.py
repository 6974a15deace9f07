"""An erasure on a model: strengths, several of them, and those made for another architecture."""

from __future__ import annotations

import pytest
import torch

from closed_form_cases import CAT, KEEP, KINDS, fingerprint, patched_weights
from trace_core.backbones import families
from trace_core.closed_form import erase
from trace_core.errors import LoraError
from trace_core.lora import ErasureLora
from trace_core.lora.gating import apply
from trace_core.text.concepts import Concept


@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_is_the_base_model(one, kind):
    family, model = one(kind)
    lora = erase(model, family.clip, [CAT], KEEP).lora
    none = apply(model, lora, 0.0)
    assert none is not model and none.patches == model.patches == {}
    assert torch.equal(family.sample(none, "a cat"), family.sample(model, "a cat"))


def test_erasures_stack_with_their_own_strengths(one):
    family, model = one("sd1")
    loras = [erase(model, family.clip, [Concept(t)], ("car",)).lora for t in ("cat", "bird")]
    both = patched_weights(apply(apply(model, loras[0], 0.5), loras[1], 1.5))
    for module in loras[0].modules:
        wanted = (
            model.model.state_dict()[module + ".weight"]
            + 0.5 * loras[0].delta(module)
            + 1.5 * loras[1].delta(module)
        )
        assert (both[module + ".weight"] - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("made_for", KINDS)
@pytest.mark.parametrize("used_on", KINDS)
def test_lora_for_another_architecture_is_refused_by_name(one, made_for, used_on):
    if made_for == used_on:
        return
    family, model = one(made_for)
    lora = erase(model, family.clip, [CAT], KEEP).lora
    other = one(used_on)[1]
    before = fingerprint(other)
    for strength in (1.0, 0.0):
        titles = [families.KINDS[kind].title for kind in (made_for, used_on)]
        with pytest.raises(
            LoraError,
            match=f"made for {titles[0]} and does not fit this {titles[1]} model: diffusion_model",
        ):
            apply(other, lora, strength)
    assert fingerprint(other) == before


def test_lora_for_another_width_is_refused(one, tiny):
    family, model = one("sd1")
    lora = erase(model, family.clip, [CAT], KEEP).lora
    with pytest.raises(
        LoraError,
        match=r"this Stable Diffusion 1.x model: .*to_k is \d+ x 256, the model has \(\d+, 64\) there",
    ):
        apply(tiny.tiny_sd(context_dim=64), lora)


@pytest.mark.parametrize(
    "base", ['"sd1"', "[1]", "5", "null", "{}", '{"kind": 5}', '{"kind": [1]}', "{broken"]
)
def test_lora_whose_metadata_lies_is_refused_all_the_same(one, base):
    """Metadata is what somebody wrote; it may hold anything."""
    family, model = one("sd1")
    lora = ErasureLora(erase(model, family.clip, [CAT], KEEP).lora.modules, {"trace.base": base})
    assert apply(model, lora).patches
    with pytest.raises(LoraError, match="does not fit this FLUX.1 model"):
        apply(one("flux")[1], lora)
