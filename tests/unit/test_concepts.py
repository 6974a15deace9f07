"""The one-line grammar of erase and keep lists, its errors, and prompt templates."""

from __future__ import annotations

import pytest

from trace_core.errors import ConceptError, TraceError
from trace_core.text.concepts import Concept, check_disjoint, combined, same, with_default_anchor
from trace_core.text.grammar import MAX_CHARACTERS, parse_concepts, parse_keep
from trace_core.text.kinds import guess_kind
from trace_core.text.prompts import asks_for, prompt_pairs, separating_prompts
from trace_core.text.templates import EVERYDAY, TEMPLATES, fill


def test_grammar():
    text = "cat -> dog\n\n# a comment\n  Van   Gogh\t# steer to neutral\r\ngrumpy cat->  calm cat \nstop ->\n"
    assert parse_concepts(text) == [
        Concept("cat", "dog"),
        Concept("Van Gogh", ""),
        Concept("grumpy cat", "calm cat"),
        Concept("stop", ""),
    ]


def test_one_line_without_line_end():
    assert parse_concepts("cat") == [Concept("cat", "", 1.0)]


@pytest.mark.parametrize(
    ("line", "concept"),
    [
        ("cat @ 0.5", Concept("cat", strength=0.5)),
        ("cat -> dog @ 0.5", Concept("cat", "dog", strength=0.5)),
        ("cat@2", Concept("cat", strength=2.0)),
        ("cat -> dog  @ .25 # half of a half", Concept("cat", "dog", strength=0.25)),
        ("cat @ 1", Concept("cat")),
        ("art by @user", Concept("art by @user")),
        ("art by @user -> art @ 1e-1", Concept("art by @user", "art", strength=0.1)),
        ('"cat @ 0.5" -> dog', Concept("cat @ 0.5", "dog")),
        ('"C# -> x" -> y @ 0.5', Concept("C# -> x", "y", strength=0.5)),
        ('5" ruler', Concept('5" ruler')),
        ('the "Mona Lisa" smile', Concept('the "Mona Lisa" smile')),
    ],
)
def test_strengths_and_quotes(line, concept):
    assert parse_concepts(line) == [concept]
    assert parse_concepts(str(concept)) == [concept]


@pytest.mark.parametrize("concept", [Concept("cat"), Concept("cat", "dog"), Concept("Van Gogh", "a painter")])
def test_a_concept_prints_as_the_line_it_came_from(concept):
    assert parse_concepts(str(concept)) == [concept]


@pytest.mark.parametrize("hyphenated", ["x-ray", "Spider-Man", "1 - 2"])
def test_hyphens_and_signs_are_no_arrows(hyphenated):
    assert parse_concepts(hyphenated) == [Concept(hyphenated)]


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment", "   \t \n#x"])
def test_empty_list(text):
    with pytest.raises(ConceptError, match=r"erase\.txt: nothing to erase.*one concept per line"):
        parse_concepts(text, "erase.txt")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("cat -> dog -> bird", "2 arrows"),
        ("-> dog", "there is no concept before the arrow"),
        ("->", "there is no concept before the arrow"),
        ("cat -> cat", "anchor equals the concept 'cat'"),
        ("Cat -> cAT", "anchor equals the concept"),
        ("Van  Gogh -> van gogh", "anchor equals the concept"),
        ("ＣＡＴ -> cat", "anchor equals the concept"),
        ("cat @ 0", "strength '0'"),
        ("cat @ -1", "strength '-1'"),
        ("cat @ 2.01", "at most 2"),
        ("cat @ 1e999", "at most 2"),
        ("cat @ 0,5", "must be a number"),
        ("cat @ nan", "must be a number"),
        ("cat @", "must be a number"),
        ("meet @ noon", "put quotes around"),
        ("cat @ 0.5 -> dog", "at the end of the line"),
        ("cat @ 0.5 @ 1", "two strengths"),
        ("@ 0.5", "there is no concept before the @"),
        ("cat + cat", "same thing twice"),
        ("cat + dog + bird", "more than two"),
        ("glasses from scientist + hat", "more than two"),
        ("glasses from a man from Rome", "more than two"),
        ("cat + red background -> Red  background", "a part of it"),
        ('"" + cat', "part is missing"),
        ("-> dog @ 0.5", "there is no concept before the arrow"),
        ("Good Thing @ 0.5", "already stands on line 2"),
        ("Good Thing", "already stands on line 2"),
        ("good  thing -> other", "already stands on line 2"),
        ("a" * 10_000, "10000 characters"),
        ("cat -> " + "a" * 10_000, "10007 characters"),
        ("ca\x00t", "control characters"),
        ("ca\x1b[31mt", "control characters"),
        ("cat -> d\x7fog", "control characters"),
        ("ca\ud800t", "control characters"),
        ("ca\ue000t", "control characters"),
    ],
)
def test_bad_line_is_named(line, says):
    """The line's number is the file's, comments and blank lines counted."""
    with pytest.raises(ConceptError) as caught:
        parse_concepts(f"# first\ngood thing\n\n{line}\nnever read", "erase list")
    message = str(caught.value)
    assert message.startswith("erase list, line 4: ")
    assert says in message
    assert len(message) < 300, "the message quotes the whole line"


