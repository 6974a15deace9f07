"""The trials on models can fail: they are run on software that is broken in one place, and must find it.

They run with `--trials` only, as `make test-all` has it.
"""

from __future__ import annotations

import importlib
import random
from unittest import mock

import pytest
import torch

import fault_trials
from fault_trials import ChangedModel, UnclearError

TRIALS = 60


@pytest.fixture(scope="module")
def stage(request, engine):
    if not request.config.getoption("--trials"):
        pytest.skip("runs with --trials, as in `make test-all`")
    return importlib.import_module("fault_trials.stage")


def raises(error: type):
    def broken(*_, **__):
        raise error("broken")

    return broken


def in_pack(module: str, name: str, value):
    """A name of a module of the pack's copy, or of the library that the trials use."""

    def context(stage):
        return mock.patch.object(stage.part(module), name, value)

    return context


def of(module: str, name: str, value):
    """A name of a module, or of a class after a colon."""

    def context(stage):
        path, _, cls = module.partition(":")
        holder = importlib.import_module(path)
        return mock.patch.object(getattr(holder, cls) if cls else holder, name, value)

    return context


def undo_nothing(stage):
    """Adapters stay on the network."""
    adapters = stage.part("trace_core.finetune.adapters")
    return mock.patch.object(adapters._ModuleState, "restore", lambda self: None)


def drawn_by_chance(stage):
    """What is trained on does not follow from the seed."""

    def draw(self, pairs, count, seed):
        return random.choices(pairs, k=count)

    return mock.patch.object(stage.part("trace_core.finetune.trainer").Trainer, "draw_pairs", draw)


def drawn_by_time(stage):
    state = importlib.import_module("trace_core.finetune.resume").TrainingState
    plain = state.put

    def put(self, *given):
        return plain(self, *given) and self.step - 1

    return mock.patch.object(state, "put", put)


def writes_on_the_model(stage):
    """The erasure goes into the base model's own weights."""
    shapes = importlib.import_module("fault_trials.shapes")
    plain = shapes.apply

    def apply(model, *given):
        weight = next(
            p for n, p in model.model.named_parameters() if n.endswith(("to_k.weight", "txt_in.weight"))
        )
        with torch.no_grad():
            weight.copy_(weight.flip(0))
        return plain(model, *given)

    return mock.patch.object(shapes, "apply", apply)


def skips_no_layer(stage):
    """The closed form sets the text encoder's clip skip back."""
    fitter = importlib.import_module("trace_core.closed_form.fitter")
    plain = fitter.check_clip

    def check(backbone, clip):
        plain(backbone, clip)
        clip.clip_layer(-1)

    return mock.patch.object(fitter, "check_clip", check)


def no_number_is_finite(stage):
    return mock.patch.object(
        importlib.import_module("trace_core.finetune.trainer").math, "isfinite", lambda x: True
    )


ALWAYS = lambda *_: True  # noqa: E731
NEVER = lambda *_: False  # noqa: E731
NAN_IS_DRAWN = in_pack("trace_core.backbones.sampling", "is_finite", ALWAYS)
#: title of a fault -> the break, and what its trials must say
BREAKS = {
    "any width, type, rank and strength": (writes_on_the_model, ChangedModel),
    "values that no widget offers": (in_pack("nodes.widgets", "check", lambda *_: None), UnclearError),
    "cancel at a random moment": (undo_nothing, (ChangedModel, UnclearError)),
    "cancel storms": (undo_nothing, (ChangedModel, UnclearError)),
    "out of memory at an allocation": (in_pack("trace_core.errors", "is_out_of_memory", NEVER), UnclearError),
    "out of memory in a layer or text encoder": (
        in_pack("trace_core.errors", "is_out_of_memory", NEVER),
        UnclearError,
    ),
    "NaN at a step of a finetune": (no_number_is_finite, (UnclearError, ChangedModel)),
    "NaN from the model": (NAN_IS_DRAWN, UnclearError),
    "NaN from the text encoder": (
        NAN_IS_DRAWN,
        UnclearError,
    ),
    "NaN in a weight": (NAN_IS_DRAWN, UnclearError),
    "moved or unloaded between phases": (drawn_by_chance, ChangedModel),
    "other LoRAs and patches on the model": (
        of("trace_core.lora.gating", "check_fits", raises(KeyError)),
        UnclearError,
    ),
    "clip skip changed": (skips_no_layer, ChangedModel),
    "stop and resume of a finetune": (drawn_by_time, ChangedModel),
}


def test_every_fault_has_a_break(engine):
    assert set(BREAKS) == {fault.title for fault in fault_trials.faults(fault_trials.ENGINE)}


@pytest.mark.parametrize("title", BREAKS)
def test_trials_find_the_break(stage, title):
    fault = next(f for f in fault_trials.faults(fault_trials.ENGINE) if f.title == title)
    for kind in stage.KINDS:  # what is compared with is made before the break
        for name in stage.RUNS:
            stage.undisturbed(name, kind)
    context, problems = BREAKS[title]
    try:
        with context(stage), pytest.raises(problems):
            fault_trials.run(fault, TRIALS, shrink=False)
    finally:
        if context is undo_nothing:
            start_afresh(stage)


def start_afresh(stage) -> None:
    """The broken run may have left its marks on the models that all trials share."""
    for cached in (stage.model, stage._start, stage.second, stage.undisturbed):
        cached.cache_clear()
