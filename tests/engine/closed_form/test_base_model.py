"""Where text enters a model, and that the closed form changes nothing else and not the base model."""

from __future__ import annotations

import pytest
import torch

from closed_form_cases import CAT, EXACT, KEEP, KINDS, distance, fingerprint, patched_weights
from trace_core.backbones import backbone_for
from trace_core.backbones.base import CONTEXT, POOLED
from trace_core.closed_form import POLICIES, ClosedFormConfig, erase
from trace_core.lora.gating import apply


@pytest.mark.parametrize(
    ("kind", "context", "pooled"), [("sd1", 14, 0), ("sdxl", 8, 1), ("flux", 1, 1), ("flux-schnell", 1, 1)]
)
def test_backbone_finds_every_layer_that_reads_text(families, kind, context, pooled):
    family = families[kind]
    backbone = backbone_for(family.model())
    assert backbone.kind == kind
    assert len(backbone.pooled_layers()) == pooled
    keys = backbone.patcher.model.state_dict().keys()
    attention = [k for k in keys if k.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
    assert len(backbone.context_layers()) == (len(attention) or context)
    assert len(attention) in (0, len(backbone.context_layers()))
    assert backbone.width(CONTEXT) == family.options["context_dim"]
    assert backbone.width(POOLED) == family.options.get("pooled_dim")


def test_backbone_tells_sd2_by_its_width(tiny):
    assert backbone_for(tiny.tiny_sd(context_dim=1024)).kind == "sd2"
    assert backbone_for(tiny.tiny_sd(context_dim=768)).kind == "sd1"


@pytest.mark.parametrize("kind", KINDS)
def test_only_layers_that_read_text_are_changed(one, kind):
    family, model = one(kind)
    lora = erase(model, family.clip, [CAT], KEEP).lora
    assert set(lora.modules) == {
        layer.module for layer in backbone_for(model).layers(CONTEXT) + backbone_for(model).layers(POOLED)
    }
    before, after = model.model.state_dict(), patched_weights(apply(model, lora))
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {m + ".weight" for m in lora.modules}, "biases in particular stay"


# ---------------------------------------------------------------------------- the base model is never touched


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_base_model_is_bit_identical(one, kind, policy):
    family, model = one(kind)
    before = fingerprint(model)
    result = erase(model, family.clip, [CAT], KEEP, ClosedFormConfig(policy=policy))
    assert fingerprint(model) == before
    edited = apply(model, result.lora)
    assert fingerprint(model) == before
    assert edited is not model and edited.model is model.model and edited.patches


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("phase", ["encode concepts", "encode keep set"])
def test_cancelled_erasure_changes_nothing(one, kind, phase):
    """As ComfyUI's interrupt: an exception out of the progress callback, handed on as it is."""
    family, model = one(kind)
    before = fingerprint(model)

    def progress(at, done, total):
        if at == phase:
            raise Cancelled(f"{done} of {total}")

    with pytest.raises(Cancelled):
        erase(model, family.clip, [CAT], KEEP, progress=progress)
    assert fingerprint(model) == before


@pytest.mark.parametrize("kind", KINDS)
def test_base_model_samples_the_same_after_the_edited_one_ran(one, kind):
    """All MODELs of a graph share one network: patches go on and off it."""
    family, model = one(kind)
    base = family.sample(model, "a cat")
    edited = apply(model, erase(model, family.clip, [CAT], KEEP).lora)
    assert distance(family.sample(edited, "a cat"), base) > 1e-4
    assert torch.equal(family.sample(model, "a cat"), base)


def test_erasure_inside_inference_mode(families):
    """Every ComfyUI node runs in it, loaders included, so the weights are inference tensors."""
    family = families["flux"]
    with torch.inference_mode():
        model = family.model()
        result = erase(model, family.clip, [CAT], KEEP, EXACT)
        edited = apply(model, result.lora)
        inside = family.sample(edited, "cat")
    plain = family.model()
    again = erase(plain, family.clip, [CAT], KEEP, EXACT)
    assert all(torch.equal(result.lora.delta(m), again.lora.delta(m)) for m in again.lora.modules)
    assert torch.equal(inside, family.sample(apply(plain, again.lora), "cat"))
