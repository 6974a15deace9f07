"""The terms of the finetune's loss: each is its paper's, at its own points, with a live gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from finetune_cases import KEEP, KINDS, SMALL, TINY, Stop, closed_form, equal, run, values
from trace_core.errors import TraceError
from trace_core.finetune import finetune
from trace_core.finetune.objectives import OBJECTIVES, trce
from trace_core.finetune.objectives.base import squared_error
from trace_core.finetune.trainer import Trainer
from trace_core.text.concepts import Concept
from trace_core.text.grammar import parse_concepts


class Step:
    """The first step of a run, with the adapter off zero: every term alone, and all together."""

    def __init__(self, family, model, config, start):
        self.terms, self.errors, self.gradients, self.points = [], {}, {}, {}
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
            plain = Trainer.loss
            patch.setattr(Trainer, "loss", lambda trainer, *drawn: self.look(plain, trainer, *drawn))
            run(family, model, config, start=start)

    def look(self, plain, trainer, drawn, numbers):
        self.uncond, at = trainer.uncond, 0
        parameters = [p for p in trainer.backbone.network.parameters() if p.requires_grad]
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in parameters:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))

        def measure(pairs, numbers):
            total, errors = plain(trainer, pairs, numbers)
            # a map knows nothing of its layer's values
            found = torch.autograd.grad(total, parameters, allow_unused=True)
            found = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found)]
            return total.item(), errors, torch.cat([g.flatten() for g in found])

        for term, points in drawn:
            of_term = numbers[at : at + len(points)]
            at += len(points)
            self.terms.append(term)
            self.points[term.name] = (points, of_term)
            _, errors, self.gradients[term.name] = measure([(replace(term, weight=1.0), points)], of_term)
            self.errors[term.name] = errors[term.name], self.independent(trainer, term, points, of_term)
        self.total, _, self.gradient = measure(drawn, numbers)
        raise Stop

    @staticmethod
    @torch.no_grad()
    def independent(trainer, term, points, numbers) -> float:
        """The error by the paper's formula in float64."""
        if term.attention:
            return Step.independent_attention(trainer, points, numbers)
        out = trainer.adversary.conditions(numbers).predict(points.x.float(), points.sigma).double()
        p = {k: v.double() for k, v in points.predictions.items()}
        if trainer.objective.name == "trce":
            amplified = lambda name: 16 * p[name] - 15 * p["uncond"]  # noqa: E731
            distance = lambda to: (out - to).square().flatten(1).mean(1)  # noqa: E731
            if term.role == "keep":
                return distance(p["start uncond"]).mean().item()
            return (
                (distance(amplified("neutral")) - distance(amplified("concept")) + trce.MARGIN)
                .clamp_min(0)
                .mean()
                .item()
            )
        eta = trainer.config.eta
        if trainer.objective.name == "gem":
            distance = lambda to: (out - to).flatten(1).norm(dim=1)  # noqa: E731
            return (distance(p["uncond"]) - eta * distance(p["concept"])).clamp_min(0).mean().item()
        if trainer.objective.name == "aegis":
            target = (1 + eta) * p["uncond"] - eta * p["adversarial"]
            return squared_error(out, target, points.sigma.double()).mean().item()
        origin = "neutral" if trainer.objective.name == "trace" else "uncond"
        target = (1 + eta) * p[origin] - eta * p["concept"] if term.name == "erase" else p[term.needs[0]]
        return squared_error(out, target, points.sigma.double()).mean().item()

    @staticmethod
    def independent_attention(trainer, points, numbers) -> float:
        """MACE, eq. 3, with whole maps: the concept's words, the first end and all pads, where the region
        is.
        """
        maps, total = [], 0.0
        with trainer.backbone.attention_maps(maps):
            trainer.prompts.batch(numbers).predict(points.x.float(), points.sigma)
        columns = trainer.prompts.columns(numbers, True)
        assert columns.any(1).all() and not columns.all(1).any()
        for q, k in maps:
            probabilities = (q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)[
                ..., : columns.shape[1]
            ]
            edge = round((probabilities.shape[2]) ** 0.5)
            step = points.x.shape[-1] // edge
            rows = points.predictions["region"][:, 0, ::step, ::step].reshape(len(points), -1) > 0.5
            total += (probabilities * rows[:, None, :, None] * columns[:, None, None, :]).square().sum()
        return total.item() / len(points)


