"""What the finetune refuses before it evaluates the model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from finetune_cases import CAT, KEEP, SMALL, TINY, closed_form, equal, run, values
from trace_core.backbones import Backbone, backbone_for
from trace_core.errors import ConceptError, LoraError, ModelError, TraceError
from trace_core.finetune import finetune
from trace_core.lora.gating import apply

REFUSED = {
    "no concept": (dict(concepts=[]), ConceptError, "nothing to erase; name at least one concept"),
    "kept": (dict(keep=["CAT"]), ConceptError, "stands in the erase list and in the keep list"),
    "rank": (dict(config=replace(SMALL, rank=999)), LoraError, "rank 999 exceeds the narrowest layer"),
    "bank": (dict(config=replace(SMALL, bank_limit=10)), TraceError, "more than the bank's 0 MB"),
    "scope": (dict(config=replace(SMALL, scope="all")), TraceError, "scope 'all' is unknown"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_before_a_model_evaluation(tiny, families, name):
    options, error, message = REFUSED[name]
    family, model = families["sd1"], families["sd1"].model(**TINY["sd1"])
    backbone_for(model).load()
    before = tiny.Snapshot(model)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(error, match=message):
        patch.setattr(Backbone, "predict", lambda *a: pytest.fail("the model was evaluated"))
        finetune(model, family.clip, **{"concepts": CAT, "keep": KEEP, "config": SMALL, **options})
    assert before.differences(tiny.Snapshot(model)) == []


def test_a_start_for_another_model_is_refused(families):
    family, model = families["sd1"], families["sd1"].model(**TINY["sd1"])
    other = families["flux"].model(**TINY["flux"])
    start, before = closed_form(families["flux"], other), values(model)
    with pytest.raises(LoraError, match="this erasure does not fit the model: it has no linear layer"):
        run(family, model, start=start)
    assert equal(values(model), before)


def test_what_is_no_model_is_refused(families):
    with pytest.raises(ModelError, match="connect the MODEL output"):
        run(families["sd1"], torch.nn.Linear(2, 2))


def test_an_erasure_with_a_window_on_the_model_is_refused(families):
    """Training calls the network itself, past the place where a window is looked at."""
    family = families["sd1"]
    model = family.model(**TINY["sd1"])
    erased = apply(model, closed_form(family, model), 1.0, 0.2, 1.0)
    with pytest.raises(ModelError, match="after the finetune"):
        run(family, erased)
