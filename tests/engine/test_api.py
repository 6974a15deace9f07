"""The six lines of README: an eraser, fitted on a model, gives an erasure."""

from __future__ import annotations

import pytest
import torch

import trace_core
from trace_core.backbones.defaults import defaults_of
from trace_core.closed_form import ClosedFormConfig, erase
from trace_core.errors import ConceptError, TraceError
from trace_core.lora.gating import erasures_on


@pytest.fixture(scope="module")
def demo():
    return trace_core.load("demo-sd")


def test_an_eraser_gives_an_erasure_that_is_applied_saved_and_read(demo, tmp_path):
    model, clip, _ = demo
    erasure = trace_core.Eraser(method="projection").fit(model, clip, "cat")
    erased = erasure.apply(model)
    assert [e["fingerprint"] for e in erasures_on(erased)] == [erasure.lora.fingerprint]
    assert not erasures_on(model) and not model.patches
    assert [c.target for c in erasure.concepts] == ["cat"]
    read = trace_core.Erasure.load(erasure.save(tmp_path / "cat.safetensors"))
    assert read.lora.fingerprint == erasure.lora.fingerprint and read.concepts == erasure.concepts
    with pytest.raises(AttributeError):
        erasure.lora = None


def test_a_model_that_knows_its_world_is_asked_for_it(demo):
    model, clip, _ = demo
    own = defaults_of(model)
    erasure = trace_core.Eraser().fit(model, clip, "cat")
    assert erasure.report["keep"] == own.keep_list(trace_core.parse_concepts("cat"))
    assert erasure.report["parameters"]["contexts"] == own.contexts
    given = trace_core.Eraser(keep=("dog",), closed_form={"contexts": {}}).fit(model, clip, "cat")
    assert given.report["keep"] == ["dog"]


def test_concepts_that_come_one_by_one_are_the_concepts_at_once(demo):
    model, clip, _ = demo
    fitter = trace_core.ClosedFormFitter(model, clip)
    steps = ["cat", "twitter style\nship @ 0.5", "dog + google style\nfrog"]
    for number, step in enumerate(steps):
        streamed = fitter.update(step).erasure()
        if number:
            whole = trace_core.Eraser().fit(model, clip, "\n".join(steps[: number + 1]))
            assert streamed.lora.to_bytes() == whole.lora.to_bytes()
    # "frog" was the cat's substitute, so the sums had to begin anew
    assert whole.report["substitutes"]["cat"] != "frog"


def test_a_concept_that_comes_later_costs_its_own_prompts_alone(demo, monkeypatch):
    model, clip, _ = demo
    fitter = trace_core.ClosedFormFitter(model, clip, config=ClosedFormConfig(eta=0.0))
    fitter.update("cat").erasure()
    added = []
    cls = type(fitter._states["projection"].sums["context"])
    whole = cls.add_pairs
    monkeypatch.setattr(cls, "add_pairs", lambda *args, **kw: added.append(1) or whole(*args, **kw))
    fitter.update("ship").erasure()
    first = len(added)
    fitter.update("banana").erasure()
    assert first and len(added) == 2 * first


def test_a_fitter_says_what_it_cannot_do(demo):
    model, clip, _ = demo
    fitter = trace_core.ClosedFormFitter(model, clip)
    with pytest.raises(ConceptError, match="nothing to erase"):
        fitter.erasure()
    fitter.update("cat")
    with pytest.raises(ConceptError):
        fitter.update("cat")
    assert [c.target for c in fitter.concepts] == ["cat"]


@pytest.mark.parametrize(
    ("options", "message"), [({"method": "magic"}, "magic"), ({"closed_form": None}, "nothing")]
)
def test_an_eraser_says_what_it_cannot_do(demo, options, message):
    with pytest.raises(TraceError, match=message):
        trace_core.Eraser(**options).fit(*demo[:2], "cat")


def test_a_finetune_goes_on_from_an_erasure(demo):
    model, clip, _ = demo
    start = erase(model, clip, trace_core.parse_concepts("cat"), ["dog"]).lora
    small = {
        "steps": 2,
        "trajectories": 2,
        "keep_trajectories": 2,
        "batch": 4,
        "sampling_steps": 2,
        "refresh": 2,
    }
    eraser = trace_core.Eraser("trace", keep=("dog",), finetune=small)
    erasure = eraser.fit(model, clip, "cat", start=start)
    assert "closed_form" not in erasure.report and set(start.modules) <= set(erasure.lora.modules)
    alone = trace_core.Eraser("trace", ("dog",), closed_form=None, finetune=small).fit(model, clip, "cat")
    assert torch.isfinite(next(iter(alone.lora.modules.values()))[0]).all()
    assert alone.adapter.rank == alone.lora.rank < erasure.lora.rank
