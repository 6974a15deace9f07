"""float8, quantised files and GGUF: what is read is what the model calculates with, on either engine."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from trace_core.backbones import backbone_for
from trace_core.backbones.sampling import SamplerConfig, sample
from trace_core.backbones.weights import is_linear, original, shape_of, storage_of, stored
from trace_core.closed_form import erase
from trace_core.errors import ModelError
from trace_core.finetune import FinetuneConfig, finetune
from trace_core.finetune.adapters import attached
from trace_core.finetune.gradients import checkpointed, saved_apart, training_mode
from trace_core.lora import ErasureLora, rounding
from trace_core.lora.gating import apply, erasures_on
from trace_core.text.concepts import Concept
from trace_core.text.templates import TEMPLATES

FLOAT8 = ("fp8 e4m3", "fp8 e5m2", "fp8 e4m3 by option", "fp8 e4m3 fast", "scaled fp8")
QUANTISED = ("mixed fp8", "int8", "mxfp8", "nvfp4")
GGUF = ("Q8_0", "Q4_K", "Q8_0 everything")
FORMATS = (*FLOAT8, *QUANTISED, *GGUF)
KEY = "diffusion_model.txt_in.weight"
BLOCK = "diffusion_model.double_blocks.0.txt_attn.qkv.weight"
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


@pytest.fixture(scope="module")
def bench(tiny):
    """The module ``tests/quantised_models.py``."""
    file = Path(__file__).resolve().parents[1] / "quantised_models.py"
    spec = importlib.util.spec_from_file_location("quantised_models", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["quantised_models"] = module
    spec.loader.exec_module(module)
    return module


pytestmark = pytest.mark.usefixtures("nothing_stays_loaded")
SMALL = FinetuneConfig(
    steps=2,
    batch=4,
    trajectories=1,
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
    scope="text",
)


@pytest.fixture(autouse=True)
def few_templates(monkeypatch):
    monkeypatch.setitem(TEMPLATES, "object", ("a {}",))


def some_lora(size: float = 1.0, seed: int = 0) -> ErasureLora:
    """An edit of rank 2 of both ways in and of a block, about a tenth of the weights where ``size`` is 1."""
    generator, shapes = (
        torch.Generator().manual_seed(seed),
        {"txt_in": 256, "vector_in.in_layer": 256, BLOCK[16:-7]: 768},
    )
    return ErasureLora.from_factors(
        {
            f"diffusion_model.{name}": (
                0.06 * size * torch.randn(out, 2, generator=generator),
                0.06 * torch.randn(2, 256, generator=generator),
            )
            for name, out in shapes.items()
        }
    )


def conditioning() -> list:
    generator = torch.Generator().manual_seed(2)
    rows, pooled = torch.randn(1, 5, 256, generator=generator), torch.randn(1, 256, generator=generator)
    return [[rows, {"pooled_output": pooled, "guidance": 3.0}]]


def by_stock_loader(model, lora):
    import comfy.lora

    clone = model.clone()
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    clone.add_patches(comfy.lora.load_lora(lora.state_dict(), keys), 1.0)
    assert len(clone.patches) == len(lora.modules)
    return clone


def fitting(bench, tiny, fmt, folder, family, hidden=None):
    """A model whose text widths are those of a family's text encoder; Q4_K needs widths that divide by
    256.
    """
    widths = {k: family.options[k] for k in ("context_dim", "pooled_dim")}
    return bench.load(tiny, fmt, folder, **widths, hidden=hidden or (256 if fmt in GGUF else 64))


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


@pytest.mark.parametrize("inference", [False, True], ids=["plain", "inference"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_erasure_is_what_the_stock_loader_makes_of_it(tiny, bench, tmp_path, fmt, inference):
    """Whole: to the last digit. In a window: added in the forward pass, the same but for the rounding. The
    base is as it was.
    """
    with torch.inference_mode(inference):
        model, lora, given = bench.load(tiny, fmt, tmp_path), some_lora(), conditioning()
        before = {k: tiny.digest(p) for k, p in model.model.named_parameters()}
        with torch.no_grad():
            base, whole, window, stock = (
                tiny.sample(m, given, given, cfg=1.0)
                for m in (
                    model,
                    apply(model, lora),
                    apply(model, lora, 1.0, 0.0, 0.999),
                    by_stock_loader(model, lora),
                )
            )
            again = tiny.sample(model, given, given, cfg=1.0)
    assert torch.equal(whole, stock)
    assert torch.equal(base, again) and before == {
        k: tiny.digest(p) for k, p in model.model.named_parameters()
    }
    edit = (window - base).norm()
    assert (
        edit > 1
        and 0 < (whole - window).norm() < (0.03 if fmt in GGUF else 2.5 if fmt == "nvfp4" else 1.5) * edit
    )


@pytest.mark.parametrize("fmt", FORMATS)
def test_noise_of_rounding_is_measured_as_the_engine_rounds(tiny, bench, tmp_path, fmt):
    """The figure of the warning against the weights of a model that the engine has patched."""
    import comfy.model_management

    from trace_core.backbones.casting import weight_and_bias

    model, lora = bench.load(tiny, fmt, tmp_path), some_lora(0.2)
    backbone = backbone_for(model)
    wanted = {m: original(model, m + ".weight") + lora.delta(m) for m in lora.modules}
    with torch.no_grad():
        comfy.model_management.load_models_gpu([by_stock_loader(model, lora)])
        found = {
            m: weight_and_bias(backbone.engine, model.model.get_submodule(m), torch.zeros(1))[0]
            for m in lora.modules
        }
        comfy.model_management.unload_all_models()
    lost = sum((found[m] - wanted[m]).square().sum() for m in found) / sum(
        lora.delta(m).square().sum() for m in found
    )
    share = rounding.noise(model, lora)
    assert abs(share - lost.sqrt().item()) < 0.01 * share + 1e-6


def test_seed_of_the_rounding_is_the_engines_own(engine, caplog):
    import comfy.model_patcher

    from trace_core.backbones import compat

    seed = compat.seed_of(comfy, KEY)
    assert not caplog.records and seed == comfy.model_patcher.string_to_seed(KEY)


@pytest.mark.parametrize("fmt", ("bf16", "fp8 e4m3", "fp8 e5m2", "scaled fp8", "Q4_K"))
def test_small_edits_on_float8_are_warned_of(tiny, bench, tmp_path, caplog, fmt):
    """With the size and the remedy; not where the edit is large, nor in a window, nor where nothing is
    rounded.
    """
    model = bench.load(tiny, fmt, tmp_path)
    small = [
        erasures_on(apply(model, some_lora(0.2), 1.0, 0.0, end))[0].get("rounding") for end in (1.0, 0.999)
    ]
    assert small[1] is None and "rounding" not in erasures_on(apply(model, some_lora(5.0)))[0]
    if fmt in ("bf16", "Q4_K"):
        assert small[0] is None and not caplog.records
    else:
        share = rounding.noise(model, some_lora(0.2))
        assert (
            1.3 < share < 2.5 and f"{100 * share:.0f} % of this edit" in small[0] and "end 0.999" in small[0]
        )
        assert [r.getMessage() for r in caplog.records if r.name == "trace_core.lora.gating"] == [small[0]]


@pytest.mark.parametrize("fmt", FORMATS)
def test_closed_form_runs_on_it(tiny, bench, families, tmp_path, fmt):
    """As on the bfloat16 model, but for the precision; the file names the format's own weights."""
    family = families["flux"]
    model, plain = (fitting(bench, tiny, f, tmp_path, family, 256) for f in (fmt, "bf16"))
    made, reference = (erase(m, family.clip, [Concept("cat", "dog")], ["bird"]).lora for m in (model, plain))
    assert json.loads(made.metadata["trace.base"])["hash"] == backbone_for(model).model_hash()
    for module in reference.modules:
        assert (made.delta(module) - reference.delta(module)).norm() < 0.2 * reference.delta(module).norm()


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


