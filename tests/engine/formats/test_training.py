"""Gradients and the finetune on float8, quantised files and GGUF."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from format_cases import FORMATS, QUANTISED, SMALL, fitting
from trace_core.backbones import backbone_for
from trace_core.closed_form import erase
from trace_core.finetune import finetune
from trace_core.finetune.adapters import attached
from trace_core.finetune.gradients import checkpointed, saved_apart, training_mode
from trace_core.text.concepts import Concept

WAYS = [("flux", f, False) for f in FORMATS] + [
    ("sd", f, False) for f in ("fp8 e5m2", "fp8 e4m3 fast", "scaled fp8")
]
WAYS += [
    ("flux", "fp8 e4m3", True),
    ("flux", "scaled fp8", True),
    ("flux", "int8", True),
    ("flux", "Q4_K", True),
    ("sd", "fp8 e4m3", True),
]


@pytest.mark.parametrize(("kind", "fmt", "checkpointing"), WAYS)
def test_gradient_is_the_slope_of_the_error(tiny, bench, tmp_path, kind, fmt, checkpointing):
    """Against finite differences, through every cast; afterwards the model is bit for bit and object for
    object as before.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        model = bench.load(tiny, fmt, tmp_path, kind=kind)
        backbone = backbone_for(model)
        backbone.load()
        before = tiny.Snapshot(model)
        with training_mode(backbone.engine):
            given, target = _inputs(kind, generator)
            blocks = checkpointed(backbone.network, backbone.blocks()) if checkpointing else nullcontext()
            with (
                attached(backbone, backbone.lora_targets("text"), 2, seed=1) as adapters,
                blocks,
                saved_apart(backbone.network),
            ):
                error = lambda: (backbone.predict(*given) - target).double().square().mean()  # noqa: E731
                parameters = adapters.parameters()
                assert all(p.dtype == torch.float32 for p in parameters)
                adapters.restore([0.05 * torch.randn(p.shape, generator=generator) for p in parameters])
                gradients = torch.autograd.grad(error(), parameters)
                exact, measured = _slopes(adapters, gradients, error, generator)
        assert before.differences(tiny.Snapshot(model)) == []
    assert all(g.norm() > 0 for g in gradients), "every factor is reached"
    assert (exact - measured).norm() < 0.01 * measured.norm()


def _inputs(kind: str, generator):
    randn = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    if kind == "flux":
        condition = {
            "c_crossattn": randn(2, 5, 256),
            "y": randn(2, 256),
            "guidance": torch.tensor([3.0, 3.0]),
        }
        x = randn(2, 16, 8, 8)
        return (x, torch.tensor([0.9, 0.4]), condition), randn(*x.shape)
    sigma = torch.tensor([3.0, 0.7])
    x = randn(2, 4, 8, 8) * (1 + sigma).view(-1, 1, 1, 1)
    return (x, sigma, {"c_crossattn": randn(2, 5, 32)}), randn(*x.shape)


@torch.no_grad()
def _slopes(adapters, gradients, error, generator, step: float = 1e-3):
    """Along three directions: by the gradient, and by central differences."""
    exact, measured, before = [], [], adapters.state()
    for _ in range(3):
        direction = [torch.randn(g.shape, generator=generator) for g in gradients]
        exact.append(sum((g * d).sum().item() for g, d in zip(gradients, direction)))
        found = []
        for sign in (1, -1):
            adapters.restore([p + sign * step * d for p, d in zip(before, direction)])
            found.append(error().item())
        measured.append((found[0] - found[1]) / (2 * step))
    adapters.restore(before)
    return torch.tensor(exact), torch.tensor(measured)


class Stop(Exception):
    """What a caller raises to cancel."""


@pytest.mark.parametrize("fmt", ("fp8 e4m3", "fp8 e4m3 fast", "fp8 e5m2", "scaled fp8", *QUANTISED, "Q4_K"))
def test_finetune_trains_and_leaves_the_base_alone(tiny, bench, families, tmp_path, fmt):
    """To the end, cancelled, and crashed in the backward pass; with patches on the model, in inference
    mode as in ComfyUI.
    """
    family = families["flux"]

    def stop(progress):
        if progress.phase == "train" and progress.step == 1:
            raise Stop

    with torch.inference_mode():
        model = fitting(bench, tiny, fmt, tmp_path, family)
        start = erase(model, family.clip, [Concept("cat", "dog")], ["bird"]).lora
        given = (model, family.clip, [Concept("cat", "dog")], ["bird"], SMALL)
        backbone_for(model).load()
        before = tiny.Snapshot(model)
        result = finetune(*given, start=start)
        with pytest.raises(Stop):
            finetune(*given, report=stop)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "backward", lambda *_: (_ for _ in ()).throw(Stop()))
            with pytest.raises(Stop):
                finetune(*given)
        assert before.differences(tiny.Snapshot(model)) == []
    assert len(result.report["losses"]) == 2 and set(start.modules) <= set(result.lora.modules)
    assert all(up.norm() > 0 for up, _ in result.adapter.modules.values())
