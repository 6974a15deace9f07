"""Verify Erasure without a model: figures, items, verdict, report, page and card."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fake_clip import FakeClip
from trace_core.errors import ConceptError, LoraError, TraceError
from trace_core.evaluate.verify import FAIL, PASS, WARN, Effort, names
from trace_core.evaluate.verify import thresholds as at
from trace_core.evaluate.verify.card import card, with_card
from trace_core.evaluate.verify.items import of_attacks, of_kept, of_layers, of_negative, of_pictures, of_ways
from trace_core.evaluate.verify.layers import Residual
from trace_core.evaluate.verify.markdown import line, markdown
from trace_core.evaluate.verify.page import WIDTH, page
from trace_core.evaluate.verify.prompts import PLAIN, neutral_of, parse_synonyms, probes, templates_of
from trace_core.evaluate.verify.scene import chunks, on_axis
from trace_core.lora import ErasureLora
from trace_core.lora.metadata import VERIFICATION
from trace_core.lora.parts import entry_of
from trace_core.text.concepts import Concept, combined, with_default_anchor
from trace_core.text.encoding import TextEncoder
from verify_cases import drawn, measured, verification, way

CAT = Concept("cat")


@pytest.mark.parametrize(("figure", "status"), [(0.1, PASS), (0.11, WARN), (0.2, WARN), (0.21, FAIL)])
def test_a_figure_passes_up_to_one_threshold_and_fails_above_the_other(figure, status):
    assert at.Limits(0.1, 0.2).status(figure) == status


def test_the_way_between_two_predictions():
    zero, one = torch.zeros(4, 2, 3), torch.ones(4, 2, 3)
    values = torch.stack([zero[0], one[0], 0.5 * one[0], -one[0]])
    assert on_axis(values, zero, one).tolist() == [0.0, 1.0, 0.5, -1.0]
    across = torch.tensor([[1.0, -1.0]])  # at right angles
    assert on_axis(across, torch.zeros(1, 2), torch.ones(1, 2)).item() == 0.0
    assert on_axis(one, one, one).isfinite().all()


def test_chunks_cover_everything_once():
    assert chunks(5, 2) == [[0, 1], [2, 3], [4]]
    assert chunks(0, 3) == [] and chunks(2, 0) == [[0], [1]]


def test_effort_is_checked():
    with pytest.raises(TraceError, match="samples is 0"):
        Effort(samples=0)
    with pytest.raises(TraceError, match="neighbours is -1"):
        Effort(neighbours=-1)


# ------------------------------------------------------------------------------------------- prompts


@pytest.fixture
def encoder():
    return TextEncoder(FakeClip())


def test_ways_to_write_a_concept(encoder):
    found = {p.name: p for p in probes(Concept("cat", "dog"), "object", ["kitty"], encoder)}
    assert next(iter(found)) == PLAIN and found[PLAIN].prompt == "a photo of a cat"
    assert found["other case"].prompt == "a photo of a CAT" and found["other case"].rewritten
    assert found["weighting"].prompt == "a photo of a (cat:1.3)"
    assert found["misspelling"].prompt == "a photo of a cta"
    assert {found[n].reference for n in ("other case", "weighting", "misspelling")} == {"a photo of a cat"}
    assert found["synonym 'kitty'"].reference == "a photo of a kitty"
    assert {p.counterpart for p in found.values() if p.rewritten} == {"a photo of a dog"}
    assert not found["tags"].rewritten and "dog" in found["tags"].counterpart


def test_sentences_are_in_no_training_template(encoder):
    from trace_core.evaluate.verify.prompts import SENTENCES
    from trace_core.text.templates import TEMPLATES

    for kind, sentences in SENTENCES.items():
        assert not set(sentences.values()) & set(TEMPLATES[kind])


def test_a_name_without_letters_to_swap_has_no_misspelling(encoder):
    assert "misspelling" not in {p.name for p in probes(Concept("aa"), "object", [], encoder)}


def test_a_combination_is_asked_for_as_a_whole(encoder):
    concept = with_default_anchor(combined("cat", "red background"), [])
    found = probes(concept, "object", [], encoder)
    assert all(not p.rewritten and p.counterpart != p.prompt for p in found)
    assert neutral_of(concept, "object") == found[0].counterpart
    assert neutral_of(CAT, "object") == "a photo of a"


def test_templates_of_a_real_model_are_the_plain_one():
    assert templates_of("style", None, 3) == ["a photo, {}"] * 3


@pytest.mark.parametrize(
    ("lines", "concepts", "wanted"),
    [
        (["kitty, house  cat"], [CAT], {"cat": ["kitty", "house cat"]}),
        (["cat: kitty", " Dog: hound", ""], [CAT, Concept("dog")], {"cat": ["kitty"], "dog": ["hound"]}),
        (["CAT: a", "cat: b"], [CAT], {"cat": ["a", "b"]}),
    ],
)
def test_synonyms(lines, concepts, wanted):
    assert parse_synonyms(lines, concepts) == wanted


@pytest.mark.parametrize(
    ("lines", "concepts", "message"),
    [
        (["kitty"], [CAT, Concept("dog")], "name no concept"),
        (["bird: crow"], [CAT], "'bird', which is not verified"),
        (["kitty"], [], "name no concept"),
    ],
)
def test_synonyms_without_a_concept_are_refused(lines, concepts, message):
    with pytest.raises(ConceptError, match=message):
        parse_synonyms(lines, concepts)


# ------------------------------------------------------------------------------------------- items


def test_pictures():
    assert of_pictures(drawn("cat", [1.0] * 10, [0.0] * 10)).status == PASS
    assert of_pictures(drawn("cat", [1.0] * 10, [1.0] * 2 + [0.0] * 8)).status == WARN
    assert of_pictures(drawn("cat", [1.0] * 8, [1.0] * 2 + [0.0] * 6)).status == FAIL
    assert of_pictures(drawn("cat", [1.0] * 10, [1.0] * 10)).status == FAIL


def test_a_concept_that_the_model_does_not_draw_gives_no_verdict():
    found = of_pictures(drawn("cat", [0.0] * 7 + [1.0], [0.0] * 8))
    assert found.status == WARN and "1 of 8 pictures before" in found.sentence


def test_of_many_names_the_one_that_fits_best_counts():
    others, best = tuple("abcdefgh"), torch.tensor([True, False, False, False])
    found = replace(drawn("cat", [1.0] * 4, [1.0] * 4), names=others, chosen=best)
    item = of_pictures(found)
    assert found.drawn == item.figure == 0.25 and item.status == FAIL
    assert "Of 9 names, 'cat' fits 1 of 4 pictures best" in item.sentence


def test_names_to_choose_from_are_of_the_kind_and_stay():
    concepts = [Concept("cat", "dog"), Concept("frog")]
    near = {"cat": ["lynx", "dog", "fox"], "frog": ["toad", "newt", "lynx"]}
    listed = ["horse", "truck", "cats", "Van Gogh style", "ship"]
    found = names.of_concept(concepts[0], concepts, near, listed)
    assert found == ["dog", "lynx", "fox", "toad", "newt", "horse", "truck", "ship"]
    assert names.of_concept(concepts[0], concepts, near, listed[:-1]) == [], "too few to choose from"
    assert names.of_concept(combined("cat", "red background"), concepts, near, listed) == []
    assert names.of_concept(Concept("nudity"), concepts, near, listed) == []


def test_only_ways_that_the_model_knows_count():
    items = of_ways(CAT, [way(PLAIN, 0.0), way("tags", 0.1), way("misspelling", 1.0, False)])
    assert [i.status for i in items] == [PASS, PASS] and items[1].worst == "tags"
    assert of_ways(CAT, [way(PLAIN, 0.0), way("tags", 1.0)])[1].status == FAIL


def test_all_kept_things_decide_and_neighbours_have_a_line_the_weakest_by_name():
    things = [
        drawn("dog", [1.0] * 4, [1.0, 0.0, 0.0, 0.0], near="cat"),
        drawn("house", [1.0] * 4, [1.0] * 4, moved=0.4),
        drawn("tree", [1.0, 1.0, 1.0, 0.0], [1.0] * 4, moved=0.1),
    ]
    found = {i.name: i for i in of_kept(things)}
    assert found["near neighbours"].figure == 0.75 and found["near neighbours"].worst == "dog"
    assert found["kept things"].figure == pytest.approx(3 / 11) and found["kept things"].worst == "dog"
    assert "8 of 11 pictures" in found["kept things"].sentence
    assert found["kept things"].decides and not found["near neighbours"].decides
    assert of_kept(things[1:])[0].worst == "house", "of equals the one that moved most"
    assert of_kept([drawn("x", [0.0], [0.0])]) == []


def test_a_kept_picture_that_became_another_is_lost():
    thing = drawn("dog", [1.0] * 3, [1.0] * 3, moved=at.MOVED + 0.1)
    assert thing.usable == 3 and thing.still == 0
    assert of_kept([thing])[0].status == FAIL


def test_a_kept_picture_that_became_another_counts_if_its_name_fits_best():
    thing = replace(
        drawn("dog", [1.0] * 3, [1.0] * 3, moved=at.MOVED + 0.1), chosen=torch.tensor([True, True, False])
    )
    assert thing.usable == 3 and thing.still == 2


def test_names_of_a_kept_thing_hold_the_concepts_and_not_itself():
    concepts = [Concept("cat", "dog"), Concept("red background")]
    near = {"cat": ["lynx", "fox", "puma", "tiger"]}
    things = [("lynx", "object"), ("house", "object"), ("ship", "object"), ("blue background", "style")]
    found = names.of_kept("lynx", "object", concepts[:1], near, things, ["truck", "lynx", "frog"])
    assert found == ["cat", "dog", "fox", "puma", "tiger", "house", "ship", "truck", "frog"]
    assert names.of_kept("lynx", "object", concepts[:1], {}, things, []) == []


def test_no_template_asks_for_what_is_erased():
    from trace_core.demo.world import defaults

    own = defaults("demo-sd")
    assert any("airplane" in t for t in templates_of("style", own, 5))
    assert not any("airplane" in t for t in templates_of("style", own, 5, [Concept("airplane")]))


def test_attacks_never_decide():
    assert not any(i.decides for i in of_attacks(CAT, [way("RECE's rows", 2.0)]))


def test_text_layers_and_negative_prompt():
    left = [Residual(PLAIN, "diffusion_model.a", 0.1), Residual("tags", "diffusion_model.b", 0.9)]
    item = of_layers(CAT, left, [PLAIN, "tags"])
    assert item.worst == "b" and "90 %" in item.sentence
    assert of_layers(CAT, left, []) is None
    assert of_negative(CAT, -1.0).status == PASS and of_negative(CAT, 1.0).status == FAIL
    assert not item.decides and not of_negative(CAT, 1.0).decides


# ------------------------------------------------------------------------------------------- result


def test_the_verdict_is_the_most_severe_item_that_decides():
    assert verification(measured()).status == PASS
    assert verification(measured(), measured("dog", gone=False)).status == FAIL
    kept = [drawn("dog", [1.0] * 3, [1.0, 0.0, 0.0])]
    assert verification(measured(), kept=kept).status == FAIL


def test_the_report_is_json_and_markdown():
    found = verification(kept=[drawn("dog", [1.0] * 3, [1.0] * 3)], notes=["Something."])
    whole = json.loads(json.dumps(found.to_dict()))
    assert whole["verdict"] == PASS and whole["concepts"][0]["wordings"]["misspelling"]["counts"] is False
    text = markdown(found)
    assert text.startswith("# Verified: cat\n\n**PASS.**") and "Weakest kept thing: 'dog'" in text
    assert "not known to it" in text and "> **Note:** Something." in text
    assert line(found).startswith("PASS: ")
    assert line(verification(measured(gone=False))).startswith(
        "FAIL: The unerased model sees 'cat' in 8 of 8"
    )


def test_names_in_the_report_are_plain_text():
    text = markdown(verification(measured("<img src=x>"), notes=["[a](b)"]))
    assert "<img" not in text.replace("\\<img", "") and "[a](b)" not in text


def test_the_page():
    picture = torch.rand(48, 64, 3)
    found = verification(
        measured(),
        measured("dog"),
        kept=[drawn("dog", [1.0], [1.0])],
        thumbnails=[("a cat", picture, picture)],
    )
    sheet = page(found)
    assert sheet.width == WIDTH and 300 < sheet.height < 2000
    assert np.asarray(sheet).std() > 5
    assert page(verification(*[measured("x" * 200) for _ in range(30)])).height < 2500


def test_the_card_goes_into_the_metadata_and_only_of_its_own_edit():
    lora = ErasureLora.from_factors({"diffusion_model.a": (torch.ones(4, 2), torch.ones(2, 3))})
    lora.metadata |= {
        "trace.base": '{"kind": "sd1", "hash": "0"}',
        "trace.concepts": json.dumps([entry_of(CAT)]),
    }
    found = verification(fingerprint=lora.fingerprint)
    carded = with_card(lora, found)
    assert carded.info()[VERIFICATION]["verdict"] == PASS and VERIFICATION not in lora.metadata
    assert carded.fingerprint == lora.fingerprint
    assert len(json.dumps(card(found))) < 4096
    back = ErasureLora.from_bytes(carded.to_bytes())
    assert back.info()[VERIFICATION] == json.loads(json.dumps(card(found)))
    with pytest.raises(LoraError, match="another erasure"):
        with_card(lora, verification())


def test_another_edit_has_no_card():
    lora = ErasureLora.from_factors({"diffusion_model.a": (torch.ones(4, 2), torch.ones(2, 3))})
    lora.metadata["trace.concepts"] = json.dumps([entry_of(CAT)])
    carded = with_card(lora, verification(fingerprint=lora.fingerprint))
    other = ErasureLora.from_factors({"diffusion_model.a": (torch.ones(4, 2), torch.ones(2, 3))})
    assert VERIFICATION not in ErasureLora.join(carded, other).metadata
    assert VERIFICATION not in carded.with_strengths({"cat": 0.5}).metadata
