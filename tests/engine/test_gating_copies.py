"""A window acts on the model that is called: deep clones, copies for devices, delegates for hooks, behind
wrappers; or it is an error.
"""

from __future__ import annotations

import functools
import inspect
import threading

import pytest
import torch

from engine_cases import some_lora
from trace_core.backbones import backbone_for, compat
from trace_core.backbones.running import called_model, eager
from trace_core.errors import ModelError
from trace_core.lora import ErasureLora
from trace_core.lora.gating import apply

KINDS = ("sd1", "flux")
LATE = {"start": 0.2, "end": 1.0}


@pytest.fixture(scope="module")
def made(families):
    """``made(kind)``: always the same model, that ComfyUI can load again: its weights follow from the
    seed.
    """
    import comfy.model_management

    held = {}

    def load(kind, disable_dynamic=False):
        return families[kind].model()

    def get(kind):
        if kind not in held:
            held[kind] = load(kind)
            held[kind].cached_patcher_init = (load, (kind,))
        comfy.model_management.unload_all_models()
        return held[kind]

    return get


def sampled(tiny, model, positive=None, steps: int = 4) -> list[torch.Tensor]:
    """What ComfyUI's callback sees of every step, and the result."""
    import comfy.sample

    positive, negative = (
        positive or tiny.random_conditioning(model, seed=1),
        tiny.random_conditioning(model, seed=2),
    )
    latent = torch.zeros(1, model.model.latent_format.latent_channels, 8, 8)
    seen = []
    done = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(latent, 0),
        steps,
        4.0,
        "euler",
        "simple",
        positive,
        negative,
        latent,
        disable_pbar=True,
        seed=0,
        callback=lambda i, denoised, x, n: seen.append(denoised.clone()),
    )
    return [*seen, done]


def equal(a: list, b: list) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


def on_another_object(gated, other):
    """The model as a copy would have it: options of the one, network of the other."""
    copy = gated.clone()
    copy.model = other.model
    return copy


def needs(function, argument: str) -> None:
    if argument not in inspect.signature(function).parameters:
        pytest.skip(f"this ComfyUI's {function.__qualname__} has no {argument}")


# ------------------------------------------------------------------------------------------- another object


@pytest.mark.parametrize("kind", KINDS)
def test_another_object_with_the_same_options_is_erased_alike(tiny, made, families, kind):
    gated = apply(made(kind), some_lora(made(kind)), 1.0, **LATE)
    copy = on_another_object(gated, families[kind].model())
    base, wanted = sampled(tiny, made(kind)), sampled(tiny, gated)
    assert equal(sampled(tiny, copy), wanted)
    assert torch.equal(wanted[0], base[0]) and not torch.equal(wanted[-1], base[-1])
    hooks = [m for patcher in (gated, copy) for m in patcher.model.modules() if m._forward_hooks]
    assert not hooks


@pytest.mark.parametrize("kind", KINDS)
def test_a_deep_clone_is_erased(tiny, made, kind):
    needs(made(kind).clone, "force_deepcopy")
    gated = apply(made(kind), some_lora(made(kind)), 1.0, **LATE)
    deep = gated.clone(force_deepcopy=True)
    assert deep.model is not gated.model
    assert equal(sampled(tiny, deep), sampled(tiny, gated))


def dynamic(patcher, load):
    """A model that says it is under dynamic memory management; ComfyUI's own class of such needs a GPU."""
    import comfy.model_patcher

    class Dynamic(comfy.model_patcher.ModelPatcher):
        non_dynamic_delegate_model = None

        def is_dynamic(self):
            return True

    if hasattr(comfy.model_patcher, "ModelPatcherDynamic"):
        Dynamic.get_non_dynamic_delegate = comfy.model_patcher.ModelPatcherDynamic.get_non_dynamic_delegate
    out = Dynamic(patcher.model, patcher.load_device, patcher.offload_device)
    out.cached_patcher_init = (load, ())
    return out


def test_a_clone_without_dynamic_memory_is_erased(tiny, made, families):
    needs(made("sd1").clone, "disable_dynamic")
    model = dynamic(made("sd1"), lambda disable_dynamic=False: families["sd1"].model())
    gated = apply(model, some_lora(model), 1.0, **LATE)
    static = gated.clone(disable_dynamic=True)
    assert not compat.is_dynamic(static) and static.model is not model.model
    assert equal(
        sampled(tiny, static), sampled(tiny, apply(made("sd1"), some_lora(made("sd1")), 1.0, **LATE))
    )


def hooked_conditioning(tiny, model, lora: ErasureLora) -> list:
    import comfy.hooks

    hooks = comfy.hooks.create_hook_lora(lora=lora.state_dict(), strength_model=0.7, strength_clip=0.0)
    return [[rows, {**options, "hooks": hooks}] for rows, options in tiny.random_conditioning(model, seed=1)]


