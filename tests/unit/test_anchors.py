"""Anchors that are erased themselves, and kinds by lists of names."""

from __future__ import annotations

import pytest

from trace_core.demo.vocabulary import COLOURS, OBJECTS, STYLES
from trace_core.lora.parts import entry_of, read_concepts
from trace_core.text.anchors import follow_anchors
from trace_core.text.concepts import Concept, combined, kinds_of, with_default_anchor
from trace_core.text.grammar import parse_concepts
from trace_core.text.kinds import DATA, KINDS, LISTS, bare, guess_kind, kind_of
from trace_core.text.prompts import prompt_pairs
from trace_core.text.templates import EVERYDAY, OTHERS, TEMPLATES

ROUND = "the arrows form a circle"


@pytest.mark.parametrize(
    ("lines", "then", "says"),
    [
        ("cat -> dog; dog -> cat", "cat; dog", ROUND),
        (
            "cat -> dog; dog -> truck",
            "cat -> truck; dog -> truck",
            "'cat -> dog': 'dog' is erased as well, so 'cat' is steered to 'truck'",
        ),
        ("dog -> truck; cat -> dog", "dog -> truck; cat -> truck", "so 'cat' is steered to 'truck'"),
        (
            "cat -> dog; dog",
            "cat; dog",
            "'dog' is erased as well, so 'cat' is erased like a line without an arrow",
        ),
        (
            "a -> b; b -> c; c -> d",
            "a -> d; b -> d; c -> d",
            "'b', 'c' are erased as well, so 'a' is steered to 'd'",
        ),
        ("a1 -> b1; b1 -> c1; c1 -> a1", "a1; b1; c1", ROUND),
        ("x1 -> a1; a1 -> b1; b1 -> a1", "x1; a1; b1", ROUND),
        ("cat -> a Dog; dog -> the truck", "cat -> the truck; dog -> the truck", "'a Dog' is erased as well"),
        (
            "cat -> dog @ 0.5; dog -> truck @ 0.25",
            "cat -> truck @ 0.5; dog -> truck @ 0.25",
            "steered to 'truck'",
        ),
        (
            "cat + red background -> dog; dog -> bird",
            "cat + red background -> bird; dog -> bird",
            "steered to 'bird'",
        ),
        (
            "cat -> big dog; dog -> truck",
            "cat -> big dog; dog -> truck",
            "'big dog', the anchor of 'cat', contains 'dog', which is erased as well",
        ),
    ],
)
def test_arrows_are_followed(lines, then, says):
    concepts, notes = follow_anchors(parse_concepts(lines))
    assert concepts == parse_concepts(then)
    assert any(says in note for note in notes)
    again, _ = follow_anchors(concepts)
    assert again == concepts, "what comes out is not followed any further"


@pytest.mark.parametrize(
    "lines",
    [
        "cat -> dog",
        "cat -> dog; bird -> dog",
        "cat -> grumpy cat",
        "cat; dog",
        "cat -> doggy; dog",
        "cat + dog; bird",
    ],
)
def test_other_anchors_stay(lines):
    concepts = parse_concepts(lines)
    assert follow_anchors(concepts) == (concepts, [])


def test_a_part_that_is_erased_altogether_is_said():
    concepts = parse_concepts("cat + hat; cat")
    assert follow_anchors(concepts) == (
        concepts,
        [
            "'cat with hat': 'cat' is erased everywhere, so the combination needs no line of its own; "
            "remove that line"
        ],
    )


def test_what_stands_in_the_place_of_a_part_is_not_erased_itself():
    red = combined("cat", "red background")
    assert (
        with_default_anchor(red, [], [Concept("White  background"), Concept("dog")]).anchor
        == "black background"
    )
    backgrounds = [Concept(b) for b in OTHERS["background"]]
    assert with_default_anchor(red, ["sea background"], backgrounds).anchor == "sea background"
    assert with_default_anchor(red, [], backgrounds).anchor == "cat", "nothing is left: the part is left out"


def test_many_concepts_with_anchors_take_no_time():
    concepts = parse_concepts(
        "\n".join(f"painter number {i} -> a person of number {i + 1}" for i in range(3000))
    )
    assert follow_anchors(concepts) == (concepts, [])


