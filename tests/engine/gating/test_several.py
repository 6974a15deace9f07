"""Several erasures and patches of other nodes on one model."""

from __future__ import annotations

import pytest
import torch

from gating_cases import KINDS, NEARLY_ALL, distance, last, several, some_lora
from trace_core.lora.gating import apply


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_erasures_does_not_matter(tiny, models, kind):
    model = models(kind)
    runs = [last(tiny, several(model, order)) for order in ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1))]
    for other in runs[1:]:
        assert distance(runs[0], other) <= 1e-5 * max(1.0, runs[0].abs().max().item())
    for left_out in range(4):
        fewer = last(tiny, several(model, [i for i in range(4) if i != left_out]))
        assert distance(runs[0], fewer) > 1e-3


@pytest.mark.parametrize("first", ["gated", "stock"])
def test_beside_the_stock_lora_loader(tiny, models, first):
    import comfy.sd

    model = models("flux")
    stock, ours = some_lora(model, 1), some_lora(model, 2)
    result = model
    for way in ("gated", "stock") if first == "gated" else ("stock", "gated"):
        if way == "gated":
            result = apply(result, ours, 1.0, **NEARLY_ALL)
        else:
            result = comfy.sd.load_lora_for_models(result, None, stock.state_dict(), 0.8, 0.0)[0]
    wanted = last(tiny, apply(apply(model, stock, 0.8), ours))
    assert distance(last(tiny, result), wanted) <= 1e-5 * max(1.0, wanted.abs().max().item())


def test_wrappers_of_others_are_called(tiny, models):
    model, calls = models("sd1").clone(), []

    def before(apply_model, args):
        calls.append("before")
        return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(before)
    gated = apply(apply(model, some_lora(model, 1), 1.0, 0.0, 0.5), some_lora(model, 2), 1.0, 0.5, 1.0)
    ours = gated.model_options["model_function_wrapper"]

    def after(apply_model, args):
        calls.append("after")
        return ours(apply_model, args)

    last(tiny, gated)
    assert calls and set(calls) == {"before"}
    once = len(calls)
    chained = gated.clone()
    chained.set_model_unet_function_wrapper(after)
    assert torch.equal(last(tiny, chained), last(tiny, gated))
    assert calls.count("after") == once and calls.count("before") == 3 * once
    assert model.model_options["model_function_wrapper"] is before


def test_a_wrapper_before_ours_is_copied_moved_and_asked_as_comfyui_would(models):
    class Before:
        def __init__(self):
            self.heard = []

        def to(self, target):
            moved = Before()
            moved.heard = [*self.heard, target]
            return moved

        def models(self):
            return ["beside"]

    model = models("sd1").clone()
    before = Before()
    model.set_model_unet_function_wrapper(before)
    gated = apply(model, some_lora(model), 1.0, 0.5, 1.0)
    gate = gated.model_options["model_function_wrapper"]
    gated.model_patches_to(torch.device("cpu"))
    moved = gated.model_options["model_function_wrapper"]
    assert gate.previous.heard == [] and moved.previous.heard == [torch.device("cpu")]
    assert moved.models() == ["beside"] and moved.paths is gate.paths
    assert before.heard == []
