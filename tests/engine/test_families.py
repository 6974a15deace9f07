"""Which models are recognised, and that everything works on each: inpainting, v-prediction, distilled
samplers, narrower SDXL, Fill.
"""

from __future__ import annotations

import importlib
from dataclasses import MISSING, dataclass, field

import pytest
import torch

from engine_cases import condition_of
from trace_core.backbones import backbone_for
from trace_core.backbones.base import CONTEXT, POOLED
from trace_core.closed_form import erase
from trace_core.errors import ModelError
from trace_core.finetune import FinetuneConfig, finetune
from trace_core.lora.gating import apply
from trace_core.text.concepts import Concept
from trace_core.text.templates import TEMPLATES

CAT, KEEP = [Concept("cat", "dog")], ["bird"]
LEVEL = dict(channel_mult=[1], num_res_blocks=[1], transformer_depth=[1], transformer_depth_output=[1, 1])
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
SDXL = dict(context_dim=2048, adm_in_channels=2816, num_classes="sequential", use_linear_in_transformer=True)


@dataclass
class Model:
    """How to build a tiny model of one sort.

    Attributes:
        config: class of ``comfy.supported_models``.
        changes: of its UNet's configuration.
        kind: what it must be recognised as.
        state: keys of the file that ComfyUI reads the prediction type off.
        prediction: type of prediction, where the file does not tell.
        node: ``(class, arguments)`` of a ModelSampling node on top.
        channels: of the FLUX network's input, 0 for a UNet.
    """

    config: str
    changes: dict
    kind: str
    state: dict = field(default_factory=dict)
    prediction: str = ""
    node: tuple = ()
    channels: int = 0


MARKED = torch.ones(1)
MODELS = {
    "sd1 inpainting": Model("SD15", dict(context_dim=768, in_channels=9), "sd1"),
    "sd1 instructions": Model("SD15_instructpix2pix", dict(context_dim=768, in_channels=8), "sd1"),
    "sd1 lcm": Model("SD15", dict(context_dim=768), "sd1", node=("ModelSamplingDiscrete", ("lcm", False))),
    "sd1 x0": Model("SD15", dict(context_dim=768), "sd1", node=("ModelSamplingDiscrete", ("x0", False))),
    "sd2": Model("SD20", dict(context_dim=1024), "sd2"),
    "sd2 v": Model("SD20", dict(context_dim=1024), "sd2", prediction="V_PREDICTION"),
    "sd2 inpainting": Model("SD20", dict(context_dim=1024, in_channels=9), "sd2"),
    "sd2 unclip": Model(
        "SD21UnclipH", dict(context_dim=1024, adm_in_channels=2048, num_classes="sequential"), "sd2"
    ),
    "sdxl v zsnr": Model("SDXL", SDXL, "sdxl", state={"v_pred": MARKED, "ztsnr": MARKED}),
    "sdxl edm": Model("SDXL", SDXL, "sdxl", state={"edm_mean": MARKED, "edm_std": MARKED}),
    "sdxl edm v": Model(
        "SDXL",
        SDXL,
        "sdxl",
        state={"edm_vpred.sigma_max": 120 * MARKED, "edm_vpred.sigma_min": 0.002 * MARKED},
    ),
    "sdxl inpainting": Model("SDXL", {**SDXL, "in_channels": 9}, "sdxl"),
    "sdxl instructions": Model("SDXL_instructpix2pix", {**SDXL, "in_channels": 8}, "sdxl"),
    "sdxl zsnr node": Model("SDXL", SDXL, "sdxl", node=("ModelSamplingDiscrete", ("v_prediction", True))),
    "sdxl edm node": Model(
        "SDXL", SDXL, "sdxl", node=("ModelSamplingContinuousEDM", ("v_prediction", 120.0, 0.002))
    ),
    "ssd-1b": Model("SSD1B", {**SDXL, "transformer_depth_middle": -1}, "sdxl"),
    "vega": Model("Segmind_Vega", {**SDXL, "transformer_depth_middle": -1}, "sdxl"),
    "koala": Model("KOALA_700M", {**SDXL, "transformer_depth_middle": -2}, "sdxl"),
    "flux fill": Model("Flux", {}, "flux", channels=96),
    "flux depth": Model("Flux", {}, "flux", channels=32),
    "flux node": Model("Flux", {}, "flux", channels=16, node=("ModelSamplingFlux", (1.15, 0.5, 64, 64))),
}


@pytest.fixture(autouse=True)
def few_templates(monkeypatch, engine, nothing_stays_loaded):
    monkeypatch.setitem(TEMPLATES, "object", ("a {}", "the {}"))


