"""A finetune that was stopped goes on where it was; states of other runs are refused."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from finetune_cases import (
    KEEP,
    KINDS,
    SMALL,
    TINY,
    Listener,
    Stop,
    closed_form,
    equal,
    run,
    same_factors,
    values,
)
from trace_core.errors import LoraError
from trace_core.finetune import finetune
from trace_core.finetune.resume import TrainingState
from trace_core.text.concepts import Concept


def stopped(family, model, config, stop, path, **options) -> None:
    """A run that is cancelled, with its state in a file."""
    with pytest.raises(Stop):
        run(
            family, model, config, report=Listener(stop), checkpoint=lambda state: state.save(path), **options
        )


@pytest.mark.parametrize("trial", range(8))
def test_resumed_run_is_the_run_that_did_not_stop(families, tmp_path, trial):
    draw = random.Random(trial)
    family = families[KINDS[trial % 3]]
    model = family.model(**TINY[family.kind])
    start = closed_form(family, model) if trial % 2 else None
    window = "auto" if trial > 3 else (0.2, 1.0)
    objective = {2: "ant", 6: "aegis", 7: "gem"}.get(trial, "trace")
    config = replace(SMALL, steps=6, scope="attention", window=window, objective=objective)
    heard = Listener()
    whole = run(family, model, config, start=start, report=heard)
    refreshed = [i for i, p in enumerate(heard.heard) if p.step == 2]
    stopped(
        family, model, config, draw.randrange(refreshed[2], len(heard.heard)), tmp_path / "state", start=start
    )
    state = TrainingState.load(tmp_path / "state")
    assert state.step in (2, 4)
    resumed = run(family, model, config, start=start, resume=state)
    assert same_factors(resumed.lora, whole.lora)
    assert (
        resumed.report["losses"] == whole.report["losses"]
        and resumed.report["window"] == whole.report["window"]
    )


def test_a_run_stopped_before_its_first_step_can_be_resumed(families, tmp_path):
    family, model = families["flux"], families["flux"].model(**TINY["flux"])
    whole, heard = run(family, model), Listener()
    run(family, model, report=heard)
    first = next(i for i, p in enumerate(heard.heard) if p.phase == "sample erase")
    stopped(family, model, SMALL, first, tmp_path / "state")
    state = TrainingState.load(tmp_path / "state")
    assert state.step == 0 and same_factors(run(family, model, resume=state).lora, whole.lora)


def one_state(family, model, config=SMALL) -> TrainingState:
    states = []
    run(family, model, config, checkpoint=states.append)
    return states[-1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(rank=3), "rank was 2 and is 3"),
        (dict(seed=5), "seed was 0 and is 5"),
        (dict(steps=9), "steps was 4 and is 9"),
        (dict(objective="esd"), "objective was trace and is esd"),
        (dict(scope="linear"), "scope was text and is linear"),
        (dict(weights={"keep": 2.0}), "weights was {} and is {'keep': 2.0}"),
    ],
)
def test_state_of_another_run_is_refused_by_the_option(tiny, families, change, named):
    family, model = families["flux"], families["flux"].model(**TINY["flux"])
    state, before = one_state(family, model), values(model)
    with pytest.raises(LoraError, match=f"cannot resume: .*{named}"):
        run(family, model, replace(SMALL, **change), resume=state)
    assert equal(values(model), before)


def test_state_of_a_run_from_another_start_is_refused(families):
    family, model = families["flux"], families["flux"].model(**TINY["flux"])
    with pytest.raises(LoraError, match=r"cannot resume: start was None and is [0-9a-f]+"):
        run(family, model, start=closed_form(family, model), resume=one_state(family, model))


def test_state_of_another_model_or_concept_is_refused(families):
    family, model = families["flux"], families["flux"].model(**TINY["flux"])
    state = one_state(family, model)
    with pytest.raises(LoraError, match="cannot resume: base was"):
        run(family, family.model(seed=1, **TINY["flux"]), resume=state)
    with pytest.raises(
        LoraError, match="cannot resume: the training state was made for 'cat', but this run erases 'ship'"
    ):
        finetune(model, family.clip, [Concept("ship")], KEEP, SMALL, resume=state)
