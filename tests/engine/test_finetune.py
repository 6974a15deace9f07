"""The finetune on ComfyUI's model objects: what it leaves alone, where it stops, what it repeats and hands
back.
"""

from __future__ import annotations

import json
import logging
import random
from dataclasses import replace

import pytest
import torch

from trace_core.backbones import Backbone, backbone_for
from trace_core.cli import main
from trace_core.closed_form import erase
from trace_core.errors import ConceptError, LoraError, ModelError, TraceError
from trace_core.finetune import Diverged, FinetuneConfig, finetune
from trace_core.finetune.objectives import OBJECTIVES, trce
from trace_core.finetune.objectives.base import squared_error
from trace_core.finetune.options import PRESETS
from trace_core.finetune.resume import TrainingState
from trace_core.finetune.trainer import Trainer
from trace_core.lora import ErasureLora
from trace_core.lora.gating import apply
from trace_core.text.concepts import Concept
from trace_core.text.grammar import parse_concepts
from trace_core.text.templates import TEMPLATES

KINDS = ("sd1", "sdxl", "flux")
CAT = [Concept("cat", "dog")]
KEEP = ["bird"]
SMALL = FinetuneConfig(
    steps=4,
    batch=4,
    trajectories=2,
    keep_trajectories=1,
    refresh=2,
    sampling_steps=2,
    cfg=1.0,
    rank=2,
    lr=0.01,
    width=32,
    height=32,
    window=(0.2, 1.0),
    eta=0.5,
)
LEVEL = dict(channel_mult=[1], num_res_blocks=[1], transformer_depth=[1], transformer_depth_output=[1, 1])
TINY = {"sd1": LEVEL, "sdxl": LEVEL, "flux": dict(depth=1, depth_single=1)}


@pytest.fixture(autouse=True)
def few_templates(monkeypatch):
    monkeypatch.setitem(TEMPLATES, "object", ("a {}", "the {}"))


@pytest.fixture(autouse=True)
def nothing_stays_loaded():
    yield
    unload()


def unload() -> None:
    import comfy.model_management

    comfy.model_management.unload_all_models()


class Stop(Exception):
    """What a caller raises to cancel."""


class Listener:
    """Keeps every :class:`Progress`; raises at the one numbered ``stop``."""

    def __init__(self, stop: int | None = None, error: type = Stop):
        self.heard, self.stop, self.error = [], stop, error

    def __call__(self, progress):
        if len(self.heard) == self.stop:
            raise self.error
        self.heard.append(progress)


def run(family, model, config=SMALL, **options):
    return finetune(model, family.clip, CAT, KEEP, config, **options)


def closed_form(family, model) -> ErasureLora:
    return erase(model, family.clip, CAT, KEEP).lora


def same_factors(a: ErasureLora, b: ErasureLora) -> bool:
    return a.modules.keys() == b.modules.keys() and all(
        torch.equal(x, y) for m in a.modules for x, y in zip(a.modules[m], b.modules[m])
    )


def values(model) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in model.model.state_dict().items()}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


# ------------------------------------------------------------------------------------- the model is as it was


ENDINGS = ("success", "cancel", "error", "keyboard", "backward")


