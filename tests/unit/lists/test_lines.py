"""Lists as people type them: layout, arrows, names, commas, syntax of prompts."""

from __future__ import annotations

import pytest

from trace_core.errors import ConceptError
from trace_core.text.concepts import Concept, combined
from trace_core.text.grammar import parse_concepts, parse_keep


def names(text: str) -> list[str]:
    concepts = parse_concepts(text)
    assert parse_concepts("\n".join(map(str, concepts))) == concepts, "it prints as lines that are read again"
    return [c.target for c in concepts]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffcat\r\ndog\r\n",
        "cat\rdog",
        "- cat\n- dog",
        "* cat\n* dog",
        "• cat\n•dog",
        "– cat\n— dog",
        "-cat\n-dog",
        "1. cat\n2) dog",
        "  10. cat\n  11. dog",
        "a) cat\nB) dog",
        "- [ ] cat\n- [x] dog",
        "cat; dog",
        "cat;dog;",
        "cat；dog",
        "cat,\ndog,",
        '"cat",\n"dog",',
        "'cat',\n'dog'",
        "['cat', 'dog']",
        '["cat", "dog"]',
        '[\n  "cat",\n  "dog"\n]',
        "[\n'cat',  # the first\n'dog',\n]",
        "animals = [\n    'cat',\n    'dog',\n]",
        "animals = ['cat', 'dog']",
        "('cat', 'dog')",
        '- "cat"\n- "dog"',
        "\u200bcat\ndog\ufeff",
        "“cat”\n„dog“",
        "cat # one\n# two\n\ndog",
    ],
)
def test_layout_is_no_part_of_a_name(text):
    assert names(text) == ["cat", "dog"]
    assert parse_keep(text) == ["cat", "dog"]


@pytest.mark.parametrize(
    "arrow", ["->", "=>", "-->", "==>", "--->", "→", "⇒", "⟶", "➔", "➡️", "–>", "—>", "−>", "➜", "⟹"]
)
@pytest.mark.parametrize("line", ["cat {} dog", "cat{}dog", "- cat {} dog", '"cat" {} dog', "cat {} dog,"])
def test_every_form_of_an_arrow(arrow, line):
    assert parse_concepts(line.format(arrow)) == [Concept("cat", "dog")]


@pytest.mark.parametrize(
    "line", ["cat <- dog", "cat ← dog", "cat <-> dog", "cat ⇐ dog", "cat <= dog", "cat ⇔ dog"]
)
def test_an_arrow_backwards_is_refused(line):
    with pytest.raises(
        ConceptError, match=r"line 1: the arrow in .* points backwards; write `concept -> anchor`"
    ):
        parse_concepts(line)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ('"Washington, D.C."', "Washington, D.C."),
        ("“Washington, D.C.”", "Washington, D.C."),
        ("'Washington, D.C.',", "Washington, D.C."),
        ('"Steins;Gate"', "Steins;Gate"),
        ('"1. FC Köln"', "1. FC Köln"),
        ("10,000 Maniacs", "10,000 Maniacs"),
        ("saber_(fate)", "saber_(fate)"),
        (r"saber_\(fate\)", "saber_(fate)"),
        ("Zelda (character)", "Zelda (character)"),
        ("(cat)", "(cat)"),
        ("a (b) [c] {d}", "a (b) [c] {d}"),
        ("ROCK AND ROLL", "ROCK AND ROLL"),
        ("Dolce and Gabbana", "Dolce and Gabbana"),
        ("3:10 to Yuma", "3:10 to Yuma"),
        ("16:9", "16:9"),
        ("Blade Runner: 2049", "Blade Runner: 2049"),
        ('"(cat:1.3)"', "(cat:1.3)"),
        ('"BREAK"', "BREAK"),
        ("McDonald's", "McDonald's"),
        ("rock 'n' roll", "rock 'n' roll"),
        ("'Tis the season", "'Tis the season"),
        ("*NSYNC", "*NSYNC"),
        ("1 - 2", "1 - 2"),
        ("x-ray", "x-ray"),
        ("(500) Days of Summer", "(500) Days of Summer"),
        ("breakdance", "breakdance"),
        ("Ladder 49", "Ladder 49"),
        ("'C#',", "C#"),
        ('"cat <- dog"', "cat <- dog"),
        ("I <3 NY", "I <3 NY"),
        ("snake_case__name", "snake_case__name"),
    ],
)
def test_a_name_stays_a_name(line, name):
    assert names(line) == [name]


def test_pasted_strings_are_lines_but_for_words_that_may_be_of_a_name():
    """An arrow is one in a list of a program as well; 'from' is not."""
    assert parse_concepts('"cat -> dog",\n"still from a film",\n"cat + red background",') == [
        Concept("cat", "dog"),
        Concept("still from a film"),
        combined("cat", "red background"),
    ]
    assert parse_concepts('"cat -> dog"') == [Concept("cat -> dog")], "alone, the quotes are ours"


