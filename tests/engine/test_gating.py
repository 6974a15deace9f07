"""An erasure in a window of the schedule: steps outside are the base model's to the bit, and nothing stays
behind.
"""

from __future__ import annotations

import copy
import logging

import pytest
import torch

from trace_core.backbones import backbone_for
from trace_core.errors import LoraError, ModelError
from trace_core.lora import ErasureLora
from trace_core.lora.gating import SigmaGate, apply, base_mismatch, erasures_on

KINDS = ("sd1", "sdxl", "flux")
SAMPLERS = ("euler", "dpmpp_2m", "dpmpp_2m_sde")
STEPS = 6
NEARLY_ALL = {"start": 0.0, "end": 0.999999}  #: holds every sigma that is sampled, in the gated way
SD_CONVOLUTIONS = ("diffusion_model.input_blocks.1.1.proj_in", "diffusion_model.input_blocks.1.0.in_layers.2")
FLUX_DEEP = (
    "diffusion_model.double_blocks.0.txt_attn.qkv",
    "diffusion_model.double_blocks.1.img_mod.lin",
    "diffusion_model.single_blocks.0.linear1",
)


@pytest.fixture(scope="module")
def models(families):
    """``models(kind)``: one model that every test reads and none may change, with nobody's patches on the
    network.
    """
    import comfy.model_management

    held = {}

    def get(kind):
        if kind not in held:
            held[kind] = families[kind].model()
        comfy.model_management.unload_all_models()
        return held[kind]

    return get


def some_lora(model, seed: int = 0, rank: int = 3, extra: tuple[str, ...] = (), **metadata) -> ErasureLora:
    """Random factors on every layer that reads text, and on ``extra`` modules."""
    draw = torch.Generator().manual_seed(seed)
    backbone = backbone_for(model)
    factors = {}
    for module in [layer.module for layer in backbone.context_layers() + backbone.pooled_layers()] + list(
        extra
    ):
        weight = model.model.get_submodule(module).weight
        up = torch.randn(weight.shape[0], rank, generator=draw)
        factors[module] = (
            up,
            0.3 * torch.randn(rank, weight[0].numel(), generator=draw) / weight[0].numel() ** 0.5,
        )
    lora = ErasureLora.from_factors(factors)
    lora.metadata.update(metadata)
    return lora


def run(
    tiny, model, sampler: str = "euler", sigmas: torch.Tensor | None = None, seed: int = 0
) -> list[tuple]:
    """Sample by ComfyUI; ``[(x, denoised)]`` of every step as its callback sees them, and the result."""
    import comfy.sample

    positive, negative = (tiny.random_conditioning(model, seed=s) for s in (1, 2))
    latent = torch.zeros(2, model.model.latent_format.latent_channels, 8, 8)
    noise = comfy.sample.prepare_noise(latent, seed)
    steps = []
    done = comfy.sample.sample(
        model,
        noise,
        STEPS,
        4.0,
        sampler,
        "simple",
        positive,
        negative,
        latent,
        disable_pbar=True,
        seed=seed,
        sigmas=sigmas,
        callback=lambda i, denoised, x, n: steps.append((x.clone(), denoised.clone())),
    )
    assert done.isfinite().all()
    return [*steps, (done, done)]


def last(tiny, model, **options) -> torch.Tensor:
    return run(tiny, model, **options)[-1][0]


def sigmas_of(model) -> torch.Tensor:
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)


def percent_before(model, step: int) -> float:
    """A share of the schedule between two sampled steps, ``step - 1`` and ``step``."""
    schedule = model.get_model_object("model_sampling")
    high, low = sigmas_of(model)[step - 1 : step + 1].tolist()
    return next(p / 1000 for p in range(1, 1000) if low < schedule.percent_to_sigma(p / 1000) < high)


def distance(a, b) -> float:
    return (a - b).abs().max().item()


def state_of(model) -> dict:
    """Everything of the shared network that hooks might touch, by identity where there is one."""
    network = model.model
    tables = [n for n in vars(torch.nn.Module()) if n.startswith("_") and "hooks" in n]
    return {
        "modules": [(name, id(m)) for name, m in network.named_modules()],
        "hooks": [
            [(t, list(getattr(m, t).items())) for t in tables if getattr(m, t)] for m in network.modules()
        ],
        "attributes": [sorted(vars(m)) for m in network.modules()],
        "forwards": ["forward" in vars(m) for m in network.modules()],
        "weights": {k: v.sum(dtype=torch.float64).item() for k, v in network.state_dict().items()},
        "options": repr(model.model_options),
    }


# ------------------------------------------------------------------------------------------- the guarantee


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


# ------------------------------------------------------------------------------------------- several of them


def several(model, order):
    """Erasures with strengths and windows of their own, one of them as patches, in the given order."""
    parts = [(0, 1.0, 0.0, 0.6), (1, 0.7, 0.4, 1.0), (2, -0.5, 0.0, 1.0), (3, 1.2, 0.2, 0.7)]
    for i in order:
        seed, *rest = parts[i]
        model = apply(model, some_lora(model, seed), *rest)
    return model


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


# ------------------------------------------------------------------------------------------- nothing stays
# behind


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
    with pytest.raises(ModelError, match="gone from the model"):
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


