"""Batches, precisions, low memory and compiled models in a window."""

from __future__ import annotations

import pytest
import torch

from gating_cases import NEARLY_ALL, distance, some_lora
from trace_core.backbones import backbone_for
from trace_core.errors import ModelError
from trace_core.lora.gating import SigmaGate, apply


def call(model, x, sigma, rows) -> torch.Tensor:
    """The model's prediction by way of its wrapper, as ComfyUI's sampler asks for it; ``sigma``
    ``[batch]``.
    """
    conditions = {"c_crossattn": rows, "transformer_options": {}}
    args = {"input": x, "timestep": sigma, "c": conditions, "cond_or_uncond": [0]}
    wrapper = model.model_options.get("model_function_wrapper")
    return (
        wrapper(model.model.apply_model, args) if wrapper else model.model.apply_model(x, sigma, **conditions)
    )


def batch(model, n: int, seed: int = 3):
    draw = torch.Generator().manual_seed(seed)
    width = backbone_for(model).context_layers()[0].columns
    return torch.randn(n, 4, 8, 8, generator=draw), torch.randn(n, 5, width, generator=draw)


def test_a_batch_at_different_sigmas_is_edited_row_by_row(models):
    model = models("sd1")
    gated, patched = (
        apply(model, some_lora(model), 1.0, 0.5, 1.0),
        apply(model, some_lora(model), 1.0, **NEARLY_ALL),
    )
    x, rows = batch(model, 4)
    border = model.get_model_object("model_sampling").percent_to_sigma(0.5)
    sigma = torch.tensor([3.0, 0.5, 1.01, 1.0]) * border
    base, full, mixed = (call(m, x, sigma, rows) for m in (model, patched, gated))
    for row, inside in enumerate((False, True, False, True)):
        assert torch.equal(mixed[row], (full if inside else base)[row])
        assert not torch.equal(mixed[row], (base if inside else full)[row])


def test_rows_that_are_no_batch_are_refused(models):
    model = models("sd1")
    gate = apply(model, some_lora(model), 1.0, 0.5, 1.0).model_options["model_function_wrapper"]
    path = next(iter(gate.paths.values()))
    with pytest.raises(ModelError, match="sample them one by one"):
        path(torch.ones(2) > 0, None, (torch.zeros(3, path.down.shape[1]),), torch.zeros(3, path.up.shape[0]))


def test_half_precision(models, families):
    """In float16 the low-rank path is as near to the exact edit as the patched weights are."""
    exact, half = models("sd1"), families["sd1"].model(dtype=torch.float16)
    lora = some_lora(exact)
    x, rows = batch(exact, 2)
    sigma = torch.full((2,), 1.0)
    wanted = call(apply(exact, lora, 1.0, **NEARLY_ALL), x, sigma, rows)
    gated = call(apply(half, lora, 1.0, **NEARLY_ALL), x, sigma, rows)
    base = call(half, x, sigma, rows)
    patched = apply(half, lora)
    patched.patch_model(device_to=torch.device("cpu"))
    with_patches = call(patched, x, sigma, rows)
    patched.unpatch_model(device_to=torch.device("cpu"))
    assert distance(wanted, base) > 0.05
    assert distance(gated, wanted) <= max(1.5 * distance(with_patches, wanted), 0.01)
    factors = next(
        iter(apply(half, lora, 1.0, **NEARLY_ALL).model_options["model_function_wrapper"].paths.values())
    )
    assert factors._factors(torch.zeros(1, dtype=torch.float16))[0].dtype == torch.float16


def test_low_vram_models_that_cast_weights_on_the_way(models):
    model = models("sd1")
    gated = apply(apply(model, some_lora(model, 1)), some_lora(model, 2), 1.0, **NEARLY_ALL)
    x, rows = batch(model, 2)
    sigma = torch.full((2,), 1.0)
    found = []
    for memory in (0, 1):
        gated.patch_model(device_to=torch.device("cpu"), lowvram_model_memory=memory)
        try:
            cast = any(bool(getattr(m, "weight_function", None)) for m in model.model.modules())
            assert cast == (memory > 0)
            found.append(call(gated, x, sigma, rows))
        finally:
            gated.unpatch_model(device_to=torch.device("cpu"))
    assert distance(found[0], found[1]) <= 1e-5


def test_factors_are_cast_once_and_used_by_a_later_backward(models):
    """ComfyUI samples in inference mode; what is cached there must serve a gradient later."""
    model = models("sd1")
    with torch.inference_mode():
        gated = apply(model, some_lora(model), 1.0, **NEARLY_ALL)
        x, rows = batch(model, 1)
        call(gated, x, torch.ones(1), rows)
    path = next(iter(gated.model_options["model_function_wrapper"].paths.values()))
    held = path._factors(torch.zeros(1))
    assert path._factors(torch.zeros(1)) is held and not any(f.is_inference() for f in held)
    text = torch.randn(1, 5, path.down.shape[1], requires_grad=True)
    path(None, None, (text,), torch.zeros(1, 5, path.up.shape[0])).sum().backward()
    assert torch.allclose(text.grad[0, 0], (held[1] @ held[0]).sum(0), atol=1e-5)
    gated.model_patches_to(torch.device("cpu"))
    assert not path._casts


def test_compiled_models_see_the_window(engine):
    """Compiled code ignores hooks that came after it was compiled."""

    class Schedule(torch.nn.Module):
        def percent_to_sigma(self, percent):
            return 10.0 * (1 - percent)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.diffusion_model, self.model_sampling = torch.nn.Sequential(torch.nn.Linear(4, 3)), Schedule()

    model = Model()
    compiled = torch.compile(model.diffusion_model, backend="eager")
    from trace_core.lora.gating import _LowRankPath

    name = "diffusion_model.0"
    path = _LowRankPath(name, model.diffusion_model[0], torch.ones(3, 1), torch.ones(1, 4), 1.0)
    gate = SigmaGate(model, {name: path}, 0.5, 1.0)
    x = torch.randn(2, 4)
    base = compiled(x)
    for sigma, wanted in ((9.0, base), (1.0, base + x.sum(1, keepdim=True)), (9.0, base)):
        out = gate(lambda x, t: compiled(x), {"input": x, "timestep": torch.full((2,), sigma), "c": {}})
        assert torch.allclose(out, wanted, atol=1e-6)
