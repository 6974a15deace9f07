"""Objectives with adversarial prompts: what they train, what they leave, and what they report."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

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
from trace_core.demo import domain, loader
from trace_core.errors import ConceptError
from trace_core.evaluate import Evaluator
from trace_core.finetune import finetune
from trace_core.finetune.adversarial import Adversary
from trace_core.finetune.hardening import LEVELS, Hardened
from trace_core.finetune.resume import TrainingState
from trace_core.lora.gating import apply
from trace_core.methods import Eraser
from trace_core.text.concepts import Concept

ADVERSARIAL = [number for number, level in LEVELS.items() if level.rows]
#: of the demo model, in a fraction of the paper's steps
SHORT = {"gem": {}, "aegis": {"steps": 40, "refresh": 40, "trajectories": 8, "lr": 4e-3}}


@pytest.fixture(scope="module")
def demo_sd(engine):
    model, clip, vae = loader.load("demo-sd")
    return model, clip, Evaluator(model, clip, vae, domain.domain(), samples=6)


@pytest.mark.parametrize("method", SHORT)
def test_a_peer_erases_and_leaves_the_model(demo_sd, method):
    model, clip, evaluator = demo_sd
    before = values(model)
    erasure = Eraser(method, finetune=SHORT[method]).fit(model, clip, "ship")
    model.unpatch_model()
    assert equal(values(model), before)
    prompts, place = [f"a photo of a ship, {s}" for s in evaluator.domain.styles], "object"
    index = list(evaluator.domain.objects).index("ship")
    drawn = [evaluator.pictures(m, prompts, "ship")[1] for m in (model, apply(model, erasure.lora))]
    with_it, without = (evaluator.domain.judge(pictures, place)[:, index].mean() for pictures in drawn)
    assert without < 0.8 * with_it


class Look:
    """Calls ``at(adversary, adapters)`` after an event of the adversary, and stops the run."""

    def __init__(self, cls: type[Adversary], name: str, at, stop: bool = True):
        self.cls, self.name, self.at, self.stop = cls, name, at, stop

    def __call__(self, family, model, config, **options):
        plain = getattr(self.cls, self.name)

        def look(adversary, *args):
            out = plain(adversary, *args)
            self.at(adversary)
            if self.stop:
                raise Stop
            return out

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
            patch.setattr(self.cls, self.name, look)
            run(family, model, config, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_trained_rows_bring_the_student_nearer_to_the_concept(families, kind):
    """Of an erased student, the error to the base model's prediction with the concept falls."""
    family, model, errors = families[kind], families[kind].model(**TINY[kind]), {}

    def error(adversary: Hardened, conditions: list[dict]) -> float:
        trainer, total = adversary.trainer, 0.0
        points = trainer.bank.points["pictures"]
        adversary.adapters.use("student")
        for rows, condition in zip(adversary.rows, conditions):
            own = points[(points.prompt == rows.pair[0]).nonzero()[:, 0]]
            batch = {
                k: v.expand(len(own), *v.shape[1:]) if isinstance(v, torch.Tensor) else v
                for k, v in condition.items()
            }
            with torch.no_grad():
                out = trainer.backbone.predict(own.x.float(), own.sigma, batch)
            total += (out - own.predictions["concept"].float()).square().mean().item()
        return total

    def look(adversary: Hardened) -> None:
        made = [adversary.trainer.prompts.condition(rows.number) for rows in adversary.rows]
        errors.update(
            before=error(adversary, [rows.condition for rows in adversary.rows]), after=error(adversary, made)
        )

    config = replace(SMALL, robust=2)
    Look(Hardened, "refreshed", look)(family, model, config, start=closed_form(family, model))
    assert errors["after"] < errors["before"]


@pytest.mark.parametrize("level", ADVERSARIAL)
def test_hardened_run_has_a_price_and_leaves_the_model(families, level):
    family, model = families["sd1"], families["sd1"].model(**TINY["sd1"])
    before, heard = values(model), Listener()
    report = run(family, model, replace(SMALL, robust=level), report=heard).report
    assert equal(values(model), before)
    refreshes = SMALL.steps // SMALL.refresh
    assert report["adversarial_steps"] == refreshes * LEVELS[level].rows * LEVELS[level].steps
    assert report["adversarial_seconds"] > 0 and "robust" in report["losses"][0]
    assert ("pictures" in report["losses"][0]) == bool(LEVELS[level].pictures)
    assert "adversarial rows" in {p.phase for p in heard.heard}
    assert "adversarial_steps" not in run(family, model).report


