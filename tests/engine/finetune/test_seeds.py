"""A seed of the finetune is one result, with checkpointing and in half precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from finetune_cases import KINDS, SMALL, TINY, Stop, run, same_factors
from trace_core.backbones import backbone_for
from trace_core.finetune import trainer


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_makes_one_result(families, kind):
    family, model = families[kind], families[kind].model(**TINY[kind])
    torch.manual_seed(1)
    first = run(family, model)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again, other = run(family, model), run(family, model, replace(SMALL, seed=1))
    assert torch.equal(torch.get_rng_state(), before), "the caller's own random numbers are untouched"
    assert same_factors(first.lora, again.lora) and first.report["losses"] == again.report["losses"]
    assert not same_factors(first.lora, other.lora)


def test_checkpointing_changes_no_result_but_by_rounding(families):
    family, model = families["flux"], families["flux"].model(**TINY["flux"])
    plain, saved = (run(family, model, replace(SMALL, checkpointing=c)).lora for c in (False, True))
    for module in plain.modules:
        assert (plain.delta(module) - saved.delta(module)).norm() < 0.02 * plain.delta(module).norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["sd1", "flux"])
def test_half_precision_models_are_trained(tiny, families, kind, dtype):
    family, model = families[kind], families[kind].model(dtype=dtype, **TINY[kind])
    before = tiny.Snapshot(model)
    backbone_for(model).load()
    result = run(family, model)
    assert all(
        before.facts[k] == v for k, v in tiny.Snapshot(model).facts.items() if k.startswith("value of")
    )
    assert all(
        torch.isfinite(result.lora.delta(m)).all() and result.lora.delta(m).any() for m in result.lora.modules
    )


def test_a_repeated_keep_prompt_is_drawn_as_often_as_it_is_given(families, monkeypatch):
    """Without the repeats, a seed would draw other prompts, and make another file."""
    seen = []

    def look(self, *_):
        seen.extend(self.prompts.texts[n] for n, _ in self.keep_pairs)
        raise Stop

    kept = [("a dog", "dog"), ("a ship", "ship"), ("a dog", "dog")]
    monkeypatch.setattr(trainer, "keep_prompts", lambda *_: kept)
    monkeypatch.setattr(trainer.Trainer, "train", look)
    with pytest.raises(Stop):
        run(families["sd1"], families["sd1"].model(**TINY["sd1"]), replace(SMALL, neighbours=0))
    assert seen == ["a dog", "a ship", "a dog"]
