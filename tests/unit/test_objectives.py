"""The formulas that a finetune teaches, against the papers' own in float64, and options that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trace_core.errors import TraceError
from trace_core.finetune import FinetuneConfig
from trace_core.finetune.hardening import LEVELS
from trace_core.finetune.objectives import OBJECTIVES
from trace_core.finetune.objectives.ant import reversed_guidance
from trace_core.finetune.objectives.base import LIVE, WINDOWS, predicted, squared_error
from trace_core.finetune.objectives.esd import negative_guidance
from trace_core.finetune.objectives.mace import focal_density
from trace_core.finetune.objectives.trace import erase_target
from trace_core.finetune.objectives.trce import amplified, contrast, plain_error
from trace_core.finetune.options import PRESETS
from trace_core.finetune.saliency import largest
from trace_core.finetune.trajectory import REFERENCES
from trace_core.text.kinds import KINDS

SHAPE = (3, 4, 5, 6)


@pytest.fixture
def predictions():
    generator = torch.Generator().manual_seed(0)
    names = [*sorted(REFERENCES), *LIVE]
    return {name: torch.randn(SHAPE, generator=generator, dtype=torch.float64) for name in names}


# ------------------------------------------------------------------------------------- targets


def guided_away(start, concept, eta):
    """``p0(start) - eta (p0(c) - p0(start))``, number by number."""
    flat = zip(start.numpy().ravel(), concept.numpy().ravel())
    return np.array([(1.0 + eta) * s - eta * c for s, c in flat]).reshape(SHAPE)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(
    ("formula", "start"),
    [(reversed_guidance, "uncond"), (negative_guidance, "uncond"), (erase_target, "neutral")],
)
def test_erase_target_is_the_papers(predictions, formula, start, eta):
    """ANT, figure 1; ESD, equation 7; TRACE, stage 2: away from the concept, starting at neutral."""
    wanted = guided_away(predictions[start], predictions["concept"], eta)
    assert np.abs(formula(predictions, eta).numpy() - wanted).max() < 1e-8


def test_without_an_overshoot_steering_ends_at_neutral(predictions):
    del predictions["concept"]
    assert torch.equal(erase_target(predictions, 0.0), predictions["neutral"])


@pytest.mark.parametrize("name", REFERENCES)
def test_preserving_target_is_what_the_model_said(predictions, name):
    assert torch.equal(predicted(name)(predictions, 1.0), predictions[name])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_targets_move_with_nothing_but_what_they_need(predictions, name):
    for term in [t for t in OBJECTIVES[name].terms if t.target]:
        target = term.target({k: predictions[k] for k in term.needs}, 0.5)
        for need in term.needs:
            other = {**predictions, need: predictions[need] + 1}
            assert not torch.equal(term.target(other, 0.5), target), f"{term.name} does not use {need}"


# ------------------------------------------------------------------------------------- the tables


@pytest.mark.parametrize("name", OBJECTIVES)
def test_tables_name_what_there_is(name):
    objective = OBJECTIVES[name]
    assert objective.name == name and objective.source and objective.student in ("student", "base")
    assert len({t.name for t in objective.terms}) == len(objective.terms)
    for term in objective.terms:
        assert term.role in ("erase", "keep") and term.prompt in ("prompt", "uncond") and term.when in WINDOWS
        assert set(term.needs) <= {*REFERENCES, *LIVE} and term.weight > 0 and term.share > 0
    assert set(objective.kinds) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_papers_values_make_a_whole_configuration(name, kind):
    """Every None is replaced, and what the paper gives by kind is a valid option."""
    for model in ("sd1", "flux", "flux-schnell"):
        config = FinetuneConfig(objective=name).resolved(kind, model)
        assert (
            all(getattr(config, k) is not None for k in config.__dataclass_fields__) and config.kind == kind
        )
        flux = OBJECTIVES[name].transformer.get(kind, {}) if model.startswith("flux") else {}
        for option, value in {**OBJECTIVES[name].kinds[kind], **flux}.items():
            if option == "eta" and model == "flux" and OBJECTIVES[name].overshoot:
                value /= config.guidance  # which distillation has multiplied the difference by
            if option == "longer":
                option, value = "steps", value * PRESETS["balanced"]["steps"]
            assert getattr(config, option) == value


def test_a_style_takes_twice_the_presets_steps_and_no_more_than_the_user_says():
    for preset in PRESETS:
        for model in ("sd1", "flux"):
            assert (
                FinetuneConfig(preset=preset).resolved("style", model).steps == 2 * PRESETS[preset]["steps"]
            )
            assert FinetuneConfig(preset=preset).resolved("object", model).steps == PRESETS[preset]["steps"]
    assert FinetuneConfig(steps=7).resolved("style", "flux").steps == 7


@pytest.mark.parametrize("model", ["sd1", "flux"])
def test_a_combination_is_trained_longer_on_more_that_stays(model):
    found = FinetuneConfig().resolved("object", model, anchored=True, combined=True)
    preset = PRESETS["balanced"]
    assert (found.steps, found.keep_trajectories) == (3 * preset["steps"], 4 * preset["keep_trajectories"])
    assert (found.scope, found.weights, found.eta) == ("attention", {"keep": 3.0}, 0.0)
    mine = FinetuneConfig(steps=7, scope="text", weights={"keep": 2.0}).resolved(
        "object", model, combined=True
    )
    assert (mine.steps, mine.scope, mine.weights) == (7, "text", {"keep": 2.0})
    assert FinetuneConfig(objective="esd").resolved("object", model, combined=True).scope == "text"


@pytest.mark.parametrize("level", LEVELS)
def test_a_hardened_run_trains_more_layers_and_longer(level):
    preset, wanted = PRESETS["balanced"], LEVELS[level]
    found = FinetuneConfig(robust=level).resolved("object", "sd1")
    assert (found.scope, found.refresh) == (wanted.scope, wanted.refresh or preset["refresh"])
    assert found.steps == preset["steps"] * wanted.longer
    assert found.keep_trajectories == preset["keep_trajectories"] * wanted.wider
    given = FinetuneConfig(robust=level, scope="entry", refresh=7, steps=9).resolved("object", "sd1")
    assert (given.scope, given.refresh, given.steps) == ("entry", 7, 9)


@pytest.mark.parametrize("model", ["sd1", "flux"])
def test_an_anchor_needs_no_overshoot(model):
    assert FinetuneConfig().resolved("object", model, anchored=True).eta == 0
    assert FinetuneConfig(eta=0.5).resolved("object", model, anchored=True).eta == 0.5


def test_ant_keeps_the_uncond_terms_and_the_first_part_of_the_trajectory():
    """The released code computes two of the four terms without gradient."""
    terms = {(t.prompt, t.when): t for t in OBJECTIVES["ant"].terms}
    assert set(terms) == {(prompt, when) for prompt in ("prompt", "uncond") for when in ("late", "early")}
    for kind, (first, *weights) in {
        "style": (0.06, 0.4, 0.5, 0.2),
        "person": (0.2, 0.4, 0.5, 0.2),
        "explicit": (0.14, 1.0, 0.5, 0.5),
    }.items():
        config = FinetuneConfig(objective="ant").resolved(kind, "sd1")
        assert config.window == (first, 1.0)
        assert [config.weights[n] for n in ("early", "uncond late", "uncond early")] == weights


def test_given_options_win_over_the_papers():
    given = dict(
        eta=0.25, window=(0.3, 0.8), steps=7, batch=9, refresh=3, trajectories=2, keep_trajectories=5, cfg=2.0
    )
    config = FinetuneConfig(objective="ant", weights={"early": 3.0}, **given).resolved("style", "sd1")
    assert {k: getattr(config, k) for k in given} == given
    assert config.weights["early"] == 3.0
    assert config.weights["uncond late"] == OBJECTIVES["ant"].kinds["style"]["weights"]["uncond late"]


# ------------------------------------------------------------------------------------- the error


def some(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_error_is_a_weighted_mean_of_squares():
    out, target, sigma = some(1), some(2), torch.tensor([0.1, 1.0, 14.0], dtype=torch.float64)
    error = squared_error(out, target, sigma)
    assert error.shape == (3,) and not squared_error(out, out, sigma).any() and (error > 0).all()
    assert torch.allclose(squared_error(target + 3 * (out - target), target, sigma), 9 * error, rtol=1e-12)
    wanted = [
        (1 + min(float(s) ** 2, 30.0)) * np.mean((o - t) ** 2)
        for o, t, s in zip(out.numpy(), target.numpy(), sigma)
    ]
    assert np.abs(error.numpy() - wanted).max() < 1e-8


def test_error_of_what_happens_late_does_not_vanish():
    """In x0 space the same error of the prediction would weigh sigma squared."""
    out, target = some(1)[:1], some(2)[:1]
    late, early = (squared_error(out, target, torch.tensor([s], dtype=torch.float64)) for s in (0.01, 1.0))
    assert late > 0.1 * early


# ------------------------------------------------------------------------------------- losses of their own


def test_margin_loss_is_trces(predictions):
    """TRCE, stage 2: ``max(0, MSE(e, prefer) - MSE(e, reject) + 0.01)``, references at guidance 15, number
    by number.
    """
    safe, concept, empty = (predictions[k].numpy() for k in ("neutral", "concept", "uncond"))
    prefer, reject = safe + 15 * (safe - empty), concept + 15 * (concept - empty)
    for out in (
        some(1),
        predictions["neutral"],
        predictions["concept"],
        torch.from_numpy(prefer),
        torch.from_numpy(reject),
    ):
        found = contrast(out, predictions, torch.ones(3)).numpy()
        near, far = (((out.numpy() - r) ** 2).reshape(3, -1).mean(axis=1) for r in (prefer, reject))
        wanted = np.maximum(0, near - far + 0.01)
        assert np.abs(found - wanted).max() < 1e-8 * max(1, wanted.max())


def test_margin_loss_ends_where_the_safe_side_is_nearer_by_the_margin(predictions):
    out = amplified(predictions, "neutral").requires_grad_()
    error = contrast(out, predictions, torch.ones(3))
    assert not error.any()
    (gradient,) = torch.autograd.grad(error.sum(), out)
    assert not gradient.any()


def test_preserving_error_is_not_weighted(predictions):
    out = some(1)
    wanted = (out - predictions["start uncond"]).square().flatten(1).mean(1)
    assert torch.allclose(plain_error(out, predictions, torch.full((3,), 14.0)), wanted, rtol=1e-12)


def test_focal_density_is_maces():
    """MACE, eq. 5 with t1 = 200, t2 = 400, gamma = 0.05 on 1,000 steps: the peak at 300, 86 % between 200
    and 400.
    """
    t = torch.arange(1000, dtype=torch.float64)
    wanted = 1 / (1 + np.exp(-0.05 * (t.numpy() - 200))) - 1 / (1 + np.exp(-0.05 * (t.numpy() - 400)))
    found = focal_density(t / 1000)
    assert np.abs(found.numpy() - wanted).max() < 1e-8
    assert int(found.argmax()) == 300
    assert (found[200:401].sum() / found.sum()).item() == pytest.approx(0.86, abs=0.01)


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_largest_share_is_kept(share):
    """The released code of ANT sorts ascending and keeps the smallest."""
    values = some(4).abs()
    mask = largest(values, share)
    assert int(mask.sum()) == max(1, round(share * values.numel()))
    assert mask.all() or values[mask].min() > values[~mask].max()


# ------------------------------------------------------------------------------------- refusals


BAD = {
    "objective": (
        dict(objective="uce"),
        "objective 'uce' is unknown; use one of trace, mace, ant, trce, esd, gem, aegis",
    ),
    "preset": (dict(preset="slow"), "preset 'slow' is unknown; use one of fast"),
    "kind": (dict(kind="animal"), "kind 'animal' is unknown; use one of auto, object"),
    "no steps": (dict(steps=0), "steps is 0; it must lie between 1 and"),
    "batch": (dict(batch=1), "batch is 1"),
    "lr": (dict(lr=2.0), "lr is 2.0"),
    "lr is no number": (dict(lr=float("nan")), "lr is nan"),
    "eta": (dict(eta=-1.0), "eta is -1.0"),
    "rank": (dict(rank=0), "rank is 0"),
    "cfg": (dict(cfg=31.0), "cfg is 31.0"),
    "size": (dict(width=8), "width is 8"),
    "one step": (dict(sampling_steps=1), "sampling_steps is 1"),
    "term": (dict(weights={"late": 1.0}), "objective trace has no term 'late'; it has erase, keep"),
    "term of another": (
        dict(objective="esd", weights={"keep": 1.0}),
        "objective esd has no term 'keep'; it has erase",
    ),
    "window": (dict(window=(0.5, 0.5)), "the window is 0.5 to 0.5"),
    "negative weight": (dict(weights={"erase": -1.0}), "the weight of 'erase' is -1.0"),
    "weight is no number": (dict(weights={"keep": float("nan")}), "the weight of 'keep' is nan"),
    "hardening of another": (dict(objective="esd", robust=1), "objective esd cannot be hardened"),
    "no such level": (dict(robust=4), "robust is 4; it must lie between 0 and 3"),
    "maps that are thrown away": (dict(objective="mace", checkpointing=True), "turn checkpointing off"),
    "nothing to learn": (
        dict(objective="esd", weights={"erase": 0.0}),
        "every term of objective esd has weight 0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_named(name):
    options, message = BAD[name]
    with pytest.raises(TraceError) as raised:
        FinetuneConfig(**options)
    assert message in str(raised.value)


def test_every_option_says_what_it_is():
    assert all(f.metadata.get("help") for f in FinetuneConfig.__dataclass_fields__.values())
