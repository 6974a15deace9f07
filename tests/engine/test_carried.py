"""Models that carry what other nodes put on them: an erasure goes along with it, or one sentence says why
it cannot.
"""

from __future__ import annotations

import pytest
import torch

from engine_cases import some_lora
from trace_core.backbones import backbone_for
from trace_core.backbones.other_patches import changes_of_the_network
from trace_core.closed_form import erase
from trace_core.errors import LoraError, ModelError
from trace_core.finetune import FinetuneConfig, finetune
from trace_core.lora import ErasureLora
from trace_core.lora.gating import apply
from trace_core.text.concepts import Concept
from trace_core.text.templates import TEMPLATES

CAT, KEEP = [Concept("cat", "dog")], ["bird"]
SMALL = FinetuneConfig(
    steps=2,
    batch=4,
    trajectories=2,
    keep_trajectories=1,
    refresh=2,
    sampling_steps=2,
    cfg=1.0,
    rank=2,
    lr=0.01,
    width=64,
    height=64,
    window=(0.2, 1.0),
    eta=0.5,
)

#: Name -> module of comfy_extras, class, arguments, and what of it a finetune cannot see
NODES = {
    "RescaleCFG": ("model_advanced", "RescaleCFG", (0.7,), None),
    "ModelSamplingDiscrete": ("model_advanced", "ModelSamplingDiscrete", ("v_prediction", True), None),
    "PAG": ("pag", "PerturbedAttentionGuidance", (3.0,), None),
    "CFGZeroStar": ("cfg", "CFGZeroStar", (), None),
    "TCFG": ("tcfg", "TCFG", (), None),
    "SAG": ("sag", "SelfAttentionGuidance", (0.5, 2.0), "attn1 replaced"),
    "FreeU": ("freelunch", "FreeU", (1.1, 1.2, 0.9, 0.2), "output_block_patch"),
    "FreeU_V2": ("freelunch", "FreeU_V2", (1.3, 1.4, 0.9, 0.2), "output_block_patch"),
    "HyperTile": ("hypertile", "HyperTile", (32, 2, 0, False), "attn1_output_patch"),
    "DeepShrink": ("model_downscale", "PatchModelAddDownscale", (1, 2.0, 0.0, 0.35, True, "bicubic",
    "bicubic"), "input_block_patch_after_skip"),
    "Tome": ("tomesd", "TomePatchModel", (0.3,), "attn1_patch"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def few_templates(monkeypatch, engine, nothing_stays_loaded):
    monkeypatch.setitem(TEMPLATES, "object", ("a {}", "the {}"))


@pytest.fixture(scope="module")
def family(families):
    return families["sd1"]


@pytest.fixture
def model(family):
    return family.model(channel_mult=[1, 2])


def call(module: str, name: str, *arguments):
    """A node of comfy_extras, whichever way its generation of nodes is called."""
    node = getattr(
        pytest.importorskip(f"comfy_extras.nodes_{module}", reason=f"this engine has no nodes_{module}"), name
    )
    if hasattr(node, "FUNCTION") and not hasattr(node, "define_schema"):
        return getattr(node(), node.FUNCTION)(*arguments)[0]
    done = node.execute(*arguments)
    return getattr(done, "args", done)[0]


def sampled(tiny, family, model, steps: int = 4) -> list[torch.Tensor]:
    """What ComfyUI's callback sees of every step, and the result."""
    import comfy.sample

    latent, seen = torch.zeros(1, model.model.latent_format.latent_channels, 16, 16), []
    torch.manual_seed(0)  # some of these nodes draw at random
    done = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(latent, 0),
        steps,
        4.0,
        "euler",
        "simple",
        family.conditioning("a cat"),
        family.conditioning(""),
        latent,
        disable_pbar=True,
        seed=0,
        callback=lambda i, denoised, x, n: seen.append(denoised.clone()),
    )
    return [*seen, done]


def same(a: ErasureLora, b: ErasureLora) -> bool:
    return a.modules.keys() == b.modules.keys() and all(
        torch.equal(x, y) for m in a.modules for x, y in zip(a.modules[m], b.modules[m])
    )


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", NODES)
def test_erased_and_applied_with_another_nodes_patches(tiny, family, model, name, before):
    """The node on the model that is erased from, or on the erased one: the same pictures, erased in the
    window and nowhere else.
    """
    module, cls, arguments, _ = NODES[name]
    carrying = call(module, cls, model, *arguments)
    assert same(erase(carrying, family.clip, CAT, KEEP).lora, erase(model, family.clip, CAT, KEEP).lora)
    lora = some_lora(model)
    base, plain = sampled(tiny, family, carrying), sampled(tiny, family, model)
    assert not torch.equal(base[-1], plain[-1]) or name in ("TCFG", "CFGZeroStar")  # the node does something
    done = [
        apply(carrying, lora, 1.0, start, 1.0)
        if before
        else call(module, cls, apply(model, lora, 1.0, start, 1.0), *arguments)
        for start in (0.0, 0.2)
    ]
    whole, late = (sampled(tiny, family, m) for m in done)
    gated = sampled(tiny, family, apply(carrying, lora, 1.0, 0.0, 0.999999))
    assert (
        torch.equal(late[0], base[0])
        and not torch.equal(late[-1], base[-1])
        and not torch.equal(whole[0], base[0])
    )
    for a, b in zip(whole, gated):
        assert (a - b).abs().max() <= 1e-3 * b.abs().max()


@pytest.mark.parametrize("name", NODES)
def test_a_finetune_takes_it_along_or_refuses_it(family, model, name):
    module, cls, arguments, unseen = NODES[name]
    carrying = call(module, cls, model, *arguments)
    if unseen is None:
        assert changes_of_the_network(carrying) == []
        trained = finetune(carrying, family.clip, CAT, KEEP, SMALL)
        assert max(up.abs().max() for up, _ in trained.adapter.modules.values()) > 0
        other = finetune(model, family.clip, CAT, KEEP, SMALL)
        # guidance is not the network's, a schedule is
        assert same(trained.lora, other.lora) == (name != "ModelSamplingDiscrete")
        return
    assert unseen in changes_of_the_network(carrying)
    with pytest.raises(
        ModelError,
        match=f"the model has .*{unseen}.* from another node.*; train on the model before that node",
    ):
        finetune(carrying, family.clip, CAT, KEEP, SMALL)


def attention_patch(model, way: str):
    """What IPAdapters do: keys and values of their own beside the text's, in every cross-attention or in
    one.
    """
    carrying = model.clone()

    def patch(q, k, v, extra):
        return q, torch.cat((k, 0.5 * k[:, :2]), dim=1), torch.cat((v, v[:, :2].flip(-1)), dim=1)

    def replaced(q, k, v, extra):
        heads = extra["n_heads"]
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v) + 0.3 * v.mean(dim=2, keepdim=True)
        return out.transpose(1, 2).flatten(-2)

    if way == "attn2_patch":
        carrying.set_model_attn2_patch(patch)
    else:
        for number in range(9):
            for block in ("input", "middle", "output"):
                carrying.set_model_attn2_replace(replaced, block, number)
    return carrying


