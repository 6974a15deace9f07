"""The closed form on ComfyUI's model objects: what it erases, what it leaves alone, what it refuses."""

from __future__ import annotations

import hashlib
import logging
import sys

import pytest
import torch

from trace_core.backbones import backbone_for
from trace_core.backbones.base import CONTEXT, POOLED
from trace_core.closed_form import POLICIES, ClosedFormConfig, erase
from trace_core.errors import ConceptError, LoraError, ModelError, TraceError
from trace_core.lora import ErasureLora
from trace_core.lora.gating import apply
from trace_core.text.concepts import Concept, combined, settled
from trace_core.text.prompts import prompt_pairs
from trace_core.text.templates import TEMPLATES

KINDS = ("sd1", "sdxl", "flux")
KEEP = ("bird", "car", "house")
CAT = Concept("cat", "dog")
EXACT = ClosedFormConfig(eta=0.0, energy=1.0)


@pytest.fixture(autouse=True)
def few_templates(monkeypatch):
    """Fewer directions than a row has numbers, and quick."""
    monkeypatch.setitem(TEMPLATES, "object", ("{}", "a photo of a {}", "a {}, red background"))


def unload() -> None:
    """ComfyUI leaves the patches of the MODEL that ran last on the network; take them off."""
    import comfy.model_management

    comfy.model_management.unload_all_models()


@pytest.fixture(scope="module")
def one(families):
    """``one(kind)``: the family and one model of it that every test reads and none may change."""
    held = {}

    def get(kind):
        if kind not in held:
            held[kind] = families[kind].model()
        unload()
        return families[kind], held[kind]

    return get


def fingerprint(patcher) -> dict:
    """Everything of a model that an erasure might touch."""
    network = patcher.model
    return {
        "weights": {k: _digest(v) for k, v in network.state_dict().items()},
        "modules": [(name, type(m), id(m)) for name, m in network.named_modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()],
        "gradients": [(p.requires_grad, p.grad is None, id(p)) for p in network.parameters()],
        "training": [m.training for m in network.modules()],
        "patches": {k: [id(x) for x in v] for k, v in patcher.patches.items()},
        "object_patches": dict(patcher.object_patches),
        "backup": sorted(patcher.backup),
        "options": repr(patcher.model_options),
        "uuid": patcher.patches_uuid,
    }


def _digest(tensor) -> tuple:
    data = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return tensor.dtype, tuple(tensor.shape), hashlib.sha256(data).hexdigest()


def patched_weights(patcher) -> dict[str, torch.Tensor]:
    """The weights as ComfyUI itself patches them, and the model put back."""
    unload()
    patcher.patch_model(device_to=torch.device("cpu"))
    state = {k: v.detach().clone() for k, v in patcher.model.state_dict().items()}
    patcher.unpatch_model(device_to=torch.device("cpu"))
    return state


def encode(family, prompt):
    rows, pooled = family.clip.encode_from_tokens(family.clip.tokenize(prompt), return_pooled=True)
    return rows[0].double(), None if pooled is None else pooled[0].double()


def distance(a, b) -> float:
    return (a - b).abs().max().item()


# ------------------------------------------------------------------------------------- where text enters


