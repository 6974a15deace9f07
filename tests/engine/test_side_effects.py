"""What the report says of words that share tokens with a name, of long prompts and of weighted ones, on
the trained demo models.
"""

from __future__ import annotations

import pytest

from trace_core.closed_form import ClosedFormConfig, erase
from trace_core.closed_form.effects import LIMIT, WEIGHT, effect_warnings, sharing
from trace_core.demo import domain
from trace_core.demo.loader import load
from trace_core.text.concepts import Concept
from trace_core.text.encoding import SUBJECT, TextEncoder

NAME = Concept("Van Gogh")


@pytest.fixture(scope="module")
def demo(engine):
    model, clip, _ = load("demo-sd")
    return model, clip


@pytest.fixture(scope="module")
def reports(demo):
    """Of the name erased with and without its words kept."""
    keep, options = domain.keep_list([NAME]), {"kind": "style", "contexts": domain.CONTEXTS}
    return {
        c: erase(*demo, [NAME], keep, ClosedFormConfig(contrast=c, **options)).report for c in (True, False)
    }


def test_word_inside_a_name_stays_and_the_name_goes(reports):
    """The pictures agree: of 12 of "a van" all show one, without contrast 1; of "Van Gogh" 1 either way."""
    kept, gone = (reports[c]["side_effects"]["Van Gogh"] for c in (True, False))
    assert kept["words"]["van"] > 0.6 > LIMIT > gone["words"]["van"]
    assert kept["words"]["gogh"] < 0.05, "a word that is no thing by itself goes with the name"
    assert kept["short"] < 1.1 * gone["short"], "the name is erased as before"


def test_a_word_that_loses_is_told_with_its_cure(reports):
    report = reports[False]
    assert report["contrast"] == {} and reports[True]["contrast"] == {"Van Gogh": ["van"]}
    told = {
        "Van Gogh": {
            **report["side_effects"]["Van Gogh"],
            "words": {"van": -0.3, "gogh": -0.7, "boat": 0.1, "tree": 0.4},
        }
    }
    found = effect_warnings(told, ["boat"], {"Van Gogh": ["van"]})
    # gogh is the name's own, tree is well
    assert [w.split(" is left")[0] for w in found] == ["0 % of 'van'", "10 % of 'boat'"]
    assert all("lower the energy" in w for w in found), "both are kept already"
    assert (
        "write horse in the keep list"
        in effect_warnings({"x": {**told["Van Gogh"], "words": {"horse": 0.0}}}, [], {})[0]
    )


def test_long_and_weighted_prompts_are_told_where_they_hold_more():
    figures = {"short": 0.1, "long": 0.2, "weighted": 0.3, "words": {}}
    assert effect_warnings({"cat": figures}, [], {}) == []
    assert (
        "45 % of 'cat' is left in a prompt of 20 words"
        in effect_warnings({"cat": {**figures, "long": 0.45}}, [], {})[0]
    )
    assert (
        f"60 % of 'cat' is left in a prompt with (cat:{WEIGHT:g})"
        in effect_warnings({"cat": {**figures, "weighted": 0.6}}, [], {})[0]
    )
    assert effect_warnings({"cat": {**figures, "long": None}}, [], {}) == []


def test_weighted_rows_are_comfyuis(demo):
    from trace_core.closed_form.effects import _pairs, weighted

    clip = demo[1]
    encoder = TextEncoder(clip)
    pairs = weighted(_pairs(encoder, Concept("cat"), "a photo of a {}"), encoder.encode("").embeddings)
    own = clip.encode_from_tokens(clip.tokenize(f"a photo of a (cat:{WEIGHT})"))[0]
    assert (pairs.erase - own).abs().max() < 1e-4 * own.abs().max()
    plain = encoder.encode("a photo of a cat", "cat")
    changed = [i for i in range(len(own)) if (own[i] - plain.embeddings[i]).norm() > 1e-3 * own[i].norm()]
    assert changed == plain.rows(SUBJECT)


def test_words_that_share_tokens_are_found_by_tokens(demo):
    encoder = TextEncoder(demo[1])
    assert sharing(encoder, NAME, ["van", "house"], [NAME]) == ["van", "gogh"]
    assert sharing(encoder, Concept("cat"), ["cat", "dog", "a cat"], [Concept("cat")]) == ["a cat"]


def test_a_long_list_costs_little(demo):
    """Two names of a list are looked at, whatever its length."""
    concepts = [Concept(n) for n in ("cat", "dog", "ship", "truck")]
    report = erase(*demo, concepts, ["house", "tree"], ClosedFormConfig(contexts=domain.CONTEXTS)).report
    assert list(report["side_effects"]) == ["cat", "dog"]