@pytest.mark.parametrize(
    "line",
    [
        "cat, dog",
        "Washington, D.C.",
        "cat,dog",
        "猫、犬",
        "cat، dog",
        "cat -> a dog, sitting",
        "Name,tag,tag",
    ],
)
def test_a_comma_is_refused_with_the_remedy(line):
    for parse in (parse_concepts, parse_keep):
        with pytest.raises(
            ConceptError,
            match=r'x, line 2: .* contains a comma; .*semicolon.*double quotes.*"Washington, D\.C\."',
        ):
            parse(f"bird\n{line}", "x")


def test_of_many_commas_the_first_is_named_and_the_others_are_counted():
    with pytest.raises(
        ConceptError, match=r"x, line 2: 'a, b' contains a comma \(and 1,200 more of the list\)"
    ):
        parse_concepts("cat\na, b\n" + "\n".join(f"a{i}, b" for i in range(1200)), "x")


SYNTAX = {
    "(cat:1.3)": "is a prompt weight",
    "a (cat:1.3) b": "is a prompt weight",
    "( cat : .5 )": "is a prompt weight",
    "cat:1.3": "is a prompt weight",
    "cat::2": "is a prompt weight",
    "((cat))": "is prompt emphasis",
    "[cat]": "is prompt emphasis",
    "[cat:dog:0.5]": "is prompt emphasis or prompt scheduling",
    "a [cat|dog] b": "is prompt emphasis or prompt scheduling",
    "BREAK": "is a prompt keyword",
    "cat BREAK dog": "is a prompt keyword",
    "cat AND dog": "is a prompt keyword",
    "<lora:x:1>": "loads a file",
    "cat <lora:x:0.8>": "loads a file",
    "<lyco:x>": "loads a file",
    "embedding:x": "is a trained embedding",
    "(embedding:bad:1.2)": "embedding",
    "{a|b}": "is a choice",
    "a {b|c} d": "is a choice",
    "__animal__": "is a wildcard",
    "a __color/dark__ cat": "is a wildcard",
    "cat -> (dog:1.2)": "is a prompt weight",
    "cat + (red background:1.2)": "is a prompt weight",
}


@pytest.mark.parametrize("line", SYNTAX)
def test_syntax_of_prompts_is_refused_with_the_remedy(line):
    for parse in (parse_concepts, parse_keep):
        if "->" in line and parse is parse_keep:
            continue
        with pytest.raises(ConceptError, match=r"^x, line 3: .*double quotes") as caught:
            parse(f"\n# y\n{line}", "x")
        assert SYNTAX[line] in str(caught.value)


NO_NAMES = {
    "@artists.txt": "is the name of a file",
    "my artists.CSV": "is the name of a file",
    "cat -> dog.png": "is the name of a file",
    "https://example.org/cat": "is a web address",
    "// my list": "a comment begins with #",
    "<li>cat</li>": "is markup",
    "{\\rtf1\\ansi cat}": "is the code of a text document",
    "cat > dog": "is no arrow",
    "cat>>dog": "is no arrow",
    "cat = dog": "is no arrow",
    "cat=dog": "is no arrow",
    "cat := dog": "is no arrow",
    "cat|dog": "is no separator",
    "cat || dog": "is no separator",
    "cat: object": "gives a kind",
    "Monet = Style": "is no arrow",
    "Monet | artist": "is no separator",
    ".": "holds no letter",
    "-- --": "holds no letter",
}


@pytest.mark.parametrize("line", NO_NAMES)
def test_what_is_no_name_is_refused_with_the_remedy(line):
    with pytest.raises(ConceptError, match=r"^x, line 2: .*double quotes") as caught:
        parse_concepts(f"bird\n{line}", "x")
    assert NO_NAMES[line] in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "C#",
        "E=mc2",
        "<3",
        "P!nk",
        "Ke$ha",
        "St. Peter",
        "C++",
        "🐱",
        "Mr. Doc",
        "Wall-E",
        "AC/DC",
        "A. Dürer",
    ],
)
def test_names_with_signs_are_names(name):
    assert names(name) == [name]
    assert names('"cat | dog.txt"') == ["cat | dog.txt"]


def test_signs_in_the_strings_of_a_program_belong_to_the_name():
    assert names('["cat | dog", "a = b", "x.txt"]') == ["cat | dog", "a = b", "x.txt"]


def test_control_characters_do_not_reach_the_terminal():
    with pytest.raises(ConceptError, match="'c\ufffda\ufffdt\ufffd' contains control characters"):
        parse_concepts("c\0a\0t\0\n\0", "x")


def test_all_duplicates_are_told_at_once():
    with pytest.raises(ConceptError) as caught:
        parse_concepts("cat\nCat -> dog\nbird\nBIRD\n" + "\n".join(["fish"] * 12), "x")
    message = str(caught.value)
    assert message.startswith(
        "x, line 2: 'Cat' already stands on line 1; x, line 4: 'BIRD' already stands on line 3; "
    )
    assert message.endswith("and 5 more; remove one of each")


def test_json_in_a_text_box():
    assert parse_concepts('{"cat": "dog",\n "Van Gogh": ""}') == [Concept("cat", "dog"), Concept("Van Gogh")]
    with pytest.raises(ConceptError, match="erase, line 2: '.dog:1.2.' is a prompt weight"):
        parse_concepts('["cat",\n"(dog:1.2)"]', "erase")