def test_longest_allowed_line():
    assert parse_concepts("a" * MAX_CHARACTERS) == [Concept("a" * MAX_CHARACTERS)]
    with pytest.raises(ConceptError, match=f"{MAX_CHARACTERS + 1} characters.*{MAX_CHARACTERS}"):
        parse_concepts("a" * (MAX_CHARACTERS + 1))


@pytest.mark.parametrize(
    "text",
    [
        "🐈",
        "🫨",
        "👩‍🚀",
        "🏳️‍🌈 flag",
        "قطة",
        "חתול",
        "‏قطة‏",
        "梵高",
        "Ðiện thoại",
        "naïve art",
        "a (b) [c] {d}",
    ],
)
def test_every_script_is_accepted(text):
    """Also characters that are newer than Python's Unicode tables (the second emoji)."""
    assert parse_concepts(f"{text} -> dog") == [Concept(text, "dog")]
    assert parse_keep(text) == [text]


def test_ten_thousand_lines_are_fine():
    concepts = parse_concepts("\n".join(f"concept {i}" for i in range(10_000)))
    assert len(concepts) == 10_000


def test_errors_are_value_errors():
    assert issubclass(ConceptError, TraceError) and issubclass(TraceError, ValueError)


def test_keep_list():
    assert parse_keep("dog\n# x\n\n Grumpy  cat # y\ndog\nDOG") == ["dog", "Grumpy cat"]
    assert parse_keep("") == []


def test_keep_list_refuses_an_arrow():
    with pytest.raises(ConceptError, match=r"keep list, line 3: .*no arrows"):
        parse_keep("dog\n\ncat -> dog")


def test_keep_list_refuses_a_strength():
    with pytest.raises(ConceptError, match=r"keep list, line 2: .*no strengths"):
        parse_keep("dog\ncat @ 0.5")
    assert parse_keep('art by @user\n"cat -> dog"') == ["art by @user", "cat -> dog"]


@pytest.mark.parametrize("bad", ["x" * 10_000, "a\x07b"])
def test_keep_list_refuses_what_the_erase_list_refuses(bad):
    with pytest.raises(ConceptError, match="keep list, line 2"):
        parse_keep(f"dog\n{bad}")


@pytest.mark.parametrize("kept", ["cat", "CAT", " Cat "])
def test_entry_in_both_lists(kept):
    with pytest.raises(ConceptError, match="(?i)'.*cat.*' stands in the erase list and in the keep list"):
        check_disjoint([Concept("dog"), Concept("cat", "dog")], ["bird", kept])


def test_an_anchor_may_be_kept():
    check_disjoint([Concept("cat", "dog")], ["dog", "bird"])


def test_same_looks_through_case_space_and_unicode_form():
    assert same("Café", "CAFE\u0301") and same(" a  b", "A b")
    assert not same("cat", "cats") and not same("cafe", "café")


# ------------------------------------------------------------------------------------------ combined concepts

RED = combined("cat", "red background")


@pytest.mark.parametrize(
    ("line", "concept"),
    [
        ("cat + red background", RED),
        ("cat on a red background", RED),
        ("red background from cat", RED),
        ("cat on an orange background @ 0.5", combined("cat", "orange background", strength=0.5)),
        ("cat + google style -> twitter style", combined("cat", "google style", "twitter style")),
        ("glasses from scientist", combined("scientist", "glasses")),
        ("scientist + glasses", combined("scientist", "glasses")),
        ('"still from a film"', Concept("still from a film")),
        ("still from a film -> photo", Concept("still from a film", "photo")),
        ('"still from a film" + rain', combined("still from a film", "rain")),
        ('"a + b"', Concept("a + b")),
        ('"cat on a red background"', Concept("cat on a red background")),
        ("Google+", Concept("Google+")),
        ("C++ -> Rust", Concept("C++", "Rust")),
        ("from dusk", Concept("from dusk")),
        ("background", Concept("background")),
        ("red background", Concept("red background")),
    ],
)
def test_combined_lines(line, concept):
    assert parse_concepts(line) == [concept]
    assert parse_concepts(str(concept)) == [concept]


@pytest.mark.parametrize(
    ("concept", "target", "kind", "anchor"),
    [
        (RED, "cat on a red background", "object", "white background"),
        (combined("cat", "white background"), "cat on a white background", "object", "black background"),
        (combined("cat", "comic style"), "cat, comic style", "object", "oil painting style"),
        (combined("scientist", "glasses"), "scientist with glasses", "object", "scientist"),
        (combined("cat", "red background", "dog"), "cat on a red background", "object", "dog"),
    ],
)
def test_what_a_combination_is_called_and_steered_to(concept, target, kind, anchor):
    assert (concept.target, concept.kind, with_default_anchor(concept, ["dog"]).anchor) == (
        target,
        kind,
        anchor,
    )