@pytest.mark.parametrize("way", ["attn2_patch", "attn2 replaced"])
def test_patches_on_the_cross_attention(tiny, family, model, way):
    carrying, lora = attention_patch(model, way), some_lora(model)
    base, whole, gated, late = (
        sampled(tiny, family, m)
        for m in (
            carrying,
            apply(carrying, lora),
            apply(carrying, lora, 1.0, 0.0, 0.999999),
            apply(carrying, lora, 1.0, 0.2, 1.0),
        )
    )
    assert not torch.equal(base[-1], sampled(tiny, family, model)[-1])
    assert torch.equal(late[0], base[0]) and not torch.equal(late[-1], base[-1])
    for a, b in zip(whole, gated):
        assert (a - b).abs().max() <= 1e-3 * b.abs().max() and not torch.equal(a, base[-1])
    assert same(erase(carrying, family.clip, CAT, KEEP).lora, erase(model, family.clip, CAT, KEEP).lora)
    with pytest.raises(ModelError, match=f"the model has {way} from another node"):
        finetune(carrying, family.clip, CAT, KEEP, SMALL)


def test_a_wrapper_of_another_node(family, model):
    carrying = model.clone()
    carrying.set_model_unet_function_wrapper(
        lambda apply_model, args: apply_model(args["input"], args["timestep"], **args["c"])
    )
    assert same(erase(carrying, family.clip, CAT, KEEP).lora, erase(model, family.clip, CAT, KEEP).lora)
    with pytest.raises(ModelError, match="the model has model_function_wrapper from another node"):
        finetune(carrying, family.clip, CAT, KEEP, SMALL)


