"""An erasure in a window of the schedule: steps outside are the base model's, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch

from gating_cases import (
    FLUX_DEEP,
    KINDS,
    NEARLY_ALL,
    SAMPLERS,
    SD_CONVOLUTIONS,
    STEPS,
    distance,
    last,
    percent_before,
    run,
    sigmas_of,
    some_lora,
)
from trace_core.lora.gating import apply


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", KINDS)
def test_steps_before_the_window_are_the_base_models(tiny, models, kind, sampler):
    model = models(kind)
    before = 3
    applied = apply(model, some_lora(model), 1.0, percent_before(model, before), 1.0)
    base, gated = run(tiny, model, sampler), run(tiny, applied, sampler)
    for step in range(before):
        assert torch.equal(gated[step][0], base[step][0]) and torch.equal(gated[step][1], base[step][1])
    assert torch.equal(gated[before][0], base[before][0])
    for step in range(before, STEPS):
        assert distance(gated[step][1], base[step][1]) > 1e-3
    assert distance(gated[-1][0], base[-1][0]) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_window_holds_both_its_ends_and_nothing_beyond(tiny, models, kind):
    """As ComfyUI's own timestep ranges: a condition counts unless sigma is above its start or below its
    end.
    """
    model = models(kind)
    gated = apply(model, some_lora(model), 1.0, 0.4, 0.7)
    top, bottom = (model.get_model_object("model_sampling").percent_to_sigma(p) for p in (0.4, 0.7))
    inside_of = {top * 1.001: False, top: True, (top + bottom) / 2: True, bottom: True, bottom * 0.999: False}
    for sigma, inside in inside_of.items():
        sigmas = torch.tensor([sigma, 0.0])
        assert torch.equal(last(tiny, gated, sigmas=sigmas), last(tiny, model, sigmas=sigmas)) != inside


@pytest.mark.parametrize("kind", KINDS)
def test_after_the_window_the_network_is_the_base_models(tiny, models, kind):
    model = models(kind)
    gated = apply(model, some_lora(model), 1.0, 0.0, percent_before(model, 3))
    halves = sigmas_of(model)[:4], sigmas_of(model)[3:]
    assert distance(last(tiny, gated, sigmas=halves[0]), last(tiny, model, sigmas=halves[0])) > 1e-3
    assert torch.equal(last(tiny, gated, sigmas=halves[1]), last(tiny, model, sigmas=halves[1]))


@pytest.mark.parametrize(("kind", "extra"), [("sd1", SD_CONVOLUTIONS), ("sdxl", ()), ("flux", FLUX_DEEP)])
@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_gated_and_patched_agree(tiny, models, kind, extra, strength):
    model = models(kind)
    lora = some_lora(model, extra=extra)
    base, patched = last(tiny, model), last(tiny, apply(model, lora, strength))
    gated = last(tiny, apply(model, lora, strength, **NEARLY_ALL))
    assert distance(patched, base) > 1e-2
    assert distance(gated, patched) <= 1e-5 * max(1.0, patched.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_schedule_is_plain_patches(models, kind):
    model = models(kind)
    applied = apply(model, some_lora(model), 1.0, 0, 1)
    assert "model_function_wrapper" not in applied.model_options
    assert len(applied.patches) == len(some_lora(model).modules)
    gated = apply(model, some_lora(model), 1.0, **NEARLY_ALL)
    assert not gated.patches and gated.patches_uuid == model.patches_uuid  # nothing to load again


@pytest.mark.parametrize("window", [(0.0, 1.0), (0.3, 0.9)])
def test_strength_0_is_the_base_model(tiny, models, window):
    model = models("sd1")
    none = apply(model, some_lora(model), 0.0, *window)
    assert none is not model and none.model is model.model
    assert none.model_options == model.model_options and not none.patches
    assert torch.equal(last(tiny, none), last(tiny, model))


def test_the_schedule_is_the_one_that_is_sampled_with(tiny, models):
    """A sampling node after the erasure moves the window with it."""
    model = models("sd1")
    gated = apply(model, some_lora(model), 1.0, 0.5, 1.0)
    shifted = gated.clone()
    schedule = copy.deepcopy(model.get_model_object("model_sampling"))
    schedule.set_sigmas(2 * schedule.sigmas)
    shifted.add_object_patch("model_sampling", schedule)
    sigma = (
        schedule.percent_to_sigma(0.5) + model.get_model_object("model_sampling").percent_to_sigma(0.5)
    ) / 2
    sigmas = torch.tensor([sigma, 0.0])
    base = model.clone()
    base.add_object_patch("model_sampling", schedule)
    assert torch.equal(last(tiny, gated, sigmas=sigmas), last(tiny, model, sigmas=sigmas))
    assert not torch.equal(last(tiny, shifted, sigmas=sigmas), last(tiny, base, sigmas=sigmas))