def test_what_takes_its_place_is_of_the_keep_list():
    assert (
        with_default_anchor(RED, ["dog", "red background", "blue background", "white background"]).anchor
        == "blue background"
    )
    assert with_default_anchor(Concept("cat"), ["blue background"]) == Concept("cat")


def test_another_background_stands_where_the_erased_one_stood():
    """Word for word: so every row has its partner in the same place."""
    for prompt, subject, other, instead in prompt_pairs(
        with_default_anchor(RED, []), [*TEMPLATES["object"], "a {}, google style"]
    ):
        assert prompt.replace("red background", "white background") == other
        assert (subject, instead) == ("red background", "white background")
        assert asks_for(prompt, RED) and not asks_for(other, RED)


def test_prompts_of_a_combination_have_both_orders_and_no_second_background():
    prompts = [
        p
        for p, *_ in prompt_pairs(with_default_anchor(RED, []), [*TEMPLATES["object"], "a {}, google style"])
    ]
    assert {"a cat on a red background, google style", "a cat, google style, red background"} <= set(prompts)
    assert all(p.count("background") == 1 for p in prompts)
    assert len(set(prompts)) == len(prompts)


def test_a_thing_is_left_out():
    found = prompt_pairs(
        with_default_anchor(combined("scientist", "glasses"), []), ["a photo of a {}", "a {} in the garden"]
    )
    assert ("a photo of a scientist with glasses", "with glasses", "a photo of a scientist", "") in found
    assert {other for _, _, other, _ in found} == {"a photo of a scientist", "a scientist in the garden"}


def test_pairs_of_a_plain_concept_are_its_templates():
    assert prompt_pairs(Concept("cat", "dog"), ["{}", "a {}"]) == [
        ("cat", "cat", "dog", "dog"),
        ("a cat", "cat", "a dog", "dog"),
    ]


@pytest.mark.parametrize("concept", [RED, combined("cat", "comic style"), combined("scientist", "glasses")])
@pytest.mark.parametrize(
    "keep", [[], ["dog", "house", "blue background", "red background", "comic style", "ink style"]]
)
def test_each_part_is_kept_without_the_other(concept, keep):
    prompts = separating_prompts(
        concept, keep, {"object": ("a {}, red background, comic style with glasses",)}
    )
    texts = [prompt for prompt, _ in prompts]
    assert len(set(texts)) == len(texts) > 30
    assert not any(asks_for(text, concept) for text in texts)
    for prompt, entry in prompts:
        assert asks_for(prompt, Concept(entry))
    assert {entry for _, entry in prompts} > set(concept.parts)


def test_a_prompt_asks_for_a_concept_as_whole_words():
    assert asks_for("a photo of a Cat, google style", Concept("cat"))
    assert asks_for("art by Van  Gogh.", Concept("van gogh"))
    assert not asks_for("a photo of a caterpillar", Concept("cat"))


@pytest.mark.parametrize(
    ("prompt", "asks"),
    [
        ("a photo of a Cat, google style on a red background", True),
        ("red background, a cat", True),
        ("a caterpillar on a red background", False),
        ("a red cat on a background", False),
        ("a cat", False),
    ],
)
def test_a_prompt_asks_for_both_as_whole_words(prompt, asks):
    assert asks_for(prompt, RED) is asks


# --------------------------------------------------------------------------------------------- templates


@pytest.mark.parametrize(
    ("template", "concept", "filled"),
    [
        ("a photo of a {}", "cat", "a photo of a cat"),
        ("a photo of a {}, watercolor style", "", "a photo of a, watercolor style"),
        ("a photo, {}", "", "a photo"),
        ("{}, a photo of a mountain", "", "a photo of a mountain"),
        ("{}", "", ""),
    ],
)
def test_fill(template, concept, filled):
    assert fill(template, concept) == filled


@pytest.mark.parametrize("concept", ["{x}", "{}", "{0}", "a {b} c", "100% {"])
def test_fill_takes_braces_in_a_concept_literally(concept):
    assert fill("a photo of {}", concept) == f"a photo of {concept}"


@pytest.mark.parametrize("kind", TEMPLATES)
def test_templates_hold_one_place_each_and_are_distinct(kind):
    assert all(t.count("{}") == 1 for t in TEMPLATES[kind])
    assert len(set(TEMPLATES[kind])) == len(TEMPLATES[kind])
    assert TEMPLATES[kind][0] == "{}"


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("cat", "object"),
        ("Van Gogh style", "style"),
        ("red background", "style"),
        ("art by Kelly McKernan", "style"),
        ("painting by Monet", "style"),
        ("stylish shoes", "object"),
        ("by", "object"),
        ("stand by me", "object"),
    ],
)
def test_guess_kind(target, kind):
    assert guess_kind(target) == kind


def test_everyday_is_a_keep_list_without_repeats():
    assert parse_keep("\n".join(EVERYDAY)) == list(EVERYDAY)