@pytest.fixture(scope="module")
def build(tiny, fake, families):
    """``build(name)`` -> a model, its CLIP."""
    import comfy.model_base
    import comfy.supported_models

    clips = {
        768: fake.FakeClip(768, 24, ("l",)),
        1024: fake.FakeClip(1024, 24, ("h",)),
        2048: fake.FakeClip(2048, 24, ("l", "g"), pooled=1280),
    }

    def make(name):
        wanted = MODELS[name]
        if wanted.channels:
            model, clip = (
                tiny.tiny_flux(
                    **{**families["flux"].options, "depth": 1, "depth_single": 1}, channels=wanted.channels
                ),
                families["flux"].clip,
            )
        else:
            config = getattr(comfy.supported_models, wanted.config)(
                tiny.unet_config(**{**LEVEL, **wanted.changes})
            )
            config.unet_config["num_heads"] = 2
            config.unet_config.pop("num_head_channels", None)
            if wanted.prediction:
                config.model_type = lambda *_: getattr(comfy.model_base.ModelType, wanted.prediction)
            model, clip = (
                tiny.build(config, 0, torch.float32, wanted.state),
                clips[wanted.changes["context_dim"]],
            )
        if wanted.node:
            nodes = pytest.importorskip(
                "comfy_extras.nodes_model_advanced", reason="this engine has no sampling nodes"
            )
            model = getattr(nodes, wanted.node[0])().patch(model, *wanted.node[1])[0]
        return model, clip

    return make


def sampled(tiny, model, clip) -> list[torch.Tensor]:
    """What ComfyUI's callback sees of every step, and the result."""
    import comfy.sample

    def conditioning(prompt):
        rows, pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True)
        return [[rows, {"pooled_output": pooled}]]

    latent, seen = torch.zeros(1, model.model.latent_format.latent_channels, 4, 4), []
    done = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(latent, 0),
        4,
        4.0,
        "euler",
        "simple",
        conditioning("a cat"),
        conditioning(""),
        latent,
        disable_pbar=True,
        seed=0,
        callback=lambda i, denoised, x, n: seen.append(denoised.clone()),
    )
    return [*seen, done]


def values(model) -> dict:
    return {k: v.clone() for k, v in model.model.diffusion_model.state_dict().items()}


@pytest.mark.parametrize("name", MODELS)
def test_every_step_of_the_way_works(tiny, build, name):
    """Recognised; erased by both stages; applied whole and in a window, outside of which the steps are the
    base model's.
    """
    model, clip = build(name)
    before = values(model)
    backbone = backbone_for(model)
    assert backbone.kind == MODELS[name].kind
    assert (backbone.width(POOLED) is not None) == (backbone.kind in ("sdxl", "flux"))
    closed = erase(model, clip, CAT, KEEP)
    assert max(v["residual"] for v in closed.report["layers"].values()) < 0.7  # overshoot 0.5
    assert {layer.module for layer in backbone.layers(CONTEXT) + backbone.layers(POOLED)} == set(
        closed.lora.modules
    )
    trained = finetune(model, clip, CAT, KEEP, SMALL, closed.lora)
    assert len(trained.report["losses"]) == 3 and all(
        x == x and abs(x) < 1e6 for entry in trained.report["losses"] for x in entry.values()
    )
    assert max(up.abs().max() for up, _ in trained.adapter.modules.values()) > 0
    after = values(model)
    assert after.keys() == before.keys() and all(torch.equal(after[k], v) for k, v in before.items())
    base = sampled(tiny, model, clip)
    whole, late = (sampled(tiny, apply(model, trained.lora, 1.0, start, 1.0), clip) for start in (0.0, 0.2))
    assert all(x.isfinite().all() for x in (*base, *whole, *late))
    assert (
        not torch.equal(whole[0], base[0])
        and torch.equal(late[0], base[0])
        and not torch.equal(late[-1], base[-1])
    )


@pytest.mark.parametrize("name", MODELS)
def test_raw_predictions_are_what_the_network_says(build, name):
    """Whatever the schedule does with them: the network's own output is found again in the denoised
    picture.
    """
    model, clip = build(name)
    backbone, heard = backbone_for(model), []
    backbone.load()
    shape = backbone.latent_shape(32, 32)
    condition = condition_of(backbone, clip, "a cat", shape, 3.0)
    sigma = torch.tensor([backbone.sigma_at(0.5)])
    handle = backbone.network.register_forward_hook(lambda module, given, out: heard.append(out.float()))
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)) * sigma
    found = backbone.predict(x, sigma, condition)
    handle.remove()
    assert torch.allclose(found, heard[0], atol=1e-3 * heard[0].abs().max().item())


@pytest.mark.parametrize("name", ["sd1 inpainting", "flux fill"])
def test_an_inpainting_model_is_given_what_comfyui_gives_it(tiny, build, name):
    """An empty latent and a full mask, as in ComfyUI's own sampling from nothing."""
    model, clip = build(name)
    backbone, heard = backbone_for(model), []
    condition = condition_of(backbone, clip, "a cat", backbone.latent_shape(32, 32), 3.0)
    entry = model.model.diffusion_model

    def given(module, args, kwargs):
        heard.append(args[0][:1, model.model.latent_format.latent_channels :].clone())

    handle = entry.register_forward_pre_hook(given, with_kwargs=True)
    sampled(tiny, model, clip)
    handle.remove()
    assert torch.equal(condition["c_concat"], heard[0]) and heard[0].shape[1] == MODELS[name].changes.get(
        "in_channels", 96
    ) - {0: 4}.get(MODELS[name].channels, 16)


