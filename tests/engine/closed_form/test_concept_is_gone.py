"""What the closed form makes of a concept in every layer and in the network's answer."""

from __future__ import annotations

import pytest
import torch

from closed_form_cases import CAT, EXACT, KEEP, KINDS, distance, encode, patched_weights
from trace_core.backbones import backbone_for
from trace_core.backbones.base import CONTEXT, POOLED
from trace_core.closed_form import ClosedFormConfig, effects, erase
from trace_core.lora import ErasureLora
from trace_core.lora.gating import apply
from trace_core.text.concepts import combined, with_default_anchor
from trace_core.text.prompts import prompt_pairs
from trace_core.text.templates import TEMPLATES


@pytest.mark.parametrize("kind", KINDS)
def test_combined_and_plain_concepts_in_one_list(one, kind):
    """The layers read the combination's rows much as its counterpart's, and alone in its list it leaves
    its parts as they were.
    """
    from trace_core.text.encoding import TextEncoder

    family, model = one(kind)
    red = with_default_anchor(combined("bird", "red background"), KEEP)
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
    red = with_default_anchor(combined("bird", "red background"), KEEP)
    result = erase(model, family.clip, [red], KEEP)
    spilt = result.report["spill"][red.target]
    assert set(spilt) == {"bird", "red background"} and all(0 < v < 2 for v in spilt.values())
    part = max(spilt, key=spilt.get)
    monkeypatch.setattr(effects, "MUCH_CHANGED", spilt[part] - 0.01)
    assert f"'{part}' without the rest of" in erase(model, family.clip, [red], KEEP).report["warnings"][-1]
    monkeypatch.setattr(effects, "MUCH_CHANGED", spilt[part] + 0.01)
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


@pytest.mark.parametrize(("policy", "bound"), [("projection", 0.02), ("uce", 0.02)])
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
