"""Where ComfyUI's versions differ, both sides of each difference: what this engine has, and a stand-in for
what it has not.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, make_dataclass
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from trace_core.backbones import backbone_for, compat
from trace_core.closed_form import erase
from trace_core.demo import loader
from trace_core.errors import ModelError
from trace_core.finetune import FinetuneConfig, finetune
from trace_core.lora import ErasureLora
from trace_core.lora.gating import apply
from trace_core.text.concepts import Concept
from trace_core.text.templates import TEMPLATES

CAT, KEEP = [Concept("cat", "dog")], ["bird"]
SMALL = FinetuneConfig(
    steps=3,
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


@pytest.fixture(autouse=True)
def few_templates(monkeypatch, engine, nothing_stays_loaded):
    monkeypatch.setitem(TEMPLATES, "object", ("a {}", "the {}"))


def needs(function, argument: str) -> None:
    if argument not in inspect.signature(function).parameters:
        pytest.skip(f"this ComfyUI's {function.__qualname__} has no {argument}")


def same(a: ErasureLora, b: ErasureLora) -> bool:
    return a.modules.keys() == b.modules.keys() and all(
        torch.equal(x, y) for m in a.modules for x, y in zip(a.modules[m], b.modules[m])
    )


# ------------------------------------------------------------------------------------------ small differences


@pytest.mark.parametrize("new", [False, True])
def test_flux_config(new):
    params = make_dataclass("FluxParams", ["depth", *(["txt_ids_dims"] if new else [])])
    engine = SimpleNamespace(
        ldm=SimpleNamespace(flux=SimpleNamespace(model=SimpleNamespace(FluxParams=params)))
    )
    given = {"depth": 2}
    assert compat.flux_config(engine, given) == ({"depth": 2, "txt_ids_dims": []} if new else {"depth": 2})
    assert given == {"depth": 2}


def test_network_state():
    state = {"x_norm.scale": torch.ones(1)}
    assert compat.network_state(object(), state) is state
    new = SimpleNamespace(
        process_unet_state_dict=lambda s: {k.replace("scale", "weight"): s.pop(k) for k in list(s)}
    )
    assert set(compat.network_state(new, state)) == {"x_norm.weight"} and set(state) == {"x_norm.scale"}


def test_training_flag():
    old, new = (
        SimpleNamespace(model_management=SimpleNamespace(**held)) for held in ({}, {"in_training": False})
    )
    with compat.training_flag(old), compat.training_flag(new):
        assert not vars(old.model_management) and new.model_management.in_training is True
        with compat.training_flag(new):
            pass
        assert new.model_management.in_training is True
    with pytest.raises(KeyError), compat.training_flag(new):
        raise KeyError
    assert new.model_management.in_training is False


def test_clip_options(engine):
    import comfy

    class Old:
        def __init__(self, target=None):
            pass

    class New:
        def __init__(self, target=None, disable_dynamic=False):
            pass

    assert compat.clip_options(SimpleNamespace(sd=SimpleNamespace(CLIP=Old))) == {}
    assert compat.clip_options(SimpleNamespace(sd=SimpleNamespace(CLIP=New))) == {"disable_dynamic": True}
    assert isinstance(compat.clip_options(comfy), dict)


def test_a_static_model_is_itself(families):
    model = families["sd1"].model()
    assert not compat.is_dynamic(model) and compat.static_patcher(model) is model
    assert not compat.is_dynamic(SimpleNamespace()) and compat.is_dynamic(
        SimpleNamespace(is_dynamic=lambda: True)
    )


# ---------------------------------------------------------------------------------- dynamic memory management


@dataclass
class OnDisk:
    """A model whose weights are a mapped file, under what passes for dynamic memory management."""

    patcher: object
    file: object
    loads: list


@pytest.fixture
def on_disk(families, tmp_path):
    """ComfyUI's own dynamic patcher hands CPU models to the usual one; this one only says that it is
    dynamic.
    """
    import comfy.model_patcher

    def load(disable_dynamic=False):
        loads.append((disable_dynamic, torch.is_inference_mode_enabled()))
        patcher = families["sd1"].model(seed=1)
        patcher.model.diffusion_model.load_state_dict(load_file(file), assign=True)
        return patcher

    class Dynamic(comfy.model_patcher.ModelPatcher):
        def is_dynamic(self):
            return True

    needs(comfy.model_patcher.ModelPatcher.clone, "disable_dynamic")
    file, loads = tmp_path / "unet.safetensors", []
    save_file(families["sd1"].model().model.diffusion_model.state_dict(), file)
    first = load()
    loads.clear()
    out = Dynamic(first.model, first.load_device, first.offload_device)
    out.cached_patcher_init = (load, ())
    for p in out.model.parameters():
        p._model_dtype = p.dtype  # ComfyUI's cast reads it off the parameter itself
    return OnDisk(out, file, loads)


@pytest.mark.parametrize("inference", [True, False])
def test_a_finetune_trains_a_copy_and_leaves_the_mapped_model_alone(tiny, families, on_disk, inference):
    family, model = families["sd1"], on_disk.patcher
    before = {n: id(p) for n, p in model.model.named_parameters()}
    bytes_before, wanted = on_disk.file.read_bytes(), finetune(family.model(), family.clip, CAT, KEEP, SMALL)
    with torch.inference_mode(inference):
        result = finetune(model, family.clip, CAT, KEEP, SMALL)
    # once, without dynamic memory, and with tensors that gradients can use
    assert on_disk.loads == [(True, False)]
    assert (
        same(result.lora, wanted.lora)
        and result.lora.metadata["trace.base"] == wanted.lora.metadata["trace.base"]
    )
    assert {
        n: id(p) for n, p in model.model.named_parameters()
    } == before and on_disk.file.read_bytes() == bytes_before
    assert all(p._model_dtype == p.dtype and not p.requires_grad for p in model.model.parameters())
    positive, negative = (tiny.random_conditioning(model, seed=s) for s in (1, 2))
    for start in (0.0, 0.2):
        found, expected = (
            tiny.sample(apply(m, result.lora, 1.0, start, 1.0), positive, negative)
            for m in (model, family.model())
        )
        assert torch.equal(found, expected)


def test_patches_on_a_dynamic_model_are_trained_on(families, on_disk):
    family, static = families["sd1"], families["sd1"].model()
    first = erase(static, family.clip, CAT, KEEP).lora
    wanted = finetune(apply(static, first), family.clip, [Concept("ship")], KEEP, SMALL)
    found = finetune(apply(on_disk.patcher, first), family.clip, [Concept("ship")], KEEP, SMALL)
    assert same(found.lora, wanted.lora)


def test_the_closed_form_reads_a_dynamic_model_without_loading_it(families, on_disk):
    family, static = families["sd1"], families["sd1"].model()
    found, wanted = (erase(m, family.clip, CAT, KEEP).lora for m in (on_disk.patcher, static))
    assert (
        same(found, wanted)
        and found.metadata["trace.base"] == wanted.metadata["trace.base"]
        and not on_disk.loads
    )


def test_a_dynamic_model_that_cannot_be_loaded_again_is_refused_before_any_work(families, on_disk):
    on_disk.patcher.cached_patcher_init = None
    with pytest.raises(
        ModelError, match="its loader cannot load it again for training; use one of ComfyUI's own loaders"
    ):
        finetune(on_disk.patcher, families["sd1"].clip, CAT, KEEP, SMALL)


def test_comfyuis_own_dynamic_class(families, on_disk, monkeypatch):
    """Without a GPU nothing is cast, and its buffers for pinned memory are put aside; but the weights are
    read, and copied.
    """
    import comfy.model_patcher

    buffers = comfy.model_patcher.comfy_aimdo.host_buffer
    monkeypatch.setattr(
        buffers, "HostBuffer", lambda *_: SimpleNamespace(size=0, truncate=lambda *_, **__: None)
    )
    model = comfy.model_patcher.ModelPatcherDynamic(
        on_disk.patcher.model, torch.device("cuda", 0), torch.device("cpu")
    )
    model.cached_patcher_init = on_disk.patcher.cached_patcher_init
    assert compat.is_dynamic(model)
    static = compat.static_patcher(model)
    assert type(static) is comfy.model_patcher.ModelPatcher and static.model is not model.model
    assert not any(p.is_inference() for p in static.model.parameters())
    lora = erase(model, families["sd1"].clip, CAT, KEEP).lora
    assert same(lora, erase(families["sd1"].model(), families["sd1"].clip, CAT, KEEP).lora)
    assert set(apply(model, lora).patches) and apply(model, lora, 1.0, 0.2, 1.0).model is model.model
    backbone = backbone_for(model)
    assert backbone.model_hash() == backbone_for(families["sd1"].model()).model_hash()
    model.model.dynamic_pins.clear()  # its end would free memory of a GPU
    model.model.dynamic_patchers.clear()


# -------------------------------------------------------------------------------------- copies of demo models


@pytest.mark.parametrize("name", loader.MODELS)
def test_demo_models_say_how_to_load_them_again(engine, name):
    model, clip, _ = loader.load(name)
    assert getattr(model.model, loader.MARK) == name
    for patcher in (model, clip.patcher):
        factory, arguments = patcher.cached_patcher_init
        for options in ({}, {"disable_dynamic": True}):
            again = factory(*arguments, **options)
            assert (
                type(again) is type(patcher)
                and again.model is not patcher.model
                and not compat.is_dynamic(again)
            )
            held, found = patcher.model.state_dict(), again.model.state_dict()
            assert held.keys() == found.keys() and all(torch.equal(v, found[k]) for k, v in held.items())


@pytest.mark.parametrize("name", loader.MODELS)
def test_demo_models_are_copied_deeply_mark_and_erasure_included(tiny, engine, name):
    model, clip, _ = loader.load(name)
    needs(model.clone, "force_deepcopy")
    erased = apply(model, erase(model, clip, CAT, KEEP).lora, 1.0, 0.2, 1.0)
    deep = erased.clone(force_deepcopy=True)
    assert deep.model is not model.model and getattr(deep.model, loader.MARK) == name
    rows, pooled = clip.encode_from_tokens(clip.tokenize("a cat"), return_pooled=True)
    positive = [[rows, {"pooled_output": pooled}]]
    base, once, again = (tiny.sample(m, positive, positive, steps=4, cfg=1.0) for m in (model, erased, deep))
    assert torch.equal(once, again) and not torch.equal(base, once)
    copied = clip.clone()
    copied.patcher = clip.patcher.clone(force_deepcopy=True)
    copied.cond_stage_model = copied.patcher.model
    assert torch.equal(copied.encode_from_tokens(copied.tokenize("a cat")), rows)


@pytest.mark.parametrize("name", loader.MODELS)
def test_demo_models_go_to_other_devices(engine, name):
    model, clip, _ = loader.load(name)
    if not hasattr(model, "deepclone_multigpu"):
        pytest.skip("this ComfyUI has no split over several GPUs")
    for patcher in (model, clip.patcher):
        other = patcher.deepclone_multigpu(new_load_device=torch.device("cpu", 0))
        assert other.model is not patcher.model and other.load_device == torch.device("cpu", 0)


@pytest.mark.full_engine
@pytest.mark.parametrize("name", loader.MODELS)
def test_comfyuis_own_training_takes_a_demo_model(engine, name):
    """One step of the stock Train LoRA node, and our node applies what it made."""
    train = pytest.importorskip("comfy_extras.nodes_train").TrainLoraNode
    model, clip, _ = loader.load(name)
    rows, pooled = clip.encode_from_tokens(clip.tokenize("a cat"), return_pooled=True)
    given = {
        "model": model,
        "latents": {"samples": torch.randn(1, 16, 8, 8)},
        "positive": [[rows, {"pooled_output": pooled}]],
        "batch_size": 1,
        "grad_accumulation_steps": 1,
        "steps": 1,
        "learning_rate": 1e-3,
        "rank": 2,
        "optimizer": "SGD",
        "loss_function": "MSE",
        "seed": 0,
        "training_dtype": "fp32",
        "lora_dtype": "fp32",
        "quantized_backward": False,
        "algorithm": "LoRA",
        "gradient_checkpointing": True,
        "checkpoint_depth": 1,
        "offloading": False,
        "existing_lora": "[None]",
        "bucket_mode": False,
        "bypass_mode": False,
    }
    run = train.execute if hasattr(train, "execute") else train().train
    wanted = inspect.signature(run).parameters
    # before, no input was a list
    given = {k: [v] if hasattr(train, "execute") else v for k, v in given.items() if k in wanted}
    with torch.inference_mode():
        done = run(**given)
    parts = getattr(done, "args", done)
    lora = next(part for part in parts if isinstance(part, dict) and any("lora" in str(key) for key in part))
    assert all(v.isfinite().all() for v in lora.values())
    assert getattr(model.model, loader.MARK) == name and backbone_for(model).kind in ("sd1", "flux")
