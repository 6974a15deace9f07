"""What the closed form refuses, by name."""

from __future__ import annotations

import pytest
import torch

from closed_form_cases import CAT, KEEP, KINDS, fingerprint
from trace_core.backbones import backbone_for
from trace_core.closed_form import erase
from trace_core.errors import ConceptError, ModelError, TraceError
from trace_core.lora import ErasureLora
from trace_core.lora.gating import apply
from trace_core.text.concepts import Concept


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weight_that_is_not_finite_is_refused_by_name(families, kind, bad):
    family = families[kind]
    model = family.model()
    layer = (backbone_for(model).context_layers() + backbone_for(model).pooled_layers())[-1]
    with torch.no_grad():
        model.model.state_dict()[layer.key][0, 0] = bad
    with pytest.raises(
        ModelError, match=f"{layer.key} contains NaN or infinite values; load the model again"
    ):
        erase(model, family.clip, [CAT], KEEP)


@pytest.mark.parametrize(
    ("model", "clip"), [("sd1", "flux"), ("flux", "sd1"), ("sdxl", "sd1"), ("sd1", "sdxl")]
)
def test_clip_of_another_model_is_refused(one, families, model, clip):
    with pytest.raises(
        ConceptError, match="connect the CLIP that belongs to this model|connect the CLIP of the same model"
    ):
        erase(one(model)[1], families[clip].clip, [CAT], KEEP)


@pytest.mark.parametrize("thing", [None, "model.safetensors", 5, torch.nn.Linear(2, 2), "inner"])
def test_what_is_no_model_is_refused(one, thing):
    family, model = one("sd1")
    thing = model.model if thing == "inner" else thing
    what = "no model is connected" if thing is None else f"{type(thing).__name__} is not a ComfyUI model"
    with pytest.raises(ModelError, match=f"{what}; connect the MODEL output"):
        erase(thing, family.clip, [CAT], KEEP)
    with pytest.raises(TraceError, match=what):
        apply(thing, ErasureLora({"diffusion_model.x": (torch.ones(1, 1), torch.ones(1, 1))}))


def test_model_of_an_unknown_family_is_refused_by_name(engine):
    import comfy.model_patcher

    class Mystery(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.diffusion_model = torch.nn.Linear(2, 2)

    cpu = torch.device("cpu")
    with pytest.raises(
        ModelError, match="Mystery models are not supported; use Stable Diffusion 1.x, 2.x, SDXL"
    ):
        backbone_for(comfy.model_patcher.ModelPatcher(Mystery(), cpu, cpu))


def test_nothing_to_erase_is_refused(one):
    family, model = one("sd1")
    with pytest.raises(ConceptError, match="nothing to erase"):
        erase(model, family.clip, [], KEEP)


def test_keeping_what_is_erased_is_refused(one):
    family, model = one("sd1")
    with pytest.raises(ConceptError, match="'CAT' stands in the erase list and in the keep list"):
        erase(model, family.clip, [CAT], ("CAT",))


@pytest.mark.parametrize("kind", ["sd1", "flux"])
@pytest.mark.parametrize(
    "text", ["🐈", "قطة", "梵高", "(cat)", "((cat:1.3))", "AC\\DC", "embedding:x", "a_b", "%", "\u200b"]
)
def test_unusual_text_is_erased_or_refused_never_worse(one, kind, text):
    """With ComfyUI's own tokenizer classes around a vocabulary of plain words."""
    family, model = one(kind)
    before = fingerprint(model)
    try:
        lora = erase(model, family.clip, [Concept(text, "dog")], KEEP).lora
        assert all(torch.isfinite(lora.delta(m)).all() for m in lora.modules)
    except ConceptError as error:
        assert len(str(error)) < 300
    assert fingerprint(model) == before


def test_concept_of_several_chunks_is_refused(one):
    family, model = one("sd1")
    with pytest.raises(
        ConceptError, match="tokens long and does not fit into one prompt of 24; shorten the concept"
    ):
        erase(model, family.clip, [Concept("cat dog bird " * 10)], KEEP)