def test_unclips_image_embedding_is_left_alone(build):
    backbone = backbone_for(build("sd2 unclip")[0])
    assert "label_emb.0.0" not in {
        name for scope in ("text", "entry") for name in backbone.lora_targets(scope)
    }
    assert "label_emb.0.0" in backbone_for(build("sdxl v zsnr")[0]).lora_targets("text")


# ------------------------------------------------------------------------------------------- refused by name

UNETS = {
    "SDXLRefiner": dict(context_dim=1280, adm_in_channels=2560, num_classes="sequential"),
    "SVD_img2vid": dict(context_dim=1024, adm_in_channels=768, num_classes="sequential", in_channels=8),
    "SV3D_p": dict(context_dim=1024, adm_in_channels=1280, num_classes="sequential", in_channels=8),
    "SD_X4Upscaler": dict(context_dim=1024, in_channels=7, num_classes=1000, num_heads=2),
    "LotusD": dict(context_dim=1024, adm_in_channels=4, num_classes="sequential"),
}


def refused(model) -> str:
    with pytest.raises(ModelError, match="are not supported; use Stable Diffusion 1.x, 2.x, SDXL") as caught:
        backbone_for(model)
    return str(caught.value)


@pytest.mark.parametrize("name", UNETS)
def test_other_unets_are_refused_by_name(tiny, name):
    import comfy.supported_models

    if not hasattr(comfy.supported_models, name):
        pytest.skip(f"this ComfyUI has no {name}")
    config = getattr(comfy.supported_models, name)(tiny.unet_config(**LEVEL, **UNETS[name]))
    config.unet_config["num_heads"] = 2
    config.unet_config["num_head_channels"] = -1
    config.unet_config.pop("disable_self_attentions", None)  # one for every level of the real one
    assert name.removesuffix("D") in refused(tiny.build(config, 0, torch.float32))


def test_a_unet_with_an_unknown_label_is_refused(tiny):
    """SD1's class and widths, but something else at label_emb."""
    import comfy.supported_models

    config = comfy.supported_models.SD15(
        tiny.unet_config(context_dim=32, adm_in_channels=64, num_classes="sequential", **LEVEL)
    )
    config.unet_config["num_heads"] = 2
    assert "SD15" in refused(tiny.build(config, 0, torch.float32))


FLUX = dict(
    in_channels=16, out_channels=16, patch_size=2, vec_in_dim=24, context_in_dim=32, hidden_size=64,
    mlp_ratio=4.0, num_heads=4, depth=1,
    depth_single_blocks=1, axes_dim=[4, 4, 8], theta=10000, qkv_bias=True, guidance_embed=True,
)  # fmt: skip
RELATIVES = {
    "LongCatImage": dict(image_model="longcat_image", txt_ids_dims=[1, 2]),
    "HunyuanVideo": dict(image_model="hunyuan_video", patch_size=[1, 2, 2], axes_dim=[4, 4, 8]),
    "HunyuanImage21": dict(image_model="hunyuan_video", patch_size=[2, 2], axes_dim=[8, 8], vec_in_dim=None),
}  # fmt: skip


@pytest.mark.parametrize("name", RELATIVES)
def test_relatives_of_flux_are_refused_by_name(tiny, engine, name):
    import comfy.supported_models

    if not hasattr(comfy.supported_models, name):
        pytest.skip(f"this ComfyUI has no {name}")
    given = {**FLUX, **RELATIVES[name]}
    hunyuan = ("hunyuan_video", "HunyuanVideoParams")
    where = {"HunyuanVideo": hunyuan, "HunyuanImage21": hunyuan}
    module, params = where.get(name, ("flux", "FluxParams"))
    known = getattr(importlib.import_module(f"comfy.ldm.{module}.model"), params).__dataclass_fields__
    given = {k: None for k, f in known.items() if f.default is MISSING} | {
        k: v for k, v in given.items() if k in known or k == "image_model"
    }
    config = getattr(comfy.supported_models, name)(given)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device=torch.device("meta"))
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    assert name in refused(patcher)


@pytest.mark.parametrize(
    "name", ["Stable_Cascade_C", "AuraFlow", "ChromaRadiance", "Lens", "MageFlow", "ZImagePixelSpace"]
)
def test_other_networks_are_refused_by_name(engine, name):
    """By the name ComfyUI's class has, whatever is in the network."""
    import comfy.model_base
    import comfy.model_patcher

    cls = getattr(comfy.model_base, name.replace("Stable_Cascade", "StableCascade"), None)
    if cls is None:
        pytest.skip(f"this ComfyUI has no {name}")

    class Bare(cls):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.device, self.diffusion_model = None, torch.nn.Linear(2, 2)

    cpu = torch.device("cpu")
    assert cls.__name__ in refused(comfy.model_patcher.ModelPatcher(Bare(), cpu, cpu))
