"""Files for elsewhere: in kohya's and diffusers' keys, loaded by diffusers itself and by ComfyUI's stock
loader.
"""

from __future__ import annotations

import functools
import json

import pytest
import torch
from torch import nn

from trace_core.lora import ErasureLora
from trace_core.lora.formats import FORMATS

#: levels and blocks as the real ones have them, on 32 channels
SD = dict(
    num_res_blocks=[2] * 4,
    channel_mult=[1, 1, 2, 2],
    transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
    transformer_depth_output=[1] * 9 + [0] * 3,
)
SDXL = dict(
    num_res_blocks=[2] * 3,
    channel_mult=[1, 2, 2],
    transformer_depth=[0, 0, 2, 2, 1, 1],
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 1, 1, 1],
    transformer_depth_middle=1,
)
UNET = dict(in_channels=4, out_channels=4, layers_per_block=2)
DOWN, UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip(
        "diffusers", reason="diffusers is not installed (pip install --no-deps diffusers)"
    )


@pytest.fixture(scope="module")
def models(tiny):
    """ComfyUI's models by kind, each made once."""
    return functools.cache(
        lambda kind: {
            "sd1": lambda: tiny.tiny_sd(**SD),
            "sd2": lambda: tiny.tiny_sd(**SD, use_linear_in_transformer=True),
            "sdxl": lambda: tiny.tiny_sdxl(**SDXL),
            "flux": tiny.tiny_flux,
        }[kind]()
    )


def counterpart(diffusers, kind: str):
    """diffusers' own network of the same shape."""
    if kind == "flux":
        sizes = dict(
            num_attention_heads=4,
            attention_head_dim=16,
            joint_attention_dim=32,
            pooled_projection_dim=24,
            guidance_embeds=True,
        )
        return diffusers.FluxTransformer2DModel(
            in_channels=64, num_layers=2, num_single_layers=2, axes_dims_rope=(4, 6, 6), **sizes
        )
    if kind == "sdxl":
        added = dict(
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=16 + 6 * 256,
        )
        return diffusers.UNet2DConditionModel(
            **UNET,
            **added,
            block_out_channels=(32, 64, 64),
            down_block_types=("DownBlock2D", DOWN, DOWN),
            up_block_types=(UP, UP, "UpBlock2D"),
            cross_attention_dim=48,
            attention_head_dim=(2, 4, 4),
            transformer_layers_per_block=(1, 2, 1),
            use_linear_projection=True,
        )
    return diffusers.UNet2DConditionModel(
        **UNET,
        block_out_channels=(32, 32, 64, 64),
        cross_attention_dim=32,
        attention_head_dim=2,
        use_linear_projection=kind == "sd2",
        down_block_types=(DOWN, DOWN, DOWN, "DownBlock2D"),
        up_block_types=("UpBlock2D", UP, UP, UP),
    )


def key_map(model) -> dict:
    """ComfyUI's own map of diffusers' weights to its own."""
    import comfy.utils

    config = model.model.model_config.unet_config
    return (
        comfy.utils.flux_to_diffusers(config)
        if "depth_single_blocks" in config
        else comfy.utils.unet_to_diffusers(config)
    )


def erasure(model, kind: str, ranks=(4, 2, 3)) -> ErasureLora:
    """Of every linear layer (of FLUX those with a counterpart), of several ranks; convolutions of one
    pixel in SD 1.
    """
    generator, factors = torch.Generator().manual_seed(0), {}
    for name, module in model.model.diffusion_model.named_modules():
        if isinstance(module, nn.Linear) or (kind == "sd1" and name.endswith((".proj_in", ".proj_out"))):
            rows, columns, rank = (
                module.weight.shape[0],
                module.weight[0].numel(),
                ranks[len(factors) % len(ranks)],
            )
            factors[f"diffusion_model.{name}"] = (
                torch.randn(rows, rank, generator=generator) * 0.1,
                torch.randn(rank, columns, generator=generator),
            )
    lora = ErasureLora.from_factors(factors)
    lora.metadata = {
        "trace.base": json.dumps({"kind": kind, "hash": "0" * 16}),
        "trace.concepts": '[["cat", "", 1.0]]',
    }
    return lora