@pytest.mark.parametrize(
    ("kind", "context", "pooled"), [("sd1", 14, 0), ("sdxl", 8, 1), ("flux", 1, 1), ("flux-schnell", 1, 1)]
)
def test_backbone_finds_every_layer_that_reads_text(families, kind, context, pooled):
    family = families[kind]
    backbone = backbone_for(family.model())
    assert backbone.kind == kind
    assert len(backbone.pooled_layers()) == pooled
    keys = backbone.patcher.model.state_dict().keys()
    attention = [k for k in keys if k.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
    assert len(backbone.context_layers()) == (len(attention) or context)
    assert len(attention) in (0, len(backbone.context_layers()))
    assert backbone.width(CONTEXT) == family.options["context_dim"]
    assert backbone.width(POOLED) == family.options.get("pooled_dim")


def test_backbone_tells_sd2_by_its_width(tiny):
    assert backbone_for(tiny.tiny_sd(context_dim=1024)).kind == "sd2"
    assert backbone_for(tiny.tiny_sd(context_dim=768)).kind == "sd1"


@pytest.mark.parametrize("kind", KINDS)
def test_only_layers_that_read_text_are_changed(one, kind):
    family, model = one(kind)
    lora = erase(model, family.clip, [CAT], KEEP).lora
    assert set(lora.modules) == {
        layer.module for layer in backbone_for(model).layers(CONTEXT) + backbone_for(model).layers(POOLED)
    }
    before, after = model.model.state_dict(), patched_weights(apply(model, lora))
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {m + ".weight" for m in lora.modules}, "biases in particular stay"


# ------------------------------------------------------------------------------------- the base model is
# never touched


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_base_model_is_bit_identical(one, kind, policy):
    family, model = one(kind)
    before = fingerprint(model)
    result = erase(model, family.clip, [CAT], KEEP, ClosedFormConfig(policy=policy))
    assert fingerprint(model) == before
    edited = apply(model, result.lora)
    assert fingerprint(model) == before
    assert edited is not model and edited.model is model.model and edited.patches


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("phase", ["encode concepts", "encode keep set"])
def test_cancelled_erasure_changes_nothing(one, kind, phase):
    """As ComfyUI's interrupt: an exception out of the progress callback, handed on as it is."""
    family, model = one(kind)
    before = fingerprint(model)

    def progress(at, done, total):
        if at == phase:
            raise Cancelled(f"{done} of {total}")

    with pytest.raises(Cancelled):
        erase(model, family.clip, [CAT], KEEP, progress=progress)
    assert fingerprint(model) == before


@pytest.mark.parametrize("kind", KINDS)
def test_base_model_samples_the_same_after_the_edited_one_ran(one, kind):
    """All MODELs of a graph share one network: patches go on and off it."""
    family, model = one(kind)
    base = family.sample(model, "a cat")
    edited = apply(model, erase(model, family.clip, [CAT], KEEP).lora)
    assert distance(family.sample(edited, "a cat"), base) > 1e-4
    assert torch.equal(family.sample(model, "a cat"), base)


def test_erasure_inside_inference_mode(families):
    """Every ComfyUI node runs in it, loaders included, so the weights are inference tensors."""
    family = families["flux"]
    with torch.inference_mode():
        model = family.model()
        result = erase(model, family.clip, [CAT], KEEP, EXACT)
        edited = apply(model, result.lora)
        inside = family.sample(edited, "cat")
    plain = family.model()
    again = erase(plain, family.clip, [CAT], KEEP, EXACT)
    assert all(torch.equal(result.lora.delta(m), again.lora.delta(m)) for m in again.lora.modules)
    assert torch.equal(inside, family.sample(apply(plain, again.lora), "cat"))


# ------------------------------------------------------------------------------------- the concept is gone


@pytest.mark.parametrize("kind", KINDS)
def test_combined_and_plain_concepts_in_one_list(one, kind):
    """The layers read the combination's rows much as its counterpart's, and alone in its list it leaves
    its parts as they were.
    """
    from trace_core.text.encoding import TextEncoder

    family, model = one(kind)
    red = settled(combined("bird", "red background"), KEEP)
    result = erase(model, family.clip, [CAT, red], KEEP, ClosedFormConfig(energy=1.0))
    assert [c["anchor"] for c in result.report["concepts"]] == ["dog", "white background"]
    assert result.report["solved"]["context"]["combined"]["rank"] > 0
    edit, encoder = result.edits[CONTEXT], TextEncoder(family.clip)
    alone = erase(model, family.clip, [red], KEEP).edits[CONTEXT]

    def moved(prompt, subject):
        """How far its own edit moves a prompt's rows."""
        rows = encoder.encode(prompt, subject).embeddings
        return (alone.map(rows) - rows).norm().item()

    prompt, subject, other, instead = prompt_pairs(red, TEMPLATES["object"])[0]
    erased, wanted = encoder.encode(prompt, subject), encoder.encode(other, instead)
    difference = (erased.embeddings - wanted.embeddings).double()
    assert (edit.map(erased.embeddings) - edit.map(wanted.embeddings)).norm() < 0.95 * difference.norm()
    for kept, entry in (("bird on a blue background", "bird"), ("house on a red background", "house")):
        assert moved(kept, entry) < 0.9 * moved(prompt, subject)


def test_what_a_combination_spills_on_its_parts_is_said(one, monkeypatch):
    family, model = one("sd1")
    red = settled(combined("bird", "red background"), KEEP)
    result = erase(model, family.clip, [red], KEEP)
    spilt = result.report["spill"][red.target]
    assert set(spilt) == {"bird", "red background"} and all(0 < v < 2 for v in spilt.values())
    part = max(spilt, key=spilt.get)
    monkeypatch.setattr(sys.modules["trace_core.closed_form.collateral"], "LIMIT", spilt[part] - 0.01)
    assert f"'{part}' without the rest of" in erase(model, family.clip, [red], KEEP).report["warnings"][-1]
    monkeypatch.setattr(sys.modules["trace_core.closed_form.collateral"], "LIMIT", spilt[part] + 0.01)
    assert not any("without the rest" in w for w in erase(model, family.clip, [red], KEEP).report["warnings"])
    assert erase(model, family.clip, [CAT], KEEP).report["spill"] == {}


@pytest.mark.parametrize("kind", [*KINDS, "flux-schnell"])
def test_network_cannot_tell_the_concept_from_its_anchor(families, kind):
    """Full rank, one template: rows and pooled vector of both prompts reach the network as the same."""
    family = families[kind]
    model = family.model()
    base = distance(family.sample(model, "cat"), family.sample(model, "dog"))
    edited = apply(model, erase(model, family.clip, [CAT], KEEP, EXACT).lora)
    left = distance(family.sample(edited, "cat"), family.sample(edited, "dog"))
    assert base > 1e-2
    assert left < 0.01 * base


@pytest.mark.parametrize("kind", ["sdxl", "flux"])
def test_pooled_vector_alone_would_give_the_concept_away(one, kind):
    """The same erasure without its pooled layers leaves a difference: the test above is no accident."""
    family, model = one(kind)
    lora = erase(model, family.clip, [CAT], KEEP, EXACT).lora
    pooled = {layer.module for layer in backbone_for(model).pooled_layers()}
    rows_only = apply(model, ErasureLora({m: f for m, f in lora.modules.items() if m not in pooled}))
    whole = apply(model, lora)
    left = [distance(family.sample(m, "cat"), family.sample(m, "dog")) for m in (rows_only, whole)]
    assert left[0] > 10 * left[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_every_layer_forgets_every_row(one, kind, strength):
    """||W'(c - g)|| = (1 - s) ||W(c - g)|| on the weights as ComfyUI patches them, to float16 rounding of
    the file.
    """
    from trace_core.text.encoding import PAD, SUBJECT, TextEncoder, align
    from trace_core.text.templates import fill

    family, model = one(kind)
    edited = patched_weights(apply(model, erase(model, family.clip, [CAT], KEEP, EXACT).lora, strength))
    encoder = TextEncoder(family.clip)
    rows, vectors = [], []
    for template in TEMPLATES["object"]:
        erased, wanted = (encoder.encode(fill(template, t), t) for t in (CAT.target, CAT.anchor))
        pairs = align(erased, wanted)
        used = [i for i, g in enumerate(pairs.groups) if SUBJECT <= g <= PAD]
        rows.append((pairs.erase - pairs.want)[used])
        if erased.pooled is not None:
            vectors.append(erased.pooled - wanted.pooled)
    D = {CONTEXT: torch.cat(rows).T, POOLED: torch.stack(vectors).T if vectors else None}
    for layer in backbone_for(model).context_layers() + backbone_for(model).pooled_layers():
        difference = D[layer.stream][: layer.columns]
        before = model.model.state_dict()[layer.key][:, : layer.columns] @ difference
        after = edited[layer.key][:, : layer.columns] @ difference
        assert ((after - (1 - strength) * before).norm(dim=0) / before.norm(dim=0)).max() < 0.02
        assert (after - (1 - strength) * before).norm() < 3e-3 * before.norm()


def test_sdxl_size_embedding_is_untouched(one):
    family, model = one("sdxl")
    lora = erase(model, family.clip, [CAT], KEEP).lora
    change = lora.delta("diffusion_model.label_emb.0.0")
    assert change[:, :64].any() and not change[:, 64:].any()


@pytest.mark.parametrize(("policy", "bound"), [("trace", 0.02), ("uce", 0.02)])
def test_flux_biases_are_not_counted_twice(families, policy, bound):
    """With the edit txt_in(c) is W g + b; a target of W g + b for the weight alone would give W g + 2 b."""
    family = families["flux"]
    model = family.model()
    network = model.model.diffusion_model
    layers = {"txt_in": network.txt_in, "vector_in.in_layer": network.vector_in.in_layer}
    with torch.no_grad():
        for layer in layers.values():
            layer.bias.copy_(50 * torch.randn(layer.bias.shape, generator=torch.Generator().manual_seed(5)))
    config = ClosedFormConfig(policy=policy, energy=1.0, alpha=1e-6)
    edited = patched_weights(apply(model, erase(model, family.clip, [CAT], KEEP, config).lora))
    (c, c_pooled), (g, g_pooled) = encode(family, "cat"), encode(family, "dog")
    inputs = {"txt_in": (c[0], g[0]), "vector_in.in_layer": (c_pooled, g_pooled)}
    for name, (erased, wanted) in inputs.items():
        key = f"diffusion_model.{name}"
        bias = edited[key + ".bias"].double()
        assert torch.equal(edited[key + ".bias"], layers[name].bias)
        output = edited[key + ".weight"].double() @ erased + bias
        target = layers[name].weight.double() @ wanted + bias
        assert (output - target).norm() < bound * bias.norm()


# ------------------------------------------------------------------------------------- erasing again


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


# ------------------------------------------------------------------------------------- the file in the stock
# loader


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


# ------------------------------------------------------------------------------------- apply


@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_is_the_base_model(one, kind):
    family, model = one(kind)
    lora = erase(model, family.clip, [CAT], KEEP).lora
    none = apply(model, lora, 0.0)
    assert none is not model and none.patches == model.patches == {}
    assert torch.equal(family.sample(none, "a cat"), family.sample(model, "a cat"))


def test_erasures_stack_with_their_own_strengths(one):
    family, model = one("sd1")
    loras = [erase(model, family.clip, [Concept(t)], ("car",)).lora for t in ("cat", "bird")]
    both = patched_weights(apply(apply(model, loras[0], 0.5), loras[1], 1.5))
    for module in loras[0].modules:
        wanted = (
            model.model.state_dict()[module + ".weight"]
            + 0.5 * loras[0].delta(module)
            + 1.5 * loras[1].delta(module)
        )
        assert (both[module + ".weight"] - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("made_for", KINDS)
@pytest.mark.parametrize("used_on", KINDS)
def test_lora_for_another_architecture_is_refused_by_name(one, made_for, used_on):
    if made_for == used_on:
        return
    family, model = one(made_for)
    lora = erase(model, family.clip, [CAT], KEEP).lora
    other = one(used_on)[1]
    before = fingerprint(other)
    for strength in (1.0, 0.0):
        with pytest.raises(
            LoraError, match=f"made for {made_for} and does not fit this {used_on} model: diffusion_model"
        ):
            apply(other, lora, strength)
    assert fingerprint(other) == before


def test_lora_for_another_width_is_refused(one, tiny):
    family, model = one("sd1")
    lora = erase(model, family.clip, [CAT], KEEP).lora
    with pytest.raises(
        LoraError, match=r"does not fit this sd1 model: .*to_k is \d+ x 256, the model has \(\d+, 64\) there"
    ):
        apply(tiny.tiny_sd(context_dim=64), lora)


@pytest.mark.parametrize(
    "base", ['"sd1"', "[1]", "5", "null", "{}", '{"kind": 5}', '{"kind": [1]}', "{broken"]
)
def test_lora_whose_metadata_lies_is_refused_all_the_same(one, base):
    """Metadata is what somebody wrote; it may hold anything."""
    family, model = one("sd1")
    lora = ErasureLora(erase(model, family.clip, [CAT], KEEP).lora.modules, {"trace.base": base})
    assert apply(model, lora).patches
    with pytest.raises(LoraError, match="does not fit this flux model"):
        apply(one("flux")[1], lora)


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weight_that_is_not_finite_is_refused_by_name(families, kind, bad):
    family = families[kind]
    model = family.model()
    layer = (backbone_for(model).context_layers() + backbone_for(model).pooled_layers())[-1]
    with torch.no_grad():
        model.model.state_dict()[layer.key][0, 0] = bad
    with pytest.raises(ModelError, match=f"{layer.key} holds NaN or infinite values; load the model again"):
        erase(model, family.clip, [CAT], KEEP)


@pytest.mark.parametrize(
    ("model", "clip"), [("sd1", "flux"), ("flux", "sd1"), ("sdxl", "sd1"), ("sd1", "sdxl")]
)
def test_clip_of_another_model_is_refused(one, families, model, clip):
    with pytest.raises(
        ConceptError, match="connect the CLIP that belongs to this model|connect the CLIP of the same model"
    ):
        erase(one(model)[1], families[clip].clip, [CAT], KEEP)


@pytest.mark.parametrize("thing", [None, "model.safetensors", 5, torch.nn.Linear(2, 2), "inner"])
def test_what_is_no_model_is_refused(one, thing):
    family, model = one("sd1")
    thing = model.model if thing == "inner" else thing
    name = type(thing).__name__
    with pytest.raises(ModelError, match=f"{name} is no ComfyUI model; connect the MODEL output"):
        erase(thing, family.clip, [CAT], KEEP)
    with pytest.raises(TraceError, match="no ComfyUI model"):
        apply(thing, ErasureLora({"diffusion_model.x": (torch.ones(1, 1), torch.ones(1, 1))}))


def test_model_of_an_unknown_family_is_refused_by_name(engine):
    import comfy.model_patcher

    class Mystery(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.diffusion_model = torch.nn.Linear(2, 2)

    cpu = torch.device("cpu")
    with pytest.raises(
        ModelError, match="Mystery models are not supported; use Stable Diffusion 1.x, 2.x, SDXL or FLUX.1"
    ):
        backbone_for(comfy.model_patcher.ModelPatcher(Mystery(), cpu, cpu))


def test_nothing_to_erase_is_refused(one):
    family, model = one("sd1")
    with pytest.raises(ConceptError, match="nothing to erase"):
        erase(model, family.clip, [], KEEP)


def test_keeping_what_is_erased_is_refused(one):
    family, model = one("sd1")
    with pytest.raises(ConceptError, match="'CAT' stands in the erase list and in the keep list"):
        erase(model, family.clip, [CAT], ("CAT",))


@pytest.mark.parametrize("kind", ["sd1", "flux"])
@pytest.mark.parametrize(
    "text", ["🐈", "قطة", "梵高", "(cat)", "((cat:1.3))", "AC\\DC", "embedding:x", "a_b", "%", "\u200b"]
)
def test_unusual_text_is_erased_or_refused_never_worse(one, kind, text):
    """With ComfyUI's own tokenizer classes around a vocabulary of plain words."""
    family, model = one(kind)
    before = fingerprint(model)
    try:
        lora = erase(model, family.clip, [Concept(text, "dog")], KEEP).lora
        assert all(torch.isfinite(lora.delta(m)).all() for m in lora.modules)
    except ConceptError as error:
        assert len(str(error)) < 300
    assert fingerprint(model) == before


def test_concept_of_several_chunks_is_refused(one):
    family, model = one("sd1")
    with pytest.raises(
        ConceptError, match="tokens long and does not fit into one prompt of 24; shorten the concept"
    ):
        erase(model, family.clip, [Concept("cat dog bird " * 10)], KEEP)


# ------------------------------------------------------------------------------------- CLIP's and T5's own
# vocabularies


@pytest.fixture(scope="module")
def sd(tiny):
    return tiny.tiny_sd(context_dim=64), tiny.tiny_clip_sd1(hidden=64)


@pytest.fixture(scope="module")
def flux(tiny):
    return tiny.tiny_flux(context_dim=64, pooled_dim=24), tiny.tiny_clip_flux(context_dim=64)


@pytest.mark.full_engine
@pytest.mark.parametrize(
    "text",
    [
        "Van Gogh",
        "🐈",
        "👩‍🚀",
        "قطة",
        "חתול",
        "梵高",
        "saber (fate)",
        r"saber \(fate\)",
        "AC\\DC",
        "R2-D2",
        "cat's",
    ],
)
def test_every_script_is_erased(sd, text):
    model, clip = sd
    result = erase(model, clip, [Concept(text)], KEEP)
    assert result.lora.rank > 0
    assert all(layer["residual"] < 0.6 for layer in result.report["layers"].values())


@pytest.mark.full_engine
@pytest.mark.parametrize("text", ["Van Gogh", "saber (fate)", "R2-D2", "cat's"])
def test_t5_finds_the_concept_in_every_template(flux, text, monkeypatch):
    model, clip = flux
    monkeypatch.setitem(TEMPLATES, "object", ("{}", "a photo of a {}, red", "{} on a table"))
    assert erase(model, clip, [Concept(text, "dog")], KEEP[:1]).lora.rank > 0


@pytest.mark.full_engine
def test_prompt_over_77_tokens(sd):
    model, clip = sd
    with pytest.raises(
        ConceptError, match="154 tokens long and does not fit into one prompt of 77; shorten the concept"
    ):
        erase(model, clip, [Concept("blue cat " * 40)], KEEP)


@pytest.mark.full_engine
def test_textual_inversion_is_refused(sd, tmp_path):
    model, clip = sd
    torch.save({"emb_params": torch.ones(2, 64)}, tmp_path / "mine.pt")
    clip = clip.clone()
    clip.tokenizer.clip_l.embedding_directory = str(tmp_path)
    try:
        with pytest.raises(ConceptError, match="textual-inversion embedding"):
            erase(model, clip, [Concept("embedding:mine")], KEEP)
    finally:
        clip.tokenizer.clip_l.embedding_directory = None