# --------------------------------------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("Van Gogh", "style", "list of artists"),
        ("vincent van gogh", "style", "list of artists"),
        ("Claude Monet", "style", "list of artists"),
        ("Salvador Dali", "style", "list of artists"),
        ("SALVADOR DALÍ", "style", "list of artists"),
        ("Georgia O'Keeffe", "style", "list of artists"),
        ("Georgia O’Keeffe", "style", "list of artists"),
        ("jean-michel basquiat", "style", "list of artists"),
        ("a Monet painting", "object", "on no list of names"),
        ("Monet painting", "style", "list of artists"),
        ("H.R. Giger", "style", "list of artists"),
        ("Stanislaw Wyspianski", "style", "list of artists"),
        ("by Monet", "style", "list of artists"),
        ("Van Gogh's", "style", "list of artists"),
        ("Van Gogh’s", "style", "list of artists"),
        ("Studio Ghibli", "style", "list of styles"),
        ("cubism", "style", "list of styles"),
        ("ukiyo-e", "style", "list of styles"),
        ("oil painting", "style", "list of styles"),
        ("a painting", "object", "on no list of names"),
        ("cat's", "object", "on no list of names"),
        ("Taylor Swift", "person", "list of people"),
        ("Beyonce", "person", "list of people"),
        ("Martin Luther King, Jr.", "person", "list of people"),
        ("nudity", "explicit", "list of explicit words"),
        ("Naked", "explicit", "list of explicit words"),
        ("a naked woman", "explicit", "list of explicit words"),
        ("explicit sexual content", "explicit", "list of explicit words"),
        ("naked mole rat", "object", "on no list of names"),
        ("Turner Prize", "object", "on no list of names"),
        ("van", "object", "on no list of names"),
        ("cat", "object", "on no list of names"),
        ("people", "object", "on no list of names"),
        ("Van Gogh style", "style", "words"),
        ("red background", "style", "words"),
        ("art by Nobody Known", "style", "words"),
        ("梵高", "object", "on no list of names"),
        ("🐱", "object", "on no list of names"),
    ],
)
def test_kinds_by_lists(name, kind, why):
    assert kind_of(name) == (kind, why) and guess_kind(name) == kind
    assert kinds_of([Concept(name)]) == [{"concept": name, "kind": kind, "why": why}]


def test_a_kind_that_is_given_goes_before_the_chosen_one_and_that_before_the_lists():
    monet, given = Concept("Monet"), Concept("Monet", kind_given="object")
    assert (monet.kind, given.kind) == ("style", "object")
    assert [k["kind"] for k in kinds_of([monet, given], "person")] == ["person", "object"]
    assert [k["why"] for k in kinds_of([monet, given], "person")] == ["chosen", "given in the list"]
    assert combined("cat", "Monet").target == "cat, Monet", "an artist is a style beside a thing"


def test_a_given_kind_is_in_the_metadata():
    """Beside what stood there before, in the same places."""
    concepts = [
        Concept("Foo", "art", kind_given="style"),
        combined("cat", "hat", kind_given="person"),
        Concept("cat", "dog", strength=0.5),
        Concept("cat"),
    ]
    entries = [entry_of(c) for c in concepts]
    assert entries == [
        ["Foo", "art", 1.0, 1.0, [], "style"],
        ["cat with hat", "", 1.0, 1.0, ["cat", "hat"], "person"],
        ["cat", "dog", 1.0, 0.5],
        ["cat", "", 1.0],
    ]
    assert [c.kind_given for c in read_concepts(entries)] == ["style", "person", "", ""]
    assert (
        read_concepts([["Foo", "", 1, 1, [], "nonsense"], ["Foo", "", 1, 1, [], ["style"]]])
        == [Concept("Foo", weight=1)] * 2
    )


def test_the_lists_are_clean_and_disjoint():
    found = {}
    for kind, (file, _) in LISTS.items():
        names = [
            line
            for line in (DATA / file).read_text(encoding="utf-8").splitlines()
            if not line.startswith("#")
        ]
        assert kind in KINDS and len(names) > 100 and names == sorted(names, key=bare)
        assert all(parse_concepts(f'"{name}"')[0].target == name for name in names if '"' not in name)
        for name in names:
            assert bare(name), name
            assert found.setdefault(bare(name), kind) == kind and guess_kind(name) == kind, name
        assert len({bare(n) for n in names}) == len(names), "one name, one line"
    assert len(found) > 2500


def test_everyday_and_demo_things_are_on_no_list():
    things = (*EVERYDAY, *OBJECTS, *(s for spec in OBJECTS.values() for s in spec["synonyms"]))
    assert {name: guess_kind(name) for name in things if guess_kind(name) != "object"} == {}
    assert {guess_kind(name) for name in (*STYLES, *(f"{c} background" for c in COLOURS))} == {"style"}


def test_an_artist_gets_the_prompts_of_a_style():
    prompts = [p for p, *_ in prompt_pairs(Concept("Van Gogh"), TEMPLATES[Concept("Van Gogh").kind])]
    assert "a painting of a city in Van Gogh" in prompts and "a close-up of a Van Gogh" not in prompts