@pytest.mark.parametrize("kind", ["apply_model", "diffusion_model"])
def test_wrappers_around_the_network(family, model, kind):
    extension = pytest.importorskip(
        "comfy.patcher_extension", reason="this ComfyUI has no wrappers around the network"
    )
    carrying = model.clone()
    carrying.add_wrapper_with_key(kind, "mine", lambda executor, *args, **kwargs: executor(*args, **kwargs))
    assert kind in vars(extension.WrappersMP).values()
    with pytest.raises(ModelError, match=f"the model has {kind} wrapper from another node"):
        finetune(carrying, family.clip, CAT, KEEP, SMALL)


@pytest.mark.full_engine
def test_a_lora_in_bypass_mode_is_refused_and_in_the_usual_way_counted_in(family, model):
    import comfy.sd

    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        pytest.skip("this ComfyUI has no bypass mode")
    state = some_lora(model, 5).state_dict()
    bypassed = comfy.sd.load_bypass_lora_for_models(model, None, state, 1.0, 0.0)[0]
    for run in (erase, finetune):
        with pytest.raises(ModelError, match="this model has a LoRA in bypass mode.*switch its bypass off"):
            run(bypassed, family.clip, CAT, KEEP)
    usual = comfy.sd.load_lora_for_models(model, None, state, 1.0, 0.0)[0]
    assert not same(erase(usual, family.clip, CAT, KEEP).lora, erase(model, family.clip, CAT, KEEP).lora)


def test_weights_that_another_node_computes_are_refused(family, model):
    if not hasattr(model, "add_weight_wrapper"):
        pytest.skip("this ComfyUI has no wrappers on weights")
    carrying = model.clone()
    carrying.add_weight_wrapper(backbone_for(model).context_layers()[0].key, lambda weight: 2 * weight)
    with pytest.raises(
        ModelError, match="another node recomputes diffusion_model.*; erase from the model before"
    ):
        erase(carrying, family.clip, CAT, KEEP)


# ------------------------------------------------------------------------------------------- compiled models


@pytest.fixture
def compiled(monkeypatch):
    """ComfyUI's TorchCompileModel with the backend that needs no C++ compiler."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **_: real(model=model, backend="eager"))
    yield lambda model: call("torch_compile", "TorchCompileModel", model, "inductor")
    torch._dynamo.reset()


def test_a_compiled_model(tiny, families, compiled):
    """The node before the erasure and after it; compiled code runs outside the window. Old ComfyUIs lose
    patches on such weights.
    """
    family = families["flux"]
    model = family.model(depth=1, depth_single=1)
    lora = some_lora(model)
    base, wanted = (sampled(tiny, family, m) for m in (model, apply(model, lora, 1.0, 0.2, 1.0)))
    whole = sampled(tiny, family, apply(model, lora))
    pairs = [
        (compiled(apply(model, lora, 1.0, 0.2, 1.0)), wanted),
        (apply(compiled(model), lora, 1.0, 0.2, 1.0), wanted),
    ]
    if "diffusion_model" in compiled(model).object_patches:
        with pytest.raises(
            LoraError, match="diffusion_model was compiled by another node in a way that loses patches"
        ):
            apply(compiled(model), lora)
        pairs += [(apply(compiled(model), lora, 1.0, 0.0, 0.999999), whole)]
    else:
        pairs += [(compiled(apply(model, lora)), whole), (apply(compiled(model), lora), whole)]
    for m, expected in [*pairs, (compiled(model), base)]:
        for a, b in zip(sampled(tiny, family, m), expected):
            assert (a - b).abs().max() <= 1e-3 * b.abs().max()
    assert not torch.equal(base[-1], wanted[-1])


def test_a_finetune_of_a_compiled_model(tiny, families, compiled):
    """As if it were not compiled; where compiling changes the model's modules (old ComfyUIs), one
    sentence.
    """
    family = families["flux"]
    model = family.model(depth=1, depth_single=1)
    carrying = compiled(model)
    sampled(tiny, family, carrying)
    if "torch.compile" in getattr(carrying, "wrappers", {}).get("apply_model", {}):
        assert same(
            finetune(carrying, family.clip, CAT, KEEP, SMALL).lora,
            finetune(model, family.clip, CAT, KEEP, SMALL).lora,
        )
    else:
        assert backbone_for(carrying).kind == "flux"
        with pytest.raises(
            ModelError, match="parts of this model are compiled.*before the node that compiles"
        ):
            finetune(carrying, family.clip, CAT, KEEP, SMALL)
