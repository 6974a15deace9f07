"""What is recorded of an erasure on a model, and what is refused."""

from __future__ import annotations

import logging

import pytest
import torch

from gating_cases import some_lora
from trace_core.backbones import backbone_for
from trace_core.errors import LoraError, ModelError
from trace_core.lora import ErasureLora
from trace_core.lora.gating import apply, base_mismatch, erasures_on


def test_what_is_on_a_model_is_recorded(models):
    model = models("sd1")
    lora = some_lora(model, **{"modelspec.title": "Erased: cat"})
    once = apply(model, lora, 0.5)
    twice = apply(once, some_lora(model, 1), 1.0, 0.2, 0.8)
    first = {
        "fingerprint": lora.fingerprint,
        "title": "Erased: cat",
        "strength": 0.5,
        "start": 0.0,
        "end": 1.0,
    }
    assert erasures_on(model) == () and erasures_on(once) == (first,)
    assert erasures_on(twice)[0] == first and erasures_on(twice)[1]["start"] == 0.2
    assert "trace_erasures" not in model.model_options
    assert erasures_on(apply(once, lora, 0.0)) == (first,)


def test_the_same_erasure_twice_is_announced(models, caplog):
    model = models("sd1")
    lora = some_lora(model)
    once = apply(model, lora, 1.0, 0.0, 0.5)
    apply(once, lora, 1.0, 0.5, 1.0)
    apply(once, some_lora(model, 1), 1.0)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        apply(once, lora, 1.0, 0.4, 1.0)
    assert "on this model already" in caplog.text


def test_another_base_is_announced_by_name(models, families, caplog):
    model, other = models("sd1"), families["sd1"].model(seed=1)
    base = f'{{"kind": "sd1", "hash": "{backbone_for(model).model_hash()}"}}'
    lora = some_lora(model, **{"trace.base": base, "modelspec.title": "Erased: cat"})
    assert base_mismatch(model, lora) is None and base_mismatch(other, some_lora(model)) is None
    apply(model, lora)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        applied = apply(other, lora, 1.0, 0.5, 1.0)
    assert "'Erased: cat' was made on another Stable Diffusion 1.x model" in caplog.text
    assert erasures_on(applied)


@pytest.mark.parametrize("said", ["3", '{"hash": 5}', '["x"]', "not json"])
def test_a_base_that_says_nothing_usable_is_no_mismatch(models, said):
    assert base_mismatch(models("sd1"), some_lora(models("sd1"), **{"trace.base": said})) is None


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ((float("nan"), 1.0), "start is nan"),
        ((0.0, float("nan")), "end is nan"),
        ((-0.1, 1.0), "start is -0.1"),
        ((0.0, 1.5), "end is 1.5"),
        ((0.5, 0.5), "an empty window"),
        ((0.8, 0.2), "start must be below end"),
        (("0", 1.0), "start is 0"),
        ((0.0, float("inf")), "end is inf"),
    ],
)
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_window_that_is_none_is_refused(models, window, message, strength):
    with pytest.raises(LoraError, match=message):
        apply(models("sd1"), some_lora(models("sd1")), strength, *window)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), "1", None])
def test_a_strength_that_is_no_number_is_refused(models, strength):
    with pytest.raises(LoraError, match="strength is"):
        apply(models("sd1"), some_lora(models("sd1")), strength)


def test_the_files_own_window(tiny, models):
    model = models("sd1")
    lora = some_lora(model, **{"trace.window": "[0.25, 0.75]"})
    assert erasures_on(apply(model, lora, 1.0, None, None))[0]["start"] == 0.25
    assert erasures_on(apply(model, lora, 1.0, None, 1.0))[0]["end"] == 1.0
    assert erasures_on(apply(model, lora))[0]["start"] == 0.0
    assert apply(model, some_lora(model), 1.0, None, None).patches
    for said in ("[0.5]", "[1, 0]", '"all"', "[0, NaN]", "null", '[0, "1"]'):
        bad = some_lora(model, **{"trace.window": said})
        with pytest.raises(LoraError, match="not a window; give start and end"):
            apply(model, bad, 1.0, None, None)
        assert apply(model, bad, 1.0, 0.0, 1.0).patches


def test_layers_that_cannot_be_gated_are_refused_by_name(models):
    model = models("sd1")
    norm = "diffusion_model.out.0"
    lora = ErasureLora(
        {norm: (torch.zeros(model.model.get_submodule(norm).weight.shape[0], 1), torch.zeros(1, 1))}
    )
    with pytest.raises(LoraError, match=r"diffusion_model\.out\.0 is a GroupNorm.*use start 0 and end 1"):
        apply(model, lora, 1.0, 0.5, 1.0)


def test_a_model_without_a_schedule_is_refused(models):
    model = models("sd1").clone()
    model.add_object_patch("model_sampling", object())
    with pytest.raises(ModelError, match="has no sampling schedule"):
        apply(model, some_lora(model), 1.0, 0.5, 1.0)