@pytest.mark.parametrize("way", ["plain", "dynamic"])
def test_conditions_with_hooks(tiny, made, families, way):
    pytest.importorskip("comfy.hooks", reason="this ComfyUI has no hooks on conditions")
    model = made("sd1")
    if way == "dynamic":
        needs(model.clone, "disable_dynamic")
        model = dynamic(model, lambda disable_dynamic=False: families["sd1"].model())
    gated = apply(model, some_lora(model), 1.0, **LATE)
    positive = hooked_conditioning(tiny, model, some_lora(model, 5))
    base, erased = sampled(tiny, model, positive), sampled(tiny, gated, positive)
    assert torch.equal(base[0], erased[0]) and not torch.equal(base[-1], erased[-1])
    assert not torch.equal(base[0], sampled(tiny, model)[0])  # the hook is on
    assert not torch.equal(erased[-1], sampled(tiny, gated)[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_several_devices_at_once(tiny, made, kind):
    """ComfyUI's threads for each device; ``cpu`` and ``cpu:0`` are two to it."""
    pytest.importorskip("comfy.multigpu", reason="this ComfyUI has no split over several GPUs")
    model = made(kind)

    def split(patcher):
        patcher = patcher.clone()
        second = patcher.deepclone_multigpu(new_load_device=torch.device("cpu", 0))
        second.is_multigpu_base_clone = True
        patcher.set_additional_models("multigpu", [second])
        return patcher

    gated = apply(model, some_lora(model), 1.0, **LATE)
    called = set()
    base, wanted = sampled(tiny, split(model)), sampled(tiny, gated)
    for part in (split(gated), apply(split(model), some_lora(model), 1.0, **LATE)):
        own, other = part.model, part.get_additional_models_with_key("multigpu")[0].model
        assert own is not other
        networks = own.diffusion_model, other.diffusion_model
        handles = [
            n.register_forward_hook(lambda module, *_: called.add((threading.get_ident(), id(module))))
            for n in networks
        ]
        found = sampled(tiny, part)
        for handle in handles:
            handle.remove()
        assert {network for _, network in called} >= {id(n) for n in networks}
        for mine, one in zip(found, wanted):  # one pass of two rows is rounded otherwise than two passes
            assert (mine - one).abs().max() <= 1e-4 * one.abs().max()
        assert (
            torch.equal(found[0], base[0])
            and (found[-1] - base[-1]).abs().max() > 0.01 * base[-1].abs().max()
        )
    assert len({thread for thread, _ in called}) > 1


# ------------------------------------------------------------------------------------------- behind wrappers


def decorated(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        return function(*args, **kwargs)

    return inner


class Callable_:
    def __init__(self, function):
        self.inside = function

    def __call__(self, *args, **kwargs):
        return self.inside(*args, **kwargs)


WAYS = {
    "bound": lambda f: f,
    "partial": lambda f: functools.partial(f),
    "decorated": decorated,
    "closure": lambda f: lambda *args, **kwargs: f(*args, **kwargs),
    "model in a closure": lambda f: (
        lambda model: lambda *args, **kwargs: model.apply_model(*args, **kwargs)
    )(f.__self__),
    "partial with the model": lambda f: functools.partial(
        lambda model, *args, **kwargs: model.apply_model(*args, **kwargs), f.__self__
    ),
    "partial of a closure": lambda f: functools.partial(lambda *args, **kwargs: f(*args, **kwargs)),
}


@pytest.fixture(scope="module")
def behind(tiny, made, families):
    """A model with a late erasure, another model of the same weights, and what is drawn."""
    gated = apply(made("sd1"), some_lora(made("sd1")), 1.0, **LATE)
    return gated, families["sd1"].model(), sampled(tiny, gated)


@pytest.mark.parametrize("way", WAYS)
def test_the_model_behind_a_wrapper_is_found(tiny, made, behind, way):
    gated, other, wanted = behind
    made("sd1")  # unloads
    assert called_model(WAYS[way](other.model.apply_model)) is other.model
    ours = gated.model_options["model_function_wrapper"]
    copy = on_another_object(gated, other)
    copy.set_model_unet_function_wrapper(lambda apply_model, args: ours(WAYS[way](apply_model), args))
    assert equal(sampled(tiny, copy), wanted)


def test_what_says_no_model_or_two_is_no_answer(made, families):
    one, two = made("sd1").model, families["sd1"].model().model
    assert (
        called_model(None) is None
        and called_model(print) is None
        and called_model(Callable_(one.apply_model)) is None
    )
    assert called_model(lambda x: one.apply_model(x) + two.apply_model(x)) is None

    def empty():
        return later  # noqa: F821

    assert called_model(empty) is None


def test_a_wrapper_that_hides_the_model_works_on_its_own_and_fails_on_a_copy(tiny, made, families):
    model = made("sd1")
    gated = apply(model, some_lora(model), 1.0, **LATE)
    ours = gated.model_options["model_function_wrapper"]
    hidden = gated.clone()
    hidden.set_model_unet_function_wrapper(lambda apply_model, args: ours(Callable_(apply_model), args))
    assert equal(sampled(tiny, hidden), sampled(tiny, gated))
    with pytest.raises(ModelError, match="met none of its layers in a sampling step inside the window"):
        sampled(tiny, on_another_object(hidden, families["sd1"].model()))
    assert not [m for m in model.model.modules() if m._forward_hooks]


def test_a_step_that_another_node_answers_for_the_model_is_an_error(tiny, made):
    model = made("sd1").clone()
    answers = []

    def cache(apply_model, args):
        answers.append(args["timestep"].max().item())
        return torch.zeros_like(args["input"])

    model.set_model_unet_function_wrapper(cache)
    gated = apply(model, some_lora(model), 1.0, **LATE)
    border = model.get_model_object("model_sampling").percent_to_sigma(LATE["start"])
    with pytest.raises(ModelError, match="remove that node, or apply the erasure with start 0 and end 1"):
        sampled(tiny, gated)
    assert len(answers) > 1 and answers[-1] <= border < answers[-2]  # steps outside need no layer


@pytest.mark.full_engine
def test_easycache_within_the_window_is_an_error_and_not_a_silent_step(tiny, made):
    nodes = pytest.importorskip("comfy_extras.nodes_easycache", reason="this ComfyUI has no EasyCache")
    model = made("flux")
    gated = apply(model, some_lora(model), 1.0, 0.0, 0.999)
    cached = nodes.EasyCacheNode.execute(gated, 1e9, 0.1, 0.95, False).args[0]
    with pytest.raises(ModelError, match="a cache such as EasyCache"):
        sampled(tiny, cached, steps=8)
    whole = nodes.EasyCacheNode.execute(apply(model, some_lora(model)), 1e9, 0.1, 0.95, False).args[0]
    assert sampled(tiny, whole, steps=8)[-1].isfinite().all()


# ------------------------------------------------------------------------------------------ threads and casts


def test_another_threads_call_of_the_same_network_is_not_edited(made):
    """While one call is inside its window, another thread runs the bare model on the same modules."""
    model, found = made("sd1"), {}
    draw = torch.Generator().manual_seed(0)
    x, rows = (
        torch.randn(1, 4, 8, 8, generator=draw),
        torch.randn(1, 5, backbone_for(model).width("context"), generator=draw),
    )
    sigma = torch.ones(1)
    call = functools.partial(model.model.apply_model, x, sigma, c_crossattn=rows, transformer_options={})
    base = call()

    def before(apply_model, args):
        thread = threading.Thread(target=lambda: found.update(other=call()))
        thread.start()
        thread.join()
        return apply_model(args["input"], args["timestep"], **args["c"])

    under = model.clone()
    under.set_model_unet_function_wrapper(before)
    gate = apply(under, some_lora(model), 1.0, **LATE).model_options["model_function_wrapper"]
    conditions = {"c_crossattn": rows, "transformer_options": {}}
    edited = gate(
        model.model.apply_model, {"input": x, "timestep": sigma, "c": conditions, "cond_or_uncond": [0]}
    )
    assert torch.equal(found["other"], base) and not torch.equal(edited, base)


def test_a_cast_for_every_device_and_dtype_is_held(made):
    gate = apply(made("sd1"), some_lora(made("sd1")), 1.0, **LATE).model_options["model_function_wrapper"]
    path = next(iter(gate.paths.values()))
    kinds = [torch.zeros(1), torch.zeros(1, dtype=torch.float16), torch.zeros(1, device="meta")]
    held = [path._factors(like) for like in kinds]
    assert all(path._factors(like) is factors for like, factors in zip(kinds, held))
    assert [f[0].device.type for f in held] == ["cpu", "cpu", "meta"] and held[1][1].dtype == torch.float16


def test_the_compilers_stance_comes_back_when_the_last_call_is_done():
    from torch._dynamo import eval_frame

    before, inside, done = eval_frame._stance.stance, threading.Event(), threading.Event()

    def other():
        with eager():
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=other)
    with eager():
        thread.start()
        inside.wait(10)
    assert eval_frame._stance.stance == "force_eager"  # the other call is not done
    done.set()
    thread.join()
    assert eval_frame._stance.stance == before
