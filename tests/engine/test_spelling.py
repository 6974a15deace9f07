"""Names that a tokenizer cannot spell, and paddings that users choose."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from trace_core.backbones import backbone_for
from trace_core.closed_form import ClosedFormConfig, erase
from trace_core.errors import ConceptError, ModelError
from trace_core.finetune import finetune
from trace_core.finetune.options import FinetuneConfig
from trace_core.finetune.prompts import Prompts
from trace_core.text.concepts import Concept
from trace_core.text.encoding import PAD, SUBJECT, TextEncoder
from trace_core.text.spelling import unknown_ids, unspelled

KEEP = ["house", "tree", "bird"]
full_engine = pytest.mark.full_engine


@pytest.fixture(scope="module")
def flux(tiny):
    """FLUX with its own tokenizers, everything else tiny."""
    return SimpleNamespace(model=tiny.tiny_flux(), clip=tiny.tiny_clip_flux())


@full_engine
def test_unknown_id_is_the_tokenizers(flux, families):
    assert unknown_ids(TextEncoder(flux.clip))[-1] == flux.clip.tokenizer.t5xxl.tokenizer.unk_token_id
    for kind in ("sd1", "flux"):
        assert unknown_ids(TextEncoder(families[kind].clip)) == (), "these spell by bytes"
    names = ["猫", "γάτα", "🐈", "猫 犬", "кошка", "café", "Van Gogh", ""]
    assert unspelled(TextEncoder(flux.clip), names) == {
        "猫": True,
        "γάτα": True,
        "🐈": True,
        "猫 犬": True,
        "кошка": False,
    }


@full_engine
@pytest.mark.parametrize(
    "concept", [Concept("猫"), Concept("🐈"), Concept("cat", "猫"), Concept("γάτα")], ids=str
)
def test_name_that_cannot_be_spelled_is_refused(flux, concept):
    name = next(n for n in (concept.target, concept.anchor) if not n.isascii())
    with pytest.raises(ConceptError, match=f"knows no character of '{name}'.*Latin letters.*--stream pooled"):
        erase(flux.model, flux.clip, [Concept("dog"), concept], KEEP)
    with pytest.raises(ConceptError, match=f"knows no character of '{name}'.*Latin letters"):
        finetune(flux.model, flux.clip, [concept], KEEP, FinetuneConfig(steps=1, width=64, height=64))


@full_engine
def test_name_that_can_be_spelled_in_part_is_warned_of(flux):
    result = erase(flux.model, flux.clip, [Concept("кошка")], KEEP)
    assert any("does not know every character of 'кошка'" in w for w in result.report["warnings"])
    assert not any(
        "character" in w for w in erase(flux.model, flux.clip, [Concept("cat")], KEEP).report["warnings"]
    )


@full_engine
def test_clips_side_alone_can_be_erased(flux):
    """T5 has one id for both animals; CLIP, whose pooled vector is edited here, tells them apart."""
    result = erase(
        flux.model, flux.clip, [Concept("猫")], [*KEEP, "犬"], ClosedFormConfig(stream="pooled", eta=0.0)
    )
    assert set(result.edits) == {"pooled"} and result.lora.modules
    assert all("vector_in" in module for module in result.lora.modules)
    both = erase(flux.model, flux.clip, [Concept("cat")], KEEP)
    assert set(both.lora.modules) > set(result.lora.modules)
    edit, encoder = result.edits["pooled"], TextEncoder(flux.clip)
    left = []
    for animal in "猫犬":
        d = encoder.encode(f"a photo of a {animal}").pooled - encoder.encode("a photo of a").pooled
        left.append(((edit.map(d[None]) - d).norm() / d.norm()).item())
    assert left[0] > 0.9 and left[1] < 0.75 * left[0], left


def test_pooled_alone_needs_a_model_that_reads_it(families):
    case = families["sd1"]
    with pytest.raises(ModelError, match="reads no pooled vector"):
        erase(case.model(), case.clip, [Concept("cat")], KEEP, ClosedFormConfig(stream="pooled"))


def with_t5_options(clip, padding: int = 0, length: int = 0):
    """What the stock node *T5TokenizerOptions* does."""
    clip = clip.clone()
    if not hasattr(clip, "set_tokenizer_option"):
        pytest.skip("this engine has no T5TokenizerOptions")
    clip.set_tokenizer_option("t5xxl_min_padding", padding)
    clip.set_tokenizer_option("t5xxl_min_length", length)
    return clip


@pytest.mark.parametrize(("padding", "length"), [(0, 0), (3, 0), (0, 40), (5, 40)])
def test_stock_t5_tokenizer_options(families, padding, length):
    case = families["flux"]
    clip, model = with_t5_options(case.clip, padding, length), case.model()
    encoder = TextEncoder(clip)
    assert encoder.towers[0].pad == case.clip.tokenizer.t5xxl.pad_token
    prompts = ["a cat", "a photo of a cat on a red background", ""]
    for rows, prompt in zip(encoder.encode_all((p, "") for p in prompts), prompts):
        own = clip.encode_from_tokens(clip.tokenize(prompt))[0]
        assert rows.embeddings.shape == own.shape and torch.allclose(rows.embeddings, own, atol=1e-5)
    result = erase(model, clip, [Concept("cat", "dog")], KEEP)
    assert result.lora.modules and result.report["solved"]["context"]["rank"]
    backbone = backbone_for(model)
    made = Prompts(backbone, clip, backbone.latent_shape(64, 64), 3.0)
    numbers = made.indices([("a photo of a cat", "cat"), ("a photo of a", ""), (prompts[1], "cat")])
    ((_, condition),) = made.batch(numbers).parts
    rows = condition["c_crossattn"]
    columns = made.columns([numbers[0], numbers[2]], ends=False)
    assert columns.shape == (2, rows.shape[1]) and columns.sum(1).tolist() == [1, 1]
    ends = made.columns([numbers[0]], ends=True)
    assert ends.sum() > columns[0].sum()
    assert {SUBJECT, PAD} <= set(made._groups[numbers[0]])