@pytest.mark.parametrize("fmt", ("fp8 e4m3", "scaled fp8", "int8"))
def test_patches_on_the_model_are_part_of_it(tiny, bench, families, tmp_path, fmt):
    """Put on by the finetune and taken off again, on weights that are rounded for it."""
    family = families["flux"]
    with torch.inference_mode():
        model = fitting(bench, tiny, fmt, tmp_path, family)
        before = {k: tiny.digest(p) for k, p in model.model.named_parameters()}
        patched = apply(model, erase(model, family.clip, [Concept("cat", "dog")], ["bird"]).lora)
        assert len(finetune(patched, family.clip, [Concept("bird")], ["dog"], SMALL).report["losses"]) == 2
        backbone_for(model).load()
        assert before == {k: tiny.digest(p) for k, p in model.model.named_parameters()}


def test_formats_that_cannot_be_dequantised_are_refused_with_a_sentence(
    tiny, bench, families, tmp_path, monkeypatch
):
    """Before any work, naming the layer and its format."""
    family = families["flux"]
    model = fitting(bench, tiny, "scaled fp8", tmp_path, family)
    layer = model.model.diffusion_model.txt_in

    def broken(self, weight, *_, **__):
        raise NotImplementedError("no kernel for this")

    monkeypatch.setattr(type(layer), "convert_weight", broken)
    with pytest.raises(
        ModelError,
        match=r"is stored as [a-z0-9_ ]*, which this ComfyUI cannot train here \(no kernel for this\)",
    ):
        finetune(model, family.clip, [Concept("cat")], ["bird"], SMALL)
    with pytest.raises(
        ModelError,
        match=r"txt_in.weight is stored as [a-z0-9_ ]*, which cannot be read here \(no kernel for this\)",
    ):
        list(backbone_for(model).weights())


@pytest.mark.parametrize("fmt", ("fp8 e4m3", "scaled fp8"))
def test_library_samples_patched_float8_outside_inference_mode(tiny, bench, families, tmp_path, fmt):
    """As `generate --lora` does; v0.3.64's rounding asks for a gradient there."""
    family = families["flux"]
    model = fitting(bench, tiny, fmt, tmp_path, family)
    lora = erase(model, family.clip, [Concept("cat", "dog")], ["bird"]).lora
    config = SamplerConfig.for_model(model, steps=2, width=64, height=64)
    base, erased = (sample(m, family.clip, ["a cat"], [0], config) for m in (model, apply(model, lora)))
    assert not torch.is_inference_mode_enabled() and not base.is_inference() and (base - erased).norm() > 0


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