IMPLIED = ("a photo of a sofa", "a basket")


def test_prompts_that_imply_the_concept_are_trained_and_reported(families):
    family, model = families["sd1"], families["sd1"].model(**TINY["sd1"])
    before, heard = values(model), Listener()
    report = run(family, model, replace(SMALL, implied=IMPLIED), report=heard).report
    assert equal(values(model), before)
    assert set(report["implied"]) == set(IMPLIED) and all(0 <= p <= 1 for p in report["implied"].values())
    assert all("implied" in loss for loss in report["losses"])
    assert "base model on implying prompts" in {p.phase for p in heard.heard}
    plain = run(family, model).report
    assert "implied" not in plain and report["evaluations"] > plain["evaluations"]


def test_a_run_with_implying_prompts_is_resumed_bit_for_bit(families):
    family, model, states = families["flux"], families["flux"].model(**TINY["flux"]), []
    config = replace(SMALL, implied=IMPLIED, steps=6)
    whole = run(family, model, config, checkpoint=states.append)
    resumed = run(family, model, config, resume=states[-1])
    assert same_factors(resumed.lora, whole.lora)
    assert all(resumed.report[k] == whole.report[k] for k in ("losses", "implied"))


@pytest.mark.parametrize("level", LEVELS)
def test_hardened_run_is_resumed_bit_for_bit(families, tmp_path, level):
    family, model = families["flux"], families["flux"].model(**TINY["flux"])
    config, heard, states = replace(SMALL, robust=level, steps=6), Listener(), []
    whole = run(family, model, config, report=heard, checkpoint=states.append)
    path = tmp_path / "state"
    states[-1].save(path)
    resumed = run(family, model, config, resume=TrainingState.load(path))
    assert same_factors(resumed.lora, whole.lora) and resumed.report["losses"] == whole.report["losses"]


def test_hardened_run_can_be_cancelled_in_the_rows(families):
    family, model = families["sd1"], families["sd1"].model(**TINY["sd1"])
    before, heard = values(model), Listener()
    run(family, model, replace(SMALL, robust=2), report=heard)
    at = next(i for i, p in enumerate(heard.heard) if p.phase == "adversarial rows")
    with pytest.raises(Stop):
        run(family, model, replace(SMALL, robust=2), report=Listener(at + 3))
    assert equal(values(model), before)


def test_first_level_trains_no_layer_that_reads_text(families):
    """And says so where there is nothing hardened to keep."""
    family, model = families["sd1"], families["sd1"].model(**TINY["sd1"])
    result = run(family, model, replace(SMALL, robust=1))
    trained = list(result.adapter.modules)
    assert trained and not any(m.endswith((".attn2.to_k", ".attn2.to_v")) for m in trained)
    assert any("robust 1 keeps a hardened projection" in w for w in result.report["warnings"])


def test_a_graded_concept_cannot_be_hardened(families):
    family = families["sd1"]
    with pytest.raises(ConceptError, match="'cat' has strength 0.5, and a hardened erasure is whole"):
        finetune(
            family.model(**TINY["sd1"]),
            family.clip,
            [Concept("cat", strength=0.5)],
            KEEP,
            replace(SMALL, robust=1),
        )


def test_without_hardening_a_run_is_what_it_was(families, monkeypatch):
    """The adversary of other runs changes nothing, and old training states fit them."""
    family, model = families["sd1"], families["sd1"].model(**TINY["sd1"])
    seen = []
    own = Adversary.conditions
    monkeypatch.setattr(Adversary, "conditions", lambda self, n: seen.append(n) or own(self, n))
    run(family, model)
    assert seen and all(len(n) <= SMALL.batch + 4 for n in seen)
    states = []
    run(family, model, checkpoint=states.append)
    assert not {"robust", "implied"} & json.loads(states[0].run).keys() and states[0].adversary == []
