"""Fusion on ComfyUI's own model objects: SD, SDXL and FLUX."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fused_models import FEW, KEEP, KINDS, erased, trained
from trace_core.backbones import backbone_for
from trace_core.errors import ConceptError, LoraError, TraceError
from trace_core.lora import ErasureLora, gating
from trace_core.lora.fusion import FusionConfig, fuse
from trace_core.text.encoding import TextEncoder

CONFIG = FusionConfig(keep_weight=0.1, alpha=1e-5)


def response(family, model, lora: ErasureLora, concept: str) -> torch.Tensor:
    """What an erasure adds to the layers that read tokens, on three prompts of a concept, start token left
    out.
    """
    encoder, backbone = TextEncoder(family.clip), backbone_for(model)
    rows = [encoder.encode(t.format(concept), concept) for t in FEW["object"]]
    rows = torch.cat([r.embeddings[1 if not encoder.bidirectional else 0 :] for r in rows])
    layers = [layer.module for layer in backbone.context_layers() if layer.module in lora.modules]
    return torch.cat([rows @ lora.delta(m).T for m in layers], 1)


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("kind", KINDS)
def test_every_erasure_is_met_on_its_own_prompts(families, kind):
    family, model = families[kind], families[kind].model()
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    concepts = ["cat", "truck", "pizza"]
    loras = [trained(family, model, c) for c in concepts]
    result = fuse(model, family.clip, loras, KEEP, CONFIG)
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())
    assert [p.targets for p in result.lora.parts()] == [[c] for c in concepts]
    assert result.lora.info()["trace.concepts"] == [[c, "", 1.0] for c in concepts]
    added = ErasureLora.join(ErasureLora.join(*loras[:2]), loras[2])
    for concept, lora in zip(concepts, loras):
        wanted = response(family, model, lora, concept)
        fused, summed = (off(response(family, model, x, concept), wanted) for x in (result.lora, added))
        assert fused < 0.5 * summed
    figures = result.report["streams"]["context"]
    assert figures["fused"]["residual_worst"] < 0.5 * figures["sum"]["residual_mean"]
    assert figures["fused"]["keep_change"] < figures["sum"]["keep_change"]
    assert ("pooled" in result.report["streams"]) == (kind != "sd1")
    beside = {k: v for k, v in result.report["layers"].items() if v["how"] == "side by side"}
    assert set(beside) == ({"double_blocks.N.txt_attn.qkv"} if kind == "flux" else set())
    assert bool(beside) == any(
        "cannot be fused" in w and "txt_attn.qkv" in w for w in result.report["warnings"]
    )
    assert not torch.equal(
        family.sample(gating.apply(model, result.lora), "a cat"), family.sample(model, "a cat")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_concept_more_leaves_the_others_as_they_were(families, kind):
    """The hundred-and-first: the fused file enters as one; and taken out again, the old responses are
    back.
    """
    family, model = families[kind], families[kind].model()
    first = fuse(model, family.clip, [trained(family, model, c) for c in ("cat", "truck")], KEEP, CONFIG).lora
    new = trained(family, model, "pizza")
    both = fuse(model, family.clip, [first, new], KEEP, CONFIG)
    assert [p.targets for p in both.lora.parts()] == [["cat"], ["truck"], ["pizza"]]
    back = both.lora.without("pizza")
    for concept in ("cat", "truck"):
        old = response(family, model, first, concept)
        plain = off(response(family, model, ErasureLora.join(first, new), concept), old)
        assert off(response(family, model, both.lora, concept), old) < min(0.3, 0.6 * plain)
        assert off(response(family, model, back, concept), old) < 0.3
    wanted = response(family, model, new, "pizza")
    assert off(response(family, model, both.lora, "pizza"), wanted) < 0.45
    assert set(back.modules) == set(first.modules)
    assert {m: d.shape for m, (_, d) in back.modules.items()} == {
        m: d.shape for m, (_, d) in first.modules.items()
    }


def test_one_alone_without_a_keep_set_is_itself(families):
    family, model = families["sd1"], families["sd1"].model()
    lora = trained(family, model, "cat")
    result = fuse(model, family.clip, [lora], config=FusionConfig(keep_weight=0, alpha=1e-9))
    wanted = response(family, model, lora, "cat")
    assert off(response(family, model, result.lora, "cat"), wanted) < 2e-3
    assert result.report["streams"]["context"]["fused"]["residual_worst"] < 2e-3


def test_a_closed_form_keeps_its_start_token(families):
    """Its row is in every prompt; neither the closed form nor the fusion of several changes what it gives."""
    family, model = families["sd1"], families["sd1"].model()
    loras = [erased(family, model, c) for c in ("cat", "truck")]
    lora = fuse(model, family.clip, loras, KEEP, CONFIG).lora
    rows = TextEncoder(family.clip).encode("a cat", "cat").embeddings
    for module in lora.modules:
        change = rows @ lora.delta(module).T
        assert change[0].norm() < 5e-3 * change[1:].norm(dim=1).max()


def test_strengths_are_set_and_remembered(families):
    family, model = families["sd1"], families["sd1"].model()
    loras = [trained(family, model, c) for c in ("cat", "truck")]
    whole = fuse(model, family.clip, loras, KEEP, CONFIG).lora
    half = fuse(model, family.clip, loras, KEEP, CONFIG, {"cat": 0.5}).lora
    assert [p.strength for p in half.parts()] == [0.5, 1.0]
    back = half.with_strengths({"cat": 1.0})
    assert all(torch.equal(x, y) for m in whole.modules for x, y in zip(whole.modules[m], back.modules[m]))
    again = fuse(model, family.clip, [half, trained(family, model, "pizza")], KEEP, CONFIG).lora
    assert [(p.targets, p.strength) for p in again.parts()] == [
        (["cat"], 0.5),
        (["truck"], 1.0),
        (["pizza"], 1.0),
    ]
    with pytest.raises(LoraError, match="'elk' is not erased"):
        fuse(model, family.clip, loras, KEEP, CONFIG, {"elk": 0.5})


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_sum(families, kind):
    family, model = families[kind], families[kind].model()
    loras = [trained(family, model, c) for c in ("cat", "truck")]
    result = fuse(model, family.clip, loras, KEEP, FusionConfig(mode="sum"))
    joined = ErasureLora.join(*loras)
    assert all(
        torch.equal(x, y) for m in joined.modules for x, y in zip(joined.modules[m], result.lora.modules[m])
    )
    for figures in result.report["streams"].values():
        assert figures["fused"] == figures["sum"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_file_stays_as_it_is_when_others_are_added(families, kind, dtype):
    family, model = families[kind], families[kind].model()
    first = fuse(model, family.clip, [trained(family, model, c) for c in ("cat", "truck")], KEEP, CONFIG).lora
    first.modules = {m: (up.to(dtype), down.to(dtype)) for m, (up, down) in first.modules.items()}
    new = trained(family, model, "pizza")
    added = fuse(model, family.clip, [first, new], KEEP, replace(CONFIG, mode="add"))
    assert [p.targets for p in added.lora.parts()] == [["cat"], ["truck"], ["pizza"]]
    for module, (up, down) in first.modules.items():
        rank = down.shape[0]
        assert torch.equal(added.lora.modules[module][0][:, :rank], up)
        assert torch.equal(added.lora.modules[module][1][:rank], down)
    left = added.lora.without("pizza")
    assert left.modules.keys() == first.modules.keys()
    assert all(torch.equal(a, b) for m in first.modules for a, b in zip(first.modules[m], left.modules[m]))
    joined = ErasureLora.join(first, new)
    wanted = response(family, model, first, "cat")
    moved, summed = (off(response(family, model, x, "cat"), wanted) for x in (added.lora, joined))
    assert moved < 0.5 * summed
    assert "residual" in added.report["adapters"][0] and added.report["method"] == "add"


def test_a_file_that_stays_as_it_is_has_no_bounded_rank():
    with pytest.raises(TraceError, match="max_rank is 4, .* leave max_rank out"):
        FusionConfig("add", max_rank=4)


def test_rank_can_be_bounded(families):
    family, model = families["sdxl"], families["sdxl"].model()
    loras = [trained(family, model, c) for c in ("cat", "truck", "pizza")]
    whole = fuse(model, family.clip, loras, KEEP, CONFIG).lora
    result = fuse(model, family.clip, loras, KEEP, FusionConfig(keep_weight=0.1, alpha=1e-5, max_rank=4))
    assert result.lora.rank == 4
    lost = [off(result.lora.delta(m), whole.delta(m)) for m in whole.modules]
    assert max(lost) == pytest.approx(result.report["truncation"]["worst"], abs=2e-3)
    assert [p.targets for p in result.lora.parts()] == [["cat", "truck", "pizza"]]


def test_progress_can_cancel(families):
    family, model = families["sd1"], families["sd1"].model()
    loras, seen = [trained(family, model, c) for c in ("cat", "truck")], []
    fuse(model, family.clip, loras, KEEP, CONFIG, progress=lambda *step: seen.append(step))
    phases = list(dict.fromkeys(p for p, *_ in seen))
    assert phases == ["encode concepts", "encode keep set", "fuse", "measure"]
    assert all(0 <= done < total for _, done, total in seen)

    class Stop(Exception):
        pass

    for phase in phases:

        def stop(name, done, total, phase=phase):
            if name == phase:
                raise Stop

        with pytest.raises(Stop):
            fuse(model, family.clip, loras, KEEP, CONFIG, progress=stop)


def test_what_cannot_be_fused(families):
    family, model = families["sd1"], families["sd1"].model()
    one, other = trained(family, model, "cat"), trained(families["flux"], families["flux"].model(), "cat")
    with pytest.raises(LoraError, match="LoRA 2 is for flux models, but LoRA 1 is for sd1"):
        fuse(model, family.clip, [one, other])
    with pytest.raises(LoraError, match="wire 1: this LoRA was made for FLUX.1"):
        fuse(model, family.clip, [other], names=["wire 1"])
    with pytest.raises(LoraError, match="LoRA 2 does not say what it erases"):
        fuse(model, family.clip, [one, ErasureLora(one.modules)])
    with pytest.raises(LoraError, match="nothing to fuse"):
        fuse(model, family.clip, [])
    with pytest.raises(ConceptError, match="'cat' stands in the erase list and in the keep list"):
        fuse(model, family.clip, [one], ["cat"])
    with pytest.raises(ConceptError, match="connect the CLIP that belongs"):
        fuse(model, families["sdxl"].clip, [one])


def test_the_same_concept_twice_is_told(families):
    family, model = families["sd1"], families["sd1"].model()
    result = fuse(
        model, family.clip, [trained(family, model, "cat"), erased(family, model, "Cat")], KEEP, CONFIG
    )
    assert any("is erased by LoRA 1 and by LoRA 2" in w for w in result.report["warnings"])
