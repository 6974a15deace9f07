"""The closed form with CLIP's and T5's own tokenizers."""

from __future__ import annotations

import pytest
import torch

from closed_form_cases import KEEP
from trace_core.closed_form import erase
from trace_core.errors import ConceptError
from trace_core.text.concepts import Concept
from trace_core.text.templates import TEMPLATES


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
