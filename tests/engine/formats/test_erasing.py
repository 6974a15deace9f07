"""Erasures on float8, quantised files and GGUF."""

from __future__ import annotations

import json

import pytest
import torch

from format_cases import FORMATS, GGUF, KEY, SMALL, by_stock_loader, conditioning, fitting, some_lora
from trace_core.backbones import backbone_for
from trace_core.backbones.sampling import SamplerConfig, sample
from trace_core.backbones.weights import original
from trace_core.closed_form import erase
from trace_core.errors import ModelError
from trace_core.finetune import finetune
from trace_core.lora import rounding
from trace_core.lora.gating import apply, erasures_on
from trace_core.text.concepts import Concept


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
