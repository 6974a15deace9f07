"""float8, quantised files and GGUF: what is read is what the model calculates with."""

from __future__ import annotations

import hashlib

import pytest
import torch

from format_cases import BLOCK, FORMATS, KEY
from trace_core.backbones import backbone_for
from trace_core.backbones.weights import is_linear, original, shape_of, storage_of, stored

#: By format: how the block's weights are kept (v0.3.64, v0.33.0), and how far they may be from the bfloat16
#: ones
KEPT = {
    "fp8 e4m3": ({"float8_e4m3fn"}, 0.03), "fp8 e4m3 by option": ({"float8_e4m3fn"}, 0.03),
    "fp8 e4m3 fast": ({"float8_e4m3fn"}, 0.03), "fp8 e5m2": ({"float8_e5m2"}, 0.06),
    "scaled fp8": ({"float8_e4m3fn", "scaled float8_e4m3fn"}, 0.03), "mixed fp8": ({"scaled float8_e4m3fn"},
    0.03), "int8": ({"int8"}, 0.015),
    "mxfp8": ({"mxfp8"}, 0.03), "nvfp4": ({"nvfp4"}, 0.1), "Q8_0": ({"Q8_0"}, 0.007), "Q4_K": ({"Q4_K"},
    0.08),
    "Q8_0 everything": ({"Q8_0"}, 0.007),
}  # fmt: skip


@pytest.mark.parametrize("fmt", FORMATS)
def test_weights_are_read_as_the_file_means_them(tiny, bench, tmp_path, fmt):
    """Names, shapes and values, whatever the bytes; only keys that are asked for are looked at."""
    model = bench.load(tiny, fmt, tmp_path)
    backbone, (state, _) = backbone_for(model), bench.values(tiny)
    kinds, error = KEPT[fmt]
    assert backbone.kind == "flux" and storage_of(stored(model, BLOCK)) in kinds
    found = {layer.key: weight for layer, weight in backbone.weights()}
    found[BLOCK] = original(model, BLOCK)
    for key, weight in found.items():
        wanted = state[key.removeprefix("diffusion_model.")].float()
        assert weight.shape == wanted.shape and weight.dtype == torch.float32 and type(weight) is torch.Tensor
        assert (weight - wanted).norm() < error * wanted.norm(), key
    assert (found[BLOCK] - state[BLOCK.removeprefix("diffusion_model.")].float()).norm() > 0


@pytest.mark.parametrize("fmt", FORMATS)
def test_what_is_read_is_what_the_layer_calculates_with(tiny, bench, tmp_path, fmt):
    """The layer's own forward pass against a product with the weight that is read, which is what a LoRA is
    made from.
    """
    model = bench.load(tiny, fmt, tmp_path)
    layer = model.model.get_submodule(BLOCK.removesuffix(".weight"))
    x = torch.randn(1, 5, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        out = layer(x.clone())
        bias = torch.nn.functional.linear(torch.zeros_like(x), torch.zeros(768, 256)) + layer(
            torch.zeros_like(x)
        )
    wanted = x @ original(model, BLOCK).T + bias
    tolerance = 0.05 if fmt in ("fp8 e4m3 fast", "int8") else 2e-3  # these round x as well
    assert (out - wanted).norm() < tolerance * wanted.norm()


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_linear_layer_is_found(tiny, bench, tmp_path, fmt):
    plain, model = backbone_for(tiny.tiny_flux(**bench.FLUX)), bench.load(tiny, fmt, tmp_path)
    backbone = backbone_for(model)
    for scope in ("text", "attention", "linear", "entry", "keys", "image"):
        assert backbone.lora_targets(scope) == plain.lora_targets(scope) != []
    for name in plain.lora_targets("linear"):
        module = backbone.network.get_submodule(name)
        assert is_linear(module) and shape_of(module) == plain.network.get_submodule(name).weight.shape
    assert backbone.trained_rows("double_blocks.0.txt_attn.qkv", "keys") == slice(0, 512)


@pytest.mark.parametrize("fmt", FORMATS)
def test_hash_names_the_weights(tiny, bench, tmp_path, fmt):
    """The same file has one hash, another file another one, and a patch on the model does not change it."""
    model = bench.load(tiny, fmt, tmp_path)
    own = backbone_for(model).model_hash()
    assert backbone_for(bench.load(tiny, fmt, tmp_path)).model_hash() == own
    assert backbone_for(bench.load(tiny, fmt, tmp_path, seed=1)).model_hash() != own
    clone = model.clone()
    clone.add_patches({KEY: (torch.ones(256, 256),)}, 1.0)
    assert backbone_for(clone).model_hash() == own
    base, patched = (
        dict(backbone_for(m).weights())[backbone_for(m).context_layers()[0]] for m in (model, clone)
    )
    assert torch.allclose(patched, base + 1, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_hash_of_ordinary_models_is_what_it_was(tiny, dtype):
    """Files of erasures name their base by it, those too that were made before quantised models could be
    read.
    """
    model = tiny.tiny_flux(dtype=getattr(torch, dtype))
    digest = hashlib.sha256()
    for module in ("txt_in", "vector_in.in_layer"):
        weight = model.model.diffusion_model.get_submodule(module).weight
        digest.update(f"diffusion_model.{module}{tuple(weight.shape)}".encode())
        digest.update(weight.detach()[::16].float().contiguous().numpy().tobytes())
    assert backbone_for(model).model_hash() == digest.hexdigest()[:16]