# ------------------------------------------------------------------------------------------- tensors of all
# sorts


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
    from trace_core.lora.gating import _Path

    name = "diffusion_model.0"
    path = _Path(name, model.diffusion_model[0], torch.ones(3, 1), torch.ones(1, 4), 1.0)
    gate = SigmaGate(model, {name: path}, 0.5, 1.0)
    x = torch.randn(2, 4)
    base = compiled(x)
    for sigma, wanted in ((9.0, base), (1.0, base + x.sum(1, keepdim=True)), (9.0, base)):
        out = gate(lambda x, t: compiled(x), {"input": x, "timestep": torch.full((2,), sigma), "c": {}})
        assert torch.allclose(out, wanted, atol=1e-6)


# ------------------------------------------------------------------------------------------- what is said


def test_what_is_on_a_model_is_recorded(models):
    model = models("sd1")
    lora = some_lora(model, **{"modelspec.title": "Erased: cat"})
    once = apply(model, lora, 0.5)
    twice = apply(once, some_lora(model, 1), 1.0, 0.2, 0.8)
    first = {
        "fingerprint": lora.fingerprint,
        "title": "Erased: cat",
        "strength": 0.5,
        "start": 0.0,
        "end": 1.0,
    }
    assert erasures_on(model) == () and erasures_on(once) == (first,)
    assert erasures_on(twice)[0] == first and erasures_on(twice)[1]["start"] == 0.2
    assert "trace_erasures" not in model.model_options
    assert erasures_on(apply(once, lora, 0.0)) == (first,)


def test_the_same_erasure_twice_is_announced(models, caplog):
    model = models("sd1")
    lora = some_lora(model)
    once = apply(model, lora, 1.0, 0.0, 0.5)
    apply(once, lora, 1.0, 0.5, 1.0)
    apply(once, some_lora(model, 1), 1.0)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        apply(once, lora, 1.0, 0.4, 1.0)
    assert "on this model already" in caplog.text


def test_another_base_is_announced_by_name(models, families, caplog):
    model, other = models("sd1"), families["sd1"].model(seed=1)
    base = f'{{"kind": "sd1", "hash": "{backbone_for(model).model_hash()}"}}'
    lora = some_lora(model, **{"trace.base": base, "modelspec.title": "Erased: cat"})
    assert base_mismatch(model, lora) is None and base_mismatch(other, some_lora(model)) is None
    apply(model, lora)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        applied = apply(other, lora, 1.0, 0.5, 1.0)
    assert "'Erased: cat' was made on another sd1 model" in caplog.text
    assert erasures_on(applied)


@pytest.mark.parametrize("said", ["3", '{"hash": 5}', '["x"]', "not json"])
def test_a_base_that_says_nothing_usable_is_no_mismatch(models, said):
    assert base_mismatch(models("sd1"), some_lora(models("sd1"), **{"trace.base": said})) is None


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ((float("nan"), 1.0), "start is nan"),
        ((0.0, float("nan")), "end is nan"),
        ((-0.1, 1.0), "start is -0.1"),
        ((0.0, 1.5), "end is 1.5"),
        ((0.5, 0.5), "an empty window"),
        ((0.8, 0.2), "start must be below end"),
        (("0", 1.0), "start is 0"),
        ((0.0, float("inf")), "end is inf"),
    ],
)
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_window_that_is_none_is_refused(models, window, message, strength):
    with pytest.raises(LoraError, match=message):
        apply(models("sd1"), some_lora(models("sd1")), strength, *window)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), "1", None])
def test_a_strength_that_is_no_number_is_refused(models, strength):
    with pytest.raises(LoraError, match="strength is"):
        apply(models("sd1"), some_lora(models("sd1")), strength)


def test_the_files_own_window(tiny, models):
    model = models("sd1")
    lora = some_lora(model, **{"trace.window": "[0.25, 0.75]"})
    assert erasures_on(apply(model, lora, 1.0, None, None))[0]["start"] == 0.25
    assert erasures_on(apply(model, lora, 1.0, None, 1.0))[0]["end"] == 1.0
    assert erasures_on(apply(model, lora))[0]["start"] == 0.0
    assert apply(model, some_lora(model), 1.0, None, None).patches
    for said in ("[0.5]", "[1, 0]", '"all"', "[0, NaN]", "null", '[0, "1"]'):
        bad = some_lora(model, **{"trace.window": said})
        with pytest.raises(LoraError, match="no window; give start and end"):
            apply(model, bad, 1.0, None, None)
        assert apply(model, bad, 1.0, 0.0, 1.0).patches


def test_layers_that_cannot_be_gated_are_refused_by_name(models):
    model = models("sd1")
    norm = "diffusion_model.out.0"
    lora = ErasureLora(
        {norm: (torch.zeros(model.model.get_submodule(norm).weight.shape[0], 1), torch.zeros(1, 1))}
    )
    with pytest.raises(LoraError, match=r"diffusion_model\.out\.0 is a GroupNorm.*use start 0 and end 1"):
        apply(model, lora, 1.0, 0.5, 1.0)


def test_a_model_without_a_schedule_is_refused(models):
    model = models("sd1").clone()
    model.add_object_patch("model_sampling", object())
    with pytest.raises(ModelError, match="has no sampling schedule"):
        apply(model, some_lora(model), 1.0, 0.5, 1.0)