KINDS = ["sd1", "sd2", "sdxl", "flux"]


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_loads_every_key_and_adds_what_ours_says(models, diffusers, kind, tmp_path, caplog):
    model, network = models(kind), counterpart(diffusers, kind)
    layers = {name for name, _ in network.named_modules()}
    lora = erasure(model, kind)
    file = lora.save(tmp_path / "cat.safetensors", form="diffusers")
    pipe = pipeline(diffusers, kind, network)
    pipe.load_lora_weights(str(tmp_path), weight_name=file.name, adapter_name="cat")
    said = [
        r.getMessage()
        for r in caplog.records
        if "text_encoder" not in r.getMessage() and r.name.startswith("diffusers")
    ]
    assert not said, "diffusers warns of keys"
    loaded = {name.removesuffix(".base_layer"): parent for name, parent in adapted(network)}
    seen = set()
    for theirs, entry in key_map(model).items():
        own, rows, swap = (
            (entry, None, None)
            if isinstance(entry, str)
            else (entry[0], entry[1], entry[2] if len(entry) > 2 else None)
        )
        module = f"diffusion_model.{own.removesuffix('.weight')}"
        if theirs.removesuffix(".weight") not in layers:  # ComfyUI knows several names of some
            continue
        if not own.endswith(".weight") or module not in lora.modules:
            assert theirs.removesuffix(".weight") not in loaded
            continue
        delta = loaded.pop(theirs.removesuffix(".weight")).get_delta_weight("cat")
        up, down = (f.float() for f in lora.modules[module])
        up = up if swap is None else swap(up)
        up = up if rows is None else up.narrow(*rows)
        more = max(lora.rank - up.shape[1], 0)  # a sum is the same to the last digit if it has as many terms
        wanted = nn.functional.pad(up, (0, more)) @ nn.functional.pad(down, (0, 0, 0, more))
        assert torch.equal(delta.flatten(1), wanted), theirs
        assert torch.allclose(wanted, up @ down, rtol=0, atol=1e-6 * float(wanted.abs().max()))
        seen.add(module)
    assert seen == set(lora.modules) and not loaded


def adapted(network):
    """diffusers' layers that carry an adapter."""
    return [(name, module) for name, module in network.named_modules() if hasattr(module, "get_delta_weight")]


def pipeline(diffusers, kind: str, network):
    """diffusers' own pipeline around a network, without what a LoRA of it does not touch."""
    if kind == "flux":
        return diffusers.FluxPipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
            vae=None,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=network,
        )
    scheduler = diffusers.EulerDiscreteScheduler()
    if kind == "sdxl":
        return diffusers.StableDiffusionXLPipeline(
            vae=None,
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
            unet=network,
            scheduler=scheduler,
            add_watermarker=False,
        )
    return diffusers.StableDiffusionPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=network,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_stock_loader_reads_every_form_and_so_do_we(models, kind, form, tmp_path):
    import comfy.lora
    import comfy.lora_convert
    import comfy.utils

    model = models(kind)
    lora = erasure(model, kind)
    file = lora.save(tmp_path / "cat.safetensors", form=form)
    again = ErasureLora.load(file)
    assert again.fingerprint == lora.fingerprint and again.parts()[0].targets == ["cat"]
    assert again.to_bytes() == lora.to_bytes() or form == "kohya"
    if form == "diffusers" and kind != "flux":
        return  # ComfyUI itself does not read diffusers' names of a UNet's layers
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(
        comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(str(file))), keys
    )
    patched = model.clone()
    assert patched.add_patches(patches, 1.0)
    found = changes(patched)
    for module, change in found.items():
        assert torch.allclose(
            change.flatten(1), lora.delta(module), rtol=0, atol=1e-5 * float(lora.delta(module).abs().max())
        ), module
    assert set(found) == set(lora.modules)


def changes(patched) -> dict:
    """What the stock loader's patches do to every weight."""
    import comfy.lora

    out, weights = {}, patched.model_state_dict()
    for key, patches in patched.patches.items():
        weight = weights[key]
        out[key.removesuffix(".weight")] = comfy.lora.calculate_weight(
            patches, torch.zeros_like(weight, dtype=torch.float32), key
        )
    return out
