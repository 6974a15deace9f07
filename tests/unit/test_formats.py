"""LoRA files as other software writes them: read by name, joined where FLUX has one layer for several,
float8 widened.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from trace_core.cli import main
from trace_core.errors import LoraError
from trace_core.lora import ErasureLora
from trace_core.lora import keys as lora_keys

#: what other software calls a layer -> what ComfyUI's network calls it
NAMES = {
    "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn2_to_k": "input_blocks.2.1.transformer_blocks.0.attn2.to_k",  # noqa: E501
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0": "middle_block.1.transformer_blocks.0.attn1.to_out.0",  # noqa: E501
    "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj": "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj",  # noqa: E501
    "lora_unet_down_blocks_2_resnets_0_time_emb_proj": "input_blocks.7.0.emb_layers.1",
    "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_v": "input_blocks.4.1.transformer_blocks.1.attn2.to_v",  # noqa: E501
    "lora_unet_output_blocks_0_1_proj_in": "output_blocks.0.1.proj_in",
    "lora_unet_label_emb_0_0": "label_emb.0.0",
    "lora_unet_time_embedding_linear_1": "time_embed.0",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v": "input_blocks.4.1.transformer_blocks.0.attn2.to_v",  # noqa: E501
    "unet.add_embedding.linear_1": "label_emb.0.0",
    "unet.mid_block.resnets.1.time_emb_proj": "middle_block.2.emb_layers.1",
    "base_model.model.up_blocks.1.attentions.2.proj_out": "output_blocks.5.1.proj_out",
    "lora_unet_double_blocks_3_txt_attn_qkv": "double_blocks.3.txt_attn.qkv",
    "lora_unet_single_blocks_12_linear2": "single_blocks.12.linear2",
    "lora_unet_txt_in": "txt_in",
    "lora_unet_vector_in_in_layer": "vector_in.in_layer",
    "lora_unet_final_layer_adaLN_modulation_1": "final_layer.adaLN_modulation.1",
    "lora_transformer_transformer_blocks_4_ff_context_net_0_proj": "double_blocks.4.txt_mlp.0",
    "transformer.context_embedder": "txt_in",
    "transformer.time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "transformer.single_transformer_blocks.7.proj_out": "single_blocks.7.linear2",
    "transformer.proj_out": "final_layer.linear",
    "diffusion_model.double_blocks.0.img_mod.lin": "double_blocks.0.img_mod.lin",
    "model.diffusion_model.middle_block.1.proj_in": "middle_block.1.proj_in",
}
UP, DOWN = torch.arange(12.0).view(6, 2), torch.arange(10.0).view(2, 5)
WAYS = [("lora_up.weight", "lora_down.weight"), ("lora_B.weight", "lora_A.weight"), ("lora_B.default.weight",
    "lora_A.default.weight"),
        ("lora.up.weight", "lora.down.weight"), ("lora_linear_layer.up.weight",
        "lora_linear_layer.down.weight")]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_of_other_software_are_known(name):
    for up, down in WAYS:
        lora = ErasureLora.from_state_dict({f"{name}.{down}": DOWN, f"{name}.{up}": UP})
        assert list(lora.modules) == [f"diffusion_model.{NAMES[name]}"]
        assert torch.equal(lora.delta(f"diffusion_model.{NAMES[name]}"), UP @ DOWN)
    half = {
        f"{name}.lora_down.weight": DOWN,
        f"{name}.lora_up.weight": UP,
        f"{name}.alpha": torch.tensor(1.0),
    }
    assert torch.equal(
        ErasureLora.from_state_dict(half).delta(f"diffusion_model.{NAMES[name]}"), UP @ DOWN / 2
    )


def test_attention_processors_of_old_diffusers():
    stem = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora"
    lora = ErasureLora.from_state_dict({f"{stem}.up.weight": UP, f"{stem}.down.weight": DOWN})
    assert list(lora.modules) == ["diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_out.0"]


def test_convolutions_are_flattened():
    up, down = torch.randn(6, 2, 1, 1), torch.randn(2, 5, 3, 3)
    lora = ErasureLora.from_state_dict({"unet.conv_in.lora_A.weight": down, "unet.conv_in.lora_B.weight": up})
    assert torch.equal(lora.delta("diffusion_model.input_blocks.0.0"), up.flatten(1) @ down.flatten(1))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("missing", [(), (1,), (0, 2)])
def test_one_layer_of_flux_is_three_of_diffusers(shared, missing):
    first = torch.randn(2, 5)
    parts = {
        i: (torch.randn(4, 2), first if shared else torch.randn(2, 5)) for i in range(3) if i not in missing
    }
    state = {}
    for i, (up, down) in parts.items():
        stem = f"transformer.transformer_blocks.1.attn.{('add_q_proj', 'add_k_proj', 'add_v_proj')[i]}"
        state |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    lora = ErasureLora.from_state_dict(state)
    wanted = torch.cat([parts[i][0] @ parts[i][1] if i in parts else torch.zeros(4, 5) for i in range(3)])
    assert torch.allclose(lora.delta("diffusion_model.double_blocks.1.txt_attn.qkv"), wanted)
    assert lora.rank == (2 if shared or len(parts) == 1 else 2 * len(parts))


def test_the_mlp_of_a_single_block_is_four_times_as_wide():
    up, down = torch.randn(16, 2), torch.randn(2, 5)
    stem = "transformer.single_transformer_blocks.0.proj_mlp"
    delta = ErasureLora.from_state_dict({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}).delta(
        "diffusion_model.single_blocks.0.linear1"
    )
    assert torch.equal(delta, torch.cat([torch.zeros(12, 5), up @ down]))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_read_as_float16(dtype, tmp_path):
    lora = ErasureLora(
        {"diffusion_model.a": (torch.randn(6, 21).half(), torch.randn(21, 5).half())},
        {"trace.concepts": '[["cat", "", 1.0]]'},
    )
    small = {k: v.to(dtype) for k, v in lora.state_dict().items()}
    assert small["diffusion_model.a.alpha"].float() != 21, (
        "float8 has no 21, so the alpha is rounded with the rest"
    )
    save_file(small, tmp_path / "cat.safetensors", dict(lora.metadata))
    again = ErasureLora.load(tmp_path / "cat.safetensors")
    up, down = again.modules["diffusion_model.a"]
    assert up.dtype == down.dtype == torch.float16 and torch.equal(
        up, small["diffusion_model.a.lora_up.weight"].half()
    )
    assert again.fingerprint and again.parts()[0].targets == ["cat"]
    assert main(["info", str(tmp_path / "cat.safetensors")]) == 0
    assert (
        main(
            [
                "fuse",
                str(tmp_path / "cat.safetensors"),
                "--strength",
                "cat=0.5",
                "--out",
                str(tmp_path / "half.safetensors"),
            ]
        )
        == 0
    )


UNREADABLE = {
    "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": "changes the text encoder, but an "
    "erasure changes only the denoiser",
    "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": "changes the text encoder",
    "lora_unet_txt_in.dora_scale": "to DoRA, not to a plain LoRA",
    "lora_unet_txt_in.lokr_w1": "to LoKr",
    "lora_unet_txt_in.hada_w1_a": "to LoHa",
    "transformer.transformer_blocks.0.attn.to_q2.lora_A.weight": "no network of ComfyUI has a layer of "
    "that name",
    "unet.down_blocks.0.resnets.0.nothing.lora_A.weight": "no network of ComfyUI",
}


@pytest.mark.parametrize("key", UNREADABLE)
def test_what_cannot_be_read_is_named(key):
    with pytest.raises(LoraError, match=UNREADABLE[key]) as error:
        ErasureLora.from_state_dict({key: torch.ones(2, 2)})
    assert key in str(error.value) and "use the stock LoRA loader" in str(error.value)


def test_parts_that_do_not_fit_are_refused():
    stem = "transformer.transformer_blocks.0.attn."
    state = {
        f"{stem}{n}.lora_{w}.weight": t
        for n, rows in (("to_q", 4), ("to_k", 5))
        for w, t in (("A", torch.ones(1, 5)), ("B", torch.ones(rows, 1)))
    }
    with pytest.raises(
        LoraError, match="the parts of double_blocks.0.img_attn.qkv have shapes that do not fit"
    ):
        ErasureLora.from_state_dict(state)
    twice = {"lora_unet_txt_in.lora_up.weight": UP, "diffusion_model.txt_in.lora_up.weight": UP}
    with pytest.raises(LoraError, match="is a second up for the same layer"):
        ErasureLora.from_state_dict(twice)


def erased(kind: str) -> ErasureLora:
    """Two parts of several ranks, with layers of the family's own names."""
    layers = {
        "sd1": [
            "input_blocks.1.1.transformer_blocks.0.attn2.to_k",
            "middle_block.1.proj_in",
            "output_blocks.11.1.transformer_blocks.0.attn2.to_v",
        ],
        "demo": [
            f"{b}.1.transformer_blocks.0.attn2.to_k"
            for b in ("input_blocks.1", "input_blocks.3", "output_blocks.0", "output_blocks.3")
        ],
        "sdxl": ["input_blocks.4.1.transformer_blocks.1.attn2.to_k", "label_emb.0.0"],
        "flux": [
            "txt_in",
            "double_blocks.0.txt_attn.qkv",
            "single_blocks.1.linear1",
            "final_layer.adaLN_modulation.1",
        ],
    }[kind]
    one, two = (
        {
            f"diffusion_model.{name}": (torch.randn(28, r + i % 2).half(), torch.randn(r + i % 2, 5).half())
            for i, name in enumerate(layers)
        }
        for r in (2, 3)
    )
    base = {"trace.base": json.dumps({"kind": "sd1" if kind == "demo" else kind, "hash": "0" * 16})}
    if kind == "flux":
        for made in (one, two):
            made["diffusion_model.double_blocks.0.txt_attn.qkv"] = (
                torch.randn(27, 2).half(),
                torch.randn(2, 5).half(),
            )
    made = [
        ErasureLora(m, {**base, "trace.concepts": json.dumps([[c, "", 1.0]])})
        for m, c in ((one, "cat"), (two, "dog"))
    ]
    return ErasureLora.join(*made)