class Ending:
    """One way for a run to end, at a random place, and the options of that run."""

    def __init__(self, trial: int):
        self.draw = random.Random(trial)
        self.name = ENDINGS[trial % len(ENDINGS)]
        self.kind = KINDS[trial // len(ENDINGS) % len(KINDS)]
        self.inference, self.start = self.draw.random() < 0.5, self.draw.random() < 0.3
        self.config = replace(
            SMALL,
            steps=2,
            refresh=1,
            trajectories=1,
            scope=self.draw.choice(("text", "attention", "linear")),
            checkpointing=self.draw.random() < 0.5,
            objective=self.draw.choice(("trace", "ant", "esd")),
        )
        self.error = {"success": None, "keyboard": KeyboardInterrupt}.get(self.name, Stop)

    def listener(self) -> Listener:
        return Listener(self.draw.randrange(11) if self.name in ("cancel", "keyboard") else None, self.error)

    def hook(self, network):
        """Fails inside the network, in the random call of a random layer; or where the gradient comes back
        to it.
        """
        layer = self.draw.choice(
            [m for m in network.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
        )
        left = self.draw.randrange(1, 11)

        def fail(module, given, out):
            nonlocal left
            left -= 1
            if left == 0:
                raise Stop

        def fail_backward(module, given, out):
            if out.requires_grad:
                out.register_hook(lambda gradient: fail(None, None, None))

        if self.name == "backward":
            layer, left = network, self.draw.randrange(1, 3)
            return layer.register_forward_hook(fail_backward)
        return layer.register_forward_hook(fail) if self.name == "error" else None


@pytest.mark.parametrize("trial", range(50))
def test_model_is_as_it_was_however_the_run_ends(tiny, families, trial):
    """Bit for bit, object for object, flag for flag; half of the runs are in inference mode, as in
    ComfyUI's nodes.
    """
    ending = Ending(trial)
    family = families[ending.kind]
    with torch.inference_mode(ending.inference):
        model = family.model(**TINY[ending.kind])
        start = closed_form(family, model) if ending.start else None
        backbone_for(model).load()
        before = tiny.Snapshot(model)
        hook = ending.hook(model.model.diffusion_model)
        try:
            run(family, model, ending.config, start=start, report=ending.listener())
            ended = None
        except (Stop, KeyboardInterrupt) as error:
            ended = type(error)
        finally:
            if hook:
                hook.remove()
        assert ended == ending.error
        assert before.differences(tiny.Snapshot(model)) == []


@pytest.mark.parametrize("stop", [None, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_model_with_patches_keeps_them_and_comes_off_whole(tiny, families, kind, stop):
    family = families[kind]
    with torch.inference_mode():
        model = family.model(**TINY[kind])
        original, plain = values(model), family.sample(model, "a cat")
        patched = apply(model, closed_form(family, model))
        edited = family.sample(patched, "a cat")
        backbone_for(patched).load()
        before = tiny.Snapshot(patched)
        try:
            run(family, patched, replace(SMALL, steps=2), report=Listener(stop))
        except Stop:
            pass
        assert before.differences(tiny.Snapshot(patched)) == []
        assert torch.equal(family.sample(patched, "a cat"), edited) and not torch.equal(edited, plain)
        getattr(patched, "detach", unload)()  # older engines have no such call
        assert equal(values(model), original)
        assert torch.equal(family.sample(model, "a cat"), plain)
        assert torch.equal(family.sample(patched, "a cat"), edited)
        unload()
        assert equal(values(model), original)


def test_patches_count_as_part_of_the_model(families):
    """What is kept is the model as it came in, with its patches."""
    family = families["sd1"]
    model = family.model(**TINY["sd1"])
    patched = apply(model, closed_form(family, model))
    seen = {}

    def look(self, *args, plain=Trainer.fill_bank):
        plain(self, *args)
        seen.update(points=self.bank.points["keep"], prompts=self.prompts)
        raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Trainer, "fill_bank", look)
        run(family, patched)
    edited, points = backbone_for(patched), seen["points"]
    edited.load()
    with torch.no_grad():
        out = edited.predict(points.x.float(), points.sigma, seen["prompts"].batch(points.prompt))
    assert (points.predictions["concept"].float() - out).norm() < 1e-3 * out.norm()


# ------------------------------------------------------------------------------------- the loss


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
        out = trainer.backbone.predict(
            points.x.float(), points.sigma, trainer.prompts.batch(numbers)
        ).double()
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
        eta, origin = trainer.config.eta, "neutral" if trainer.objective.name == "trace" else "uncond"
        target = (1 + eta) * p[origin] - eta * p["concept"] if term.name == "erase" else p[term.needs[0]]
        return squared_error(out, target, points.sigma.double()).mean().item()

    @staticmethod
    def independent_attention(trainer, points, numbers) -> float:
        """MACE, eq. 3, with whole maps: the concept's words, the first end and all pads, where the region
        is.
        """
        maps, total = [], 0.0
        with trainer.backbone.attention_maps(maps):
            trainer.backbone.predict(points.x.float(), points.sigma, trainer.prompts.batch(numbers))
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
        assert len(points) == pytest.approx(40 * term.share / shares, abs=0.51)
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


# ------------------------------------------------------------------------------------- what a caller hears


@pytest.mark.parametrize("kind", KINDS)
def test_keep_points_are_sampled_once_and_erase_points_at_every_refresh(families, kind):
    heard = Listener()
    result = run(families[kind], families[kind].model(**TINY[kind]), replace(SMALL, steps=5), report=heard)
    first = [(p.phase, p.step) for p in heard.heard if p.phase.startswith("sample") and p.done == 0]
    assert first == [("sample keep", 0), ("sample erase", 0), ("sample erase", 2), ("sample erase", 4)]
    assert [p.step for p in heard.heard if p.phase == "train"] == [0, 1, 2, 3, 4, 5]
    assert [row["step"] for row in result.report["losses"]] == [0, 1, 2, 3, 4]
    last = heard.heard[-1]
    assert last.losses == {k: v for k, v in result.report["losses"][-1].items() if k != "step"}
    assert (
        last.steps_per_second > 0
        and last.eta_seconds == 0
        and last.bank_bytes == result.report["bank_bytes"] > 0
    )


def test_every_evaluation_is_counted(families, monkeypatch):
    """A forward pass of one sample is one, its backward pass two."""
    seen, plain = {"forward": 0, "trained": 0}, Backbone.predict

    def predict(self, x, *rest):
        seen["forward"] += len(x)
        seen["trained"] += len(x) * torch.is_grad_enabled()
        return plain(self, x, *rest)

    monkeypatch.setattr(Backbone, "predict", predict)
    result = run(families["sd1"], families["sd1"].model(**TINY["sd1"]), replace(SMALL, objective="ant"))
    assert result.report["evaluations"] == seen["forward"] + 2 * seen["trained"]
    assert seen["trained"] == SMALL.steps * SMALL.batch, "one forward and one backward a step"


def test_previews_show_the_student_on_the_same_prompts(families):
    shown = []
    config = replace(SMALL, preview_every=2, lr=0.1)
    run(
        families["sd1"],
        families["sd1"].model(**TINY["sd1"]),
        config,
        preview=lambda *given: shown.append(given),
    )
    assert [step for step, *_ in shown] == [0, 2, 4]
    assert {tuple(prompts) for *_, prompts in shown} == {("a cat", "a bird")}
    assert all(latents.shape == (2, 4, 4, 4) for _, latents, _ in shown)
    assert not torch.equal(shown[0][1], shown[2][1])


def test_first_preview_is_of_the_base_model(families):
    """So that what is erased stands beside what was, also where the closed form is in the starting point."""
    family, shown = families["sd1"], []
    model = family.model(**TINY["sd1"])
    for start in (None, closed_form(family, model)):
        run(
            family,
            model,
            replace(SMALL, preview_every=4),
            start=start,
            preview=lambda *given: shown.append(given),
        )
    (_, base, _), (_, plain, _), (_, again, _), (_, joined, _) = shown
    assert torch.equal(base, again)
    assert not torch.equal(plain, joined)


def test_a_preview_changes_no_result(families):
    family, model = families["sd1"], families["sd1"].model(**TINY["sd1"])
    plain = run(family, model)
    assert same_factors(
        run(family, model, replace(SMALL, preview_every=1), preview=lambda *given: None).lora, plain.lora
    )


# ------------------------------------------------------------------------------------- a seed is a run


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


# ------------------------------------------------------------------------------------- resume


def stopped(family, model, config, stop, path, **options) -> None:
    """A run that is cancelled, with its state in a file."""
    with pytest.raises(Stop):
        run(
            family, model, config, report=Listener(stop), checkpoint=lambda state: state.save(path), **options
        )


@pytest.mark.parametrize("trial", range(6))
def test_resumed_run_is_the_run_that_did_not_stop(families, tmp_path, trial):
    draw = random.Random(trial)
    family = families[KINDS[trial % 3]]
    model = family.model(**TINY[family.kind])
    start = closed_form(family, model) if trial % 2 else None
    window = "auto" if trial > 3 else (0.2, 1.0)
    config = replace(
        SMALL, steps=6, scope="attention", window=window, objective="ant" if trial == 2 else "trace"
    )
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
        LoraError, match="cannot resume: the training state was made for 'cat', this run erases 'ship'"
    ):
        finetune(model, family.clip, [Concept("ship")], KEEP, SMALL, resume=state)


# ------------------------------------------------------------------------------------- the loss leaves the
# numbers


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


# ------------------------------------------------------------------------------------- the result


class Student:
    """What the network predicts at the end of training, before the adapters come off."""

    def __enter__(self):
        plain, self.patch = Trainer.train, pytest.MonkeyPatch()
        generator = torch.Generator().manual_seed(2)

        def train(trainer, adapters, *rest):
            plain(trainer, adapters, *rest)
            sigma = torch.tensor([0.9, 0.3])
            x = torch.randn(2, *trainer.shape, generator=generator)
            self.given = x, sigma, trainer.prompts.batch([trainer.erase_pairs[0][0], trainer.uncond])
            with torch.no_grad():
                for state in ("student", "base"):
                    adapters.use(state)
                    setattr(self, state, trainer.backbone.predict(*self.given))

        self.patch.setattr(Trainer, "train", train)
        return self

    def __exit__(self, *error):
        self.patch.undo()

    @torch.no_grad()
    def of(self, model) -> torch.Tensor:
        backbone = backbone_for(model)
        backbone.load()
        return backbone.predict(*self.given)


@pytest.mark.parametrize("scope", ["text", "linear"])
@pytest.mark.parametrize("kind", KINDS)
def test_result_is_what_the_student_was(families, kind, scope, tmp_path, caplog):
    """As a file in the stock loader and applied by us: the start, the adapter, and nothing else."""
    import comfy.sd
    import comfy.utils

    family, model = families[kind], families[kind].model(**TINY[kind])
    start = closed_form(family, model)
    with Student() as student:
        result = run(family, model, replace(SMALL, scope=scope, lr=0.03), start=start)
    assert set(result.lora.modules) == set(start.modules) | set(result.adapter.modules)
    for module, (up, down) in result.lora.modules.items():
        parts = [lora.delta(module) for lora in (start, result.adapter) if module in lora.modules]
        assert up.dtype == down.dtype == torch.float16
        assert (result.lora.delta(module) - sum(parts)).norm() < 1e-6 * sum(parts).norm()
    wanted, effect = student.student, (student.student - student.base).norm()
    assert effect > 0.02 * wanted.norm(), "an edit that small would show nothing"
    path = result.lora.save(tmp_path / "cat.safetensors")
    with caplog.at_level(logging.DEBUG):
        stock, _ = comfy.sd.load_lora_for_models(
            model, None, comfy.utils.load_torch_file(str(path), safe_load=True), 1.0, 0.0
        )
    assert [r.getMessage() for r in caplog.records if "not loaded" in r.getMessage().lower()] == []
    assert set(stock.patches) == {m + ".weight" for m in result.lora.modules}
    for edited in (apply(model, result.lora), stock, apply(model, ErasureLora.load(path))):
        assert (student.of(edited) - wanted).norm() < 1e-3 * wanted.norm() + 0.01 * effect


def test_without_a_start_the_result_is_the_adapter(families):
    result = run(families["sd1"], families["sd1"].model(**TINY["sd1"]))
    assert same_factors(result.lora, result.adapter) and result.lora.rank == SMALL.rank


def test_file_says_how_it_was_made(families):
    family, model = families["flux"], families["flux"].model(**TINY["flux"])
    result = run(family, model, replace(SMALL, seed=3, window="auto"), start=closed_form(family, model))
    info = result.lora.info()
    assert info["trace.concepts"] == [["cat", "dog", 1.0]] and info["trace.keep"] == KEEP
    assert info["trace.base"] == {"kind": "flux", "hash": backbone_for(model).model_hash()}
    assert result.lora.window == (0.0, 1.0), "the window is where it was trained; it is applied everywhere"
    report = json.loads(json.dumps(result.report))
    assert report["method"] == "trace" and report["window"] == list(result.report["parameters"]["window"])
    assert 0 <= report["window"][0] < report["window"][1] == 1.0


def test_training_teaches(families):
    """The concept's prediction moves towards its anchor's, the one that is kept stays where it was."""
    family, model = families["flux"], families["flux"].model(**TINY["flux"])
    config = replace(
        SMALL, steps=40, batch=16, trajectories=4, refresh=40, eta=0.0, window=(0.0, 1.0), scope="linear"
    )
    losses = run(family, model, config).report["losses"]
    early, late = (sum(row["erase"] for row in part) for part in (losses[:5], losses[-5:]))
    assert late < 0.5 * early
    assert losses[-1]["keep"] < losses[0]["erase"]


# ------------------------------------------------------------------------------------- refusals


REFUSED = {
    "no concept": (dict(concepts=[]), ConceptError, "nothing to erase; name at least one concept"),
    "kept": (dict(keep=["CAT"]), ConceptError, "stands in the erase list and in the keep list"),
    "rank": (dict(config=replace(SMALL, rank=999)), LoraError, "rank 999 exceeds the narrowest layer"),
    "bank": (dict(config=replace(SMALL, bank_limit=10)), TraceError, "more than the bank's 0 MB"),
    "scope": (dict(config=replace(SMALL, scope="all")), TraceError, "scope 'all' is unknown"),
    "long": (dict(concepts=[Concept("cat dog bird " * 30)]), ConceptError, "takes more rows of text"),
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


# ------------------------------------------------------------------------------------- the command line


@pytest.fixture
def short(monkeypatch):
    """A preset of two steps on few trajectories."""
    values = dict(steps=2, batch=4, trajectories=2, keep_trajectories=2, refresh=1)
    monkeypatch.setitem(PRESETS, "fast", values)
    return [
        "erase",
        "--model",
        "demo-sd",
        "--erase",
        "cat -> dog",
        "--keep",
        "bird",
        "--preset",
        "fast",
        "--size",
        "32",
    ]


@pytest.mark.parametrize("method", ["trace", "ant", "esd"])
def test_command_writes_a_file_that_info_shows(engine, short, method, tmp_path, capsys):
    out, state = tmp_path / "cat.safetensors", tmp_path / "state"
    options = [
        "--method",
        method,
        "--steps",
        "2",
        "--window",
        "0.3",
        "--weight",
        "erase=2",
        "--resume",
        str(state),
    ]
    report = tmp_path / "r.json"
    assert main([*short, *options, "--rank", "3", "--out", str(out), "--json", str(report)]) == 0
    assert "wrote " in capsys.readouterr().out and not state.exists(), "a state is gone when the run is done"
    written = json.loads(report.read_text())
    assert written["method"] == method and written["window"] == [0.3, 1.0] and len(written["losses"]) == 2
    assert written["parameters"]["weights"]["erase"] == 2.0 and written["parameters"]["rank"] == 3
    assert ("closed_form" in written) == (method == "trace")
    assert main(["info", str(out)]) == 0
    shown = capsys.readouterr().out
    assert '[["cat", "dog", 1.0]]' in shown and "sd1" in shown


def test_command_goes_on_where_it_was_stopped(engine, short, tmp_path, capsys, monkeypatch):
    whole, out, state = (tmp_path / name for name in ("whole.safetensors", "cat.safetensors", "state"))
    assert main([*short, "--method", "ant", "--out", str(whole)]) == 0
    plain = Trainer.fill_bank

    def interrupt(self, role, *rest):
        if role == "erase" and self.step == 1:
            raise KeyboardInterrupt
        plain(self, role, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fill_bank", interrupt)
        assert main([*short, "--method", "ant", "--out", str(out), "--resume", str(state)]) == 130
    assert state.exists() and not out.exists()
    assert main([*short, "--method", "ant", "--out", str(out), "--resume", str(state)]) == 0
    assert "going on from step 1" in capsys.readouterr().out and not state.exists()
    assert out.read_bytes() == whole.read_bytes()


WRONG = {
    "no window": (["--window", "late"], "--window 'late' is no window; write START, START,END or auto"),
    "three ends": (["--window", "0,0.5,1"], "--window '0,0.5,1' is no window"),
    "empty window": (["--window", "0.6,0.4"], "the window is 0.6 to 0.4; it must be 0 <= start < end <= 1"),
    "index": (["--window", "43"], "the window is 43.0 to 1.0"),
    "not a number": (["--window", "nan"], "the window is nan to 1.0"),
    "weight": (["--weight", "keep"], "--weight 'keep' is not TERM=NUMBER, such as keep=2"),
    "weight of nothing": (
        ["--weight", "nothing=1"],
        "objective trace has no term 'nothing'; it has erase, keep",
    ),
    "negative weight": (["--weight", "keep=-1"], "the weight of 'keep' is -1.0"),
    "steps": (["--steps", "0"], "steps is 0; it must lie between 1 and"),
    "lr": (["--lr", "7"], "lr is 7.0"),
    "damaged state": (["--resume", "BAD"], "cannot read 'bad.state' as a training state"),
    "foreign state": (["--resume", "LORA"], "'lora.safetensors' is no training state of this library"),
    "no place for a state": (["--resume", "BAD/state"], "cannot write '"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_options_are_named_before_the_model_loads(short, name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "trace_core.cli.commands.open_model", lambda name: pytest.fail("the model was loaded")
    )
    bad, lora = tmp_path / "bad.state", tmp_path / "lora.safetensors"
    bad.write_bytes(b"\0" * 50)
    ErasureLora({"diffusion_model.a": (torch.ones(2, 1), torch.ones(1, 3))}).save(lora)
    arguments, message = WRONG[name]
    arguments = [a.replace("BAD", str(bad)).replace("LORA", str(lora)) for a in arguments]
    out = tmp_path / "x.safetensors"
    assert main([*short, "--method", "trace", "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err and not out.exists()


def test_an_erasure_with_a_window_on_the_model_is_refused(families):
    """Training calls the network itself, past the place where a window is looked at."""
    family = families["sd1"]
    model = family.model(**TINY["sd1"])
    erased = apply(model, closed_form(family, model), 1.0, 0.2, 1.0)
    with pytest.raises(ModelError, match="after the finetune"):
        run(family, erased)
