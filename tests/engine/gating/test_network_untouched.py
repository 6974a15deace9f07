"""A run in a window leaves the shared network as it was."""

from __future__ import annotations

import pytest
import torch

from gating_cases import last, several, some_lora, state_of
from trace_core.errors import ModelError
from trace_core.lora.gating import SigmaGate, apply, erasures_on


class Broken(Exception):
    pass


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["sd1", "flux"])
def test_an_error_inside_leaves_the_network_as_it_was(tiny, models, kind, error):
    model = models(kind)
    gated = several(model, (0, 1, 3))
    seen = []

    def fail(module, inputs, output):
        hooked = sum(len(m._forward_hooks) for m in model.model.modules())
        seen.append(hooked)
        if hooked > 1:
            raise error("in the model")

    wanted = last(tiny, gated)
    final = model.model.diffusion_model.out[2] if kind == "sd1" else model.model.diffusion_model.final_layer
    handle = final.register_forward_hook(fail)
    try:
        before = state_of(gated)
        with pytest.raises(error):
            last(tiny, gated)
        assert seen[-1] > 1
        assert state_of(gated) == before
    finally:
        handle.remove()
    assert torch.equal(last(tiny, gated), wanted)


def test_an_error_while_hooks_are_set_leaves_none(models):
    model = models("sd1")
    gated = apply(model, some_lora(model), 1.0, 0.0, 0.5)
    gate = gated.model_options["model_function_wrapper"]
    name, path = next(iter(gate.paths.items()))
    broken = SigmaGate(gate.model, {**gate.paths, name + ".gone": path}, 0.0, 0.5)
    before = state_of(model)
    with pytest.raises(ModelError, match="disappeared from the model"):
        broken(None, {"timestep": torch.tensor([100.0])})
    assert state_of(model) == before


def test_sampling_leaves_the_network_as_it_was(tiny, models):
    model = models("flux")
    gated = several(model, (0, 1, 3))
    last(tiny, gated)
    before = state_of(gated), state_of(model), last(tiny, model)
    last(tiny, gated)
    assert (state_of(gated), state_of(model)) == before[:2]
    assert torch.equal(last(tiny, model), before[2])


def test_clones_share_the_network_and_the_factors(tiny, models):
    model = models("sd1")
    gated = several(model, (0, 1))
    clone = gated.clone()
    gate, copied = (m.model_options["model_function_wrapper"] for m in (gated, clone))
    assert copied is gate and copied.model is model.model
    assert torch.equal(last(tiny, clone), last(tiny, gated))
    assert erasures_on(clone) == erasures_on(gated)