WEIGHTS = {
    "trace": ("erase", "keep", "uncond", "early"),
    "ant": ("erase", "early", "uncond late", "uncond early"),
    "esd": ("erase",),
    "mace": ("attention",),
    "trce": ("steer", "steer uncond", "preserve"),
    "gem": ("erase",),
    "aegis": ("erase",),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_term_is_the_papers_and_has_a_live_gradient(families, monkeypatch, kind, objective):
    """Also the unconditional terms of ANT, which are dead in its released code."""
    monkeypatch.setattr(trce, "MARGIN", 100.0)  # untrained networks are on either side of the paper's
    family, model = families[kind], families[kind].model(**TINY[kind])
    weights = {name: 0.5 + i for i, name in enumerate(WEIGHTS[objective])}
    config = replace(SMALL, objective=objective, window=(0.3, 1.0), weights=weights, batch=20)
    step = Step(family, model, config, closed_form(family, model))
    assert [t.name for t in step.terms] == list(WEIGHTS[objective])
    for term in step.terms:
        found, wanted = step.errors[term.name]
        assert found == pytest.approx(wanted, rel=1e-4) and found > 0
        assert step.gradients[term.name].norm() > 0
    assert step.total == pytest.approx(sum(w * step.errors[n][0] for n, w in weights.items()), rel=1e-4)
    mixed = sum(w * step.gradients[n] for n, w in weights.items())
    assert (step.gradient - mixed).norm() < 1e-3 * mixed.norm()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_points_of_a_term_are_where_and_whose_it_says(families, objective):
    family, model = families["sd1"], families["sd1"].model(**TINY["sd1"])
    config = replace(SMALL, objective=objective, window=(0.3, 0.8), batch=40, sampling_steps=6)
    step = Step(family, model, config, closed_form(family, model))
    shares = sum(t.share for t in step.terms)
    for term in step.terms:
        points, numbers = step.points[term.name]
        wanted = 40 * term.share / shares
        if OBJECTIVES[objective].whole:  # every point of the window, of all trajectories
            percents = points.percent.unique()
            wanted = len(percents) * config.trajectories
        assert len(points) == pytest.approx(wanted, abs=0.51)
        assert numbers == (points.prompt.tolist() if term.prompt == "prompt" else [step.uncond] * len(points))
        late = (points.percent >= 0.3) & (points.percent <= 0.8)
        assert {"late": late, "early": points.percent < 0.3, "all": late | True}[term.when].all()
        assert (points.prompt == points.neutral).all() == (term.role == "keep")


@pytest.mark.parametrize("strength", [0.25, 0.5])
def test_a_graded_concept_is_steered_a_part_of_the_way(families, strength):
    """Before the first step the network is at p0(c), so the error is the strength squared times that of
    the whole way.
    """
    first = {}
    for s in (1.0, strength):
        model = families["sd1"].model(**TINY["sd1"])
        result = finetune(
            model, families["sd1"].clip, [Concept("cat", "dog", strength=s)], KEEP, replace(SMALL, steps=1)
        )
        first[s] = result.report["losses"][0]["erase"]
    assert first[strength] == pytest.approx(strength**2 * first[1.0], rel=0.02)


def test_a_combination_is_trained_where_both_are_asked_for_and_kept_apart(families):
    seen = {}

    def look(self, *args, plain=Trainer.fill_bank):
        seen.update(trainer=self)
        raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Trainer, "fill_bank", look)
        finetune(
            families["sd1"].model(**TINY["sd1"]),
            families["sd1"].clip,
            parse_concepts("cat + red background"),
            ["dog"],
            SMALL,
        )
    trainer = seen["trainer"]
    erased = [trainer.prompts.texts[n] for n, _ in trainer.erase_pairs]
    neutral = [trainer.prompts.texts[n] for _, n in trainer.erase_pairs]
    kept = [trainer.prompts.texts[n] for n, _ in trainer.keep_pairs]
    assert (
        erased
        and all("cat" in t and "red" in t for t in erased)
        and not any("cat" in t and "red" in t for t in neutral + kept)
    )
    assert any("cat" in t for t in kept) and any("red background" in t for t in kept)


def test_terms_of_weight_zero_are_left_out(families):
    model = families["sd1"].model(**TINY["sd1"])
    config = replace(SMALL, weights={"keep": 0.0, "uncond": 0.0})
    step = Step(families["sd1"], model, config, None)
    assert [t.name for t in step.terms] == ["erase", "early"]


def test_without_a_part_before_the_window_nothing_is_early(families):
    step = Step(
        families["sd1"], families["sd1"].model(**TINY["sd1"]), replace(SMALL, window=(0.0, 1.0)), None
    )
    assert [t.name for t in step.terms] == ["erase", "keep", "uncond"]


def test_a_window_between_two_steps_is_refused(tiny, families):
    family, model = families["sd1"], families["sd1"].model(**TINY["sd1"])
    before = values(model)
    with pytest.raises(
        TraceError, match=r"no step of a trajectory lies late in the window \(0.99\d*, 1.0\); widen it"
    ):
        run(family, model, replace(SMALL, window=(0.9999, 1.0)))
    assert equal(values(model), before)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_the_concept_is_predicted_only_for_an_overshoot(families, eta):
    seen = {}

    def look(self, *args, plain=Trainer.fill_bank):
        plain(self, *args)
        seen.update({role: set(points.predictions) for role, points in self.bank.points.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "fill_bank", look)
        run(families["sd1"], families["sd1"].model(**TINY["sd1"]), replace(SMALL, steps=1, eta=eta))
    assert ("concept" in seen["erase"]) == bool(eta) and "neutral" in seen["erase"]
