"""A finetune whose loss leaves the numbers stops with the last good state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from finetune_cases import KINDS, SMALL, TINY, run, same_factors
from trace_core.backbones import Backbone, backbone_for
from trace_core.finetune import Diverged


def nan_after(monkeypatch, steps: int, where: str = "train"):
    """From a training step on (or in sampling) the network says NaN."""
    plain, seen = Backbone.predict, {"train": 0}

    def predict(self, x, *rest):
        seen["train"] += torch.is_grad_enabled()
        out = plain(self, x, *rest)
        return (
            out * float("nan")
            if seen["train"] > steps and (where == "all" or torch.is_grad_enabled())
            else out
        )

    monkeypatch.setattr(Backbone, "predict", predict)


@pytest.mark.parametrize("where", ["train", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_divergence_stops_with_the_last_good_state(tiny, families, kind, where):
    family, model = families[kind], families[kind].model(**TINY[kind])
    backbone_for(model).load()
    config, before, states = replace(SMALL, steps=6), tiny.Snapshot(model), []
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(Diverged, match="the loss is nan at step [34]; lower") as raised,
    ):
        nan_after(patch, 3, where)
        run(family, model, config, checkpoint=states.append)
    assert before.differences(tiny.Snapshot(model)) == []
    state = raised.value.state
    assert state.step == states[-1].step and state.step == 2
    assert all(torch.equal(a, b) for a, b in zip(state.adapter, states[-1].adapter))
    assert all(torch.isfinite(t).all() for t in (*state.adapter, *state.mean, *state.square))
    if where == "train":
        assert same_factors(run(family, model, config, resume=state).lora, run(family, model, config).lora)


def test_after_a_divergence_a_lower_rate_goes_on(families):
    """As the error itself advises."""
    family, model = families["flux"], families["flux"].model(**TINY["flux"])
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(Diverged, match=r"lower the learning rate \(0.01\)") as raised,
    ):
        nan_after(patch, 3)
        run(family, model)
    result = run(family, model, replace(SMALL, lr=0.001), resume=raised.value.state)
    assert [row["step"] for row in result.report["losses"]] == [0, 1, 2, 3]
