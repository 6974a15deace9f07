"""An erased model is erased again, and its file means the same in ComfyUI's own loader."""

from __future__ import annotations

import logging

import pytest
import torch

from closed_form_cases import CAT, EXACT, KEEP, KINDS, distance, fingerprint, patched_weights
from trace_core.backbones import backbone_for
from trace_core.closed_form import erase
from trace_core.lora import ErasureLora
from trace_core.lora.gating import apply
from trace_core.text.concepts import Concept


def chained(family, model):
    first = erase(model, family.clip, [CAT], KEEP, EXACT)
    once = apply(model, first.lora)
    second = erase(once, family.clip, [Concept("ship", "frog")], (*KEEP, "cat", "dog"), EXACT)
    return first, once, second, apply(once, second.lora)


@pytest.mark.parametrize("kind", KINDS)
def test_erased_model_can_be_erased_again(one, kind):
    """The second edit is computed on the weights as the first left them, and both stay on the model."""
    family, model = one(kind)
    before = fingerprint(model)
    first, once, second, twice = chained(family, model)
    assert fingerprint(model) == before
    w0, w1, w2 = model.model.state_dict(), patched_weights(once), patched_weights(twice)
    for layer, read in backbone_for(once).weights():
        assert (read - w1[layer.key]).norm() <= 1e-6 * w1[layer.key].norm()
        edit = second.edits[layer.stream]
        mapping = (edit.U @ edit.V.T).float()
        on_patched = w1[layer.key][:, : layer.columns] @ mapping
        on_base = w0[layer.key][:, : layer.columns] @ mapping
        made = second.lora.delta(layer.module)[:, : layer.columns]
        assert (made - on_patched).norm() < 3e-3 * on_patched.norm()
        assert (made - on_base).norm() > 3e-2 * on_base.norm(), "the two weights do not differ enough to tell"
        assert (w2[layer.key] - w1[layer.key] - second.lora.delta(layer.module)).norm() < 1e-5 * w1[
            layer.key
        ].norm()
        assert len(twice.patches[layer.key]) == 2
        assert second.report["layers"][layer.module]["residual"] < 1e-3
    assert fingerprint(model)["weights"] == before["weights"]


@pytest.mark.parametrize("kind", KINDS)
def test_second_erasure_works_and_the_first_holds(one, kind):
    family, model = one(kind)
    *_, twice = chained(family, model)
    left = {}
    for pair in (("cat", "dog"), ("ship", "frog")):
        base, now = (distance(*(family.sample(m, p) for p in pair)) for m in (model, twice))
        left[pair[0]] = now / base
    assert left["ship"] < 0.02
    assert left["cat"] < 0.3


def test_weights_are_read_without_what_is_loaded_right_now(families):
    """The network is shared: while an erased MODEL is loaded, the base MODEL still means the base weights."""
    family = families["sd1"]
    model = family.model()
    want = {layer.key: w.clone() for layer, w in backbone_for(model).weights()}
    edited = apply(model, erase(model, family.clip, [CAT], KEEP).lora)
    expected = {layer.key: w.clone() for layer, w in backbone_for(edited).weights()}
    model_hash = backbone_for(model).model_hash()
    edited.patch_model(device_to=torch.device("cpu"))
    try:
        assert all(torch.equal(w, want[layer.key]) for layer, w in backbone_for(model).weights())
        assert all(torch.equal(w, expected[layer.key]) for layer, w in backbone_for(edited).weights())
        assert backbone_for(edited).model_hash() == backbone_for(model).model_hash() == model_hash
    finally:
        edited.unpatch_model(device_to=torch.device("cpu"))


# ------------------------------------------------------------------------------- the file in the stock loader


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [1.0, 0.4, -1.0])
def test_stock_loader_gives_the_same_samples(one, kind, strength, tmp_path, caplog):
    import comfy.sd
    import comfy.utils

    family, model = one(kind)
    lora = erase(model, family.clip, [CAT, Concept("bird")], ("car", "house")).lora
    path = lora.save(tmp_path / "cat.safetensors")
    with caplog.at_level(logging.DEBUG):
        stock, _ = comfy.sd.load_lora_for_models(
            model, None, comfy.utils.load_torch_file(str(path), safe_load=True), strength, 0.0
        )
    complaints = [r.getMessage() for r in caplog.records if "not loaded" in r.getMessage().lower()]
    assert complaints == []
    ours = apply(model, ErasureLora.load(path), strength)
    assert set(stock.patches) == set(ours.patches) == {m + ".weight" for m in lora.modules}
    samples = [family.sample(m, "a cat", steps=3) for m in (stock, ours, apply(model, lora, strength))]
    assert distance(samples[0], samples[1]) == 0.0
    assert distance(samples[1], samples[2]) == 0.0, "what was applied is what was saved"
    assert distance(samples[0], family.sample(model, "a cat", steps=3)) > 1e-4


def test_the_check_for_keys_that_are_not_loaded_can_fail(one, caplog):
    import comfy.sd

    family, model = one("sd1")
    state = erase(model, family.clip, [CAT], KEEP).lora.state_dict()
    state["base_model.model.x.lora_A.weight"] = torch.ones(1, 1)
    with caplog.at_level(logging.DEBUG):
        comfy.sd.load_lora_for_models(model, None, state, 1.0, 0.0)
    assert any("not loaded" in r.getMessage().lower() for r in caplog.records)


@pytest.mark.parametrize("kind", KINDS)
def test_same_erasure_gives_the_same_file(one, kind, tmp_path):
    family, model = one(kind)
    files = []
    for name in ("one", "two"):
        files.append(
            erase(model, family.clip, [CAT], KEEP, seed=3).lora.save(tmp_path / f"{name}.safetensors")
        )
    assert files[0].read_bytes() == files[1].read_bytes()
    info = ErasureLora.load(files[0]).info()
    assert info["trace.base"] == {"kind": kind, "hash": backbone_for(model).model_hash()}
    assert info["trace.concepts"] == [["cat", "dog", 1.0]] and info["trace.seed"] == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_models(families, kind, dtype):
    """Read in float32, solved in float64: the edit is that of the same weights held in float32."""
    family = families[kind]
    half, full = family.model(dtype=dtype), family.model()
    full.model.load_state_dict({k: v.float() for k, v in half.model.state_dict().items()})
    before = fingerprint(half)
    a, b = (erase(m, family.clip, [CAT], KEEP).lora for m in (half, full))
    assert fingerprint(half) == before
    assert all(torch.equal(a.delta(m), b.delta(m)) for m in b.modules)
    assert patched_weights(apply(half, a))[next(iter(a.modules)) + ".weight"].dtype == dtype