@pytest.mark.parametrize("form", ["comfyui", "kohya", "diffusers"])
@pytest.mark.parametrize("kind", ["sd1", "demo", "sdxl", "flux"])
def test_export_and_back_is_the_same_file(kind, form, tmp_path, capsys):
    lora, file, out = erased(kind), tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    lora.save(file)
    assert main(["export", str(file), "--format", form, "--out", str(out)]) == 0
    again = ErasureLora.load(out)
    assert again.fingerprint == lora.fingerprint and [p.targets for p in again.parts()] == [["cat"], ["dog"]]
    assert again.without("dog").fingerprint == lora.without("dog").fingerprint
    back = tmp_path / "c.safetensors"
    assert main(["export", str(out), "--format", "comfyui", "--out", str(back)]) == 0
    assert ErasureLora.load(back).state_dict().keys() == lora.state_dict().keys()
    assert form == "kohya" or back.read_bytes() == file.read_bytes()


def test_the_demo_networks_have_one_block_a_level():
    names = ["input_blocks.1.1.proj_in", "input_blocks.3.1.proj_in", "output_blocks.3.1.proj_in"]
    assert lora_keys.blocks_per_level(names) == 1
    theirs = [lora_keys.unet_to_diffusers(n, 1) for n in names]
    assert theirs == [
        "down_blocks.0.attentions.0.proj_in",
        "down_blocks.1.attentions.0.proj_in",
        "up_blocks.1.attentions.1.proj_in",
    ]
    assert list(lora_keys.unet_from_diffusers(theirs).values()) == names


def test_a_file_that_shows_no_family_is_not_exported(tmp_path, capsys):
    file = ErasureLora({"diffusion_model.input_blocks.1.1.proj_in": (UP, DOWN)}).save(
        tmp_path / "a.safetensors"
    )
    assert main(["export", str(file), "--format", "diffusers", "--out", str(tmp_path / "b.safetensors")]) == 2
    assert "does not tell its model family" in capsys.readouterr().err
    file = ErasureLora(
        {"diffusion_model.input_blocks.3.0.op": (UP, DOWN)}, {"trace.base": '{"kind": "sd1"}'}
    ).save(tmp_path / "c.safetensors")
    assert main(["export", str(file), "--format", "kohya", "--out", str(tmp_path / "b.safetensors")]) == 2
    assert "input_blocks.3.0.op is a convolution" in capsys.readouterr().err
