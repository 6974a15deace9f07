"""Lists in files: text, tables, JSON, YAML, and where each error says it is."""

from __future__ import annotations

import builtins
import json

import pytest

from trace_core.errors import ConceptError, TraceError
from trace_core.text import lists
from trace_core.text.concepts import Concept


def test_a_text_file_says_file_and_line(read):
    assert read("a.txt", b"\xef\xbb\xbfcat\r\n\r\ndog -> truck\r\n") == (
        [Concept("cat"), Concept("dog", "truck")],
        [],
    )
    assert read("a.txt", "cat\nÄpfel".encode("utf-16"))[0] == [Concept("cat"), Concept("Äpfel")]
    with pytest.raises(ConceptError, match=r"^a\.txt, line 3: 'Cat' already stands on line 1"):
        read("a.txt", "cat\n\nCat")
    with pytest.raises(ConceptError, match=r"^a\.txt, line 2: not UTF-8; save the file as UTF-8"):
        read("a.txt", b"cat\nc\xe9zanne\n")


def test_a_table_in_a_text_file_is_refused_with_the_option_and_read_with_it(read):
    table = "A. J. Casson \nAaron Douglas,actor \nAbbott Fuller Graves,realism,painter \n"
    with pytest.raises(
        ConceptError,
        match=r"^a\.txt, line 2: 'Aaron Douglas,actor' contains a comma \(and 1 more .*--column 1$",
    ):
        read("a.txt", table)
    assert [c.target for c in read("a.txt", table, concept="1")[0]] == [
        "A. J. Casson",
        "Aaron Douglas",
        "Abbott Fuller Graves",
    ]


def test_what_is_no_list_is_refused(read, tmp_path):
    with pytest.raises(TraceError, match="cannot read '.*nowhere.txt'"):
        lists.read(tmp_path / "nowhere.txt")
    with pytest.raises(TraceError, match="cannot read"):
        lists.read(tmp_path)
    with pytest.raises(ConceptError, match="is a spreadsheet, a document or an archive; save it as CSV"):
        read("a.csv", b"PK\x03\x04....")
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(ConceptError, match="100 MB is too large for a list"):
        lists.read(tmp_path / "model.safetensors")


# --------------------------------------------------------------------------------------------- tables


def test_a_table_with_a_header(read):
    concepts, notes = read(
        "a.csv",
        b'\xef\xbb\xbfconcept,anchor,kind,born\r\ncat,dog,,\r\n"King, Jr.",a man,celebrity,1929\r\nMonet,,artist,1840\r\n',  # noqa: E501
    )
    assert concepts == [
        Concept("cat", "dog"),
        Concept("King, Jr.", "a man", kind_given="person"),
        Concept("Monet", kind_given="style"),
    ]
    assert [c.kind for c in concepts] == ["object", "person", "style"] and not notes


@pytest.mark.parametrize(
    ("content", "columns", "found"),
    [
        ("Name,tag,tag\nMonet,x,y\nDali,x,y\n", {}, ["Monet", "Dali"]),
        ("concept;anchor\ncat;dog\n", {}, ["cat"]),
        ("sep=;\r\nArtist Name;x\r\nMonet;1\r\n", {}, ["Monet"]),
        ("cat\ndog\n", {}, ["cat", "dog"]),
        ("person\nman\n", {}, ["person", "man"]),
        ("concept\ncat\n", {}, ["cat"]),
        ("Art Spiegelman,artist\nMonet,painter\n", {"concept": "1"}, ["Art Spiegelman", "Monet"]),
        ("born,Painter\n1840,Monet\n", {"concept": "painter"}, ["Monet"]),
        ("name,artist\nThe Starry Night,Van Gogh\n", {"concept": "artist"}, ["Van Gogh"]),
        ("1840,Monet\n", {"concept": "2"}, ["Monet"]),
        ("a|concept\n1|cat\n", {"concept": "concept"}, ["cat"]),
    ],
)
def test_columns(read, content, columns, found):
    assert [c.target for c in read("a.csv", content, **columns)[0]] == found


def test_a_tsv_and_other_columns(read):
    assert read("a.tsv", "concept\tanchor\ncat\tdog\n")[0] == [Concept("cat", "dog")]
    table = "what,instead,sort\ncat,dog,style\n"
    assert read("a.csv", table, concept="what", anchor="instead", kind="sort")[0] == [
        Concept("cat", "dog", kind_given="style")
    ]
    assert read("a.csv", "concept,anchor\ncat,dog\n", anchor="none")[0] == [Concept("cat")]


def test_rows_that_repeat_a_name_are_left_out_with_a_note(read):
    """Published tables have a row for every prompt and seed."""
    rows = "case_number,prompt,evaluation_seed,artist\n" + "".join(
        f"{i},a picture,{i},{'Monet' if i < 4 else 'Dali'}\n" for i in range(8)
    )
    concepts, notes = read("a.csv", rows)
    assert [c.target for c in concepts] == ["Monet", "Dali"] and notes == [
        "a.csv: 6 rows repeat a name and were left out"
    ]


@pytest.mark.parametrize(
    ("content", "columns", "says"),
    [
        (
            ",type,prompt\n0,erased,A portrait\n",
            {},
            "a.csv: the table has 3 columns and none is named 'concept'; .*--column 1. The first row: 1 '', "
            "2 'type', 3 'prompt'",
        ),
        (
            "Monet,painter\nDali,painter\n",
            {},
            "a.csv: the table has 2 columns .* The first row: 1 'Monet', 2 'painter'",
        ),
        (
            "name,artist\na,b\n",
            {},
            "a.csv: the columns 'name' and 'artist' may both be meant; choose one by --column",
        ),
        (
            "concept,kind\ncat,animal\n",
            {},
            "a.csv, line 2: 'animal' is not a kind; use object, style, person, explicit, or .* --kind-column "
            "none",
        ),
        ("concept,x\ncat,1\n,2\n", {}, "a.csv, line 3: column 1 is empty in this row"),
        (
            "concept,x\ncat,1\n",
            {"concept": "y"},
            "--column 'y': a.csv has no such column; the columns are 'concept', 'x'",
        ),
        (
            "a,b\nc,d\n",
            {"concept": "7"},
            "--column '7': a.csv has no such column; there is no header, so name it by its number, 1 to 2",
        ),
        ("concept,anchor\ncat,dog\ncat,bird\n", {}, "a.csv, line 3: 'cat' already stands on line 2"),
        ("concept,x\n(cat:1.2),1\n", {}, "a.csv, line 2: .* is a prompt weight"),
        ("concept,anchor\ncat -> dog,bird\n", {}, "a.csv, line 2: 'cat -> dog' has 2 arrows"),
        ('concept,x\n"cat,1\ndog,2\n' + "y" * 400, {}, "a.csv, line 2: .* characters"),
        ("", {}, "a.csv: nothing to erase"),
    ],
)
def test_a_bad_table_says_where(read, content, columns, says):
    with pytest.raises(ConceptError, match=f"^{says}"):
        read("a.csv", content, **columns)


def test_keep_lists_have_their_own_column(kept):
    assert kept("k.csv", "concept,kind\ncat,nonsense\ndog,\n") == ["cat", "dog"]
    assert kept("k.csv", "a,b\ncat,dog\n", concept="b") == ["dog"]
    assert kept("k.txt", "\ufeffcat\n- dog\n1. bird\n") == ["cat", "dog", "bird"]
    with pytest.raises(ConceptError, match="--keep-column 1"):
        kept("k.csv", "a,b\ncat,dog\n")
    with pytest.raises(ConceptError, match=r"k\.txt, line 2: a keep list has no arrows"):
        kept("k.txt", "cat\ndog → bird")


# --------------------------------------------------------------------------------------------- JSON and YAML

MACE = """MACE:
  # >>> primary settings >>>
  multi_concept:
  - [
    ['adam-driver', 'object'],
    ['claude-monet', 'style'],
    ['nudity', 'object'],
  ]
  mapping_concept:
    - 'a person'
    - 'art'
    - 'a person wearing clothes'
  use_pooler: true
  output_dir: ./saved_model
"""


def test_mace_configuration(read, kept):
    """Hyphens stand for blanks, as MACE's own code has it; 'object' is one of its two kinds, and says less
    than our lists.
    """
    concepts, _ = read("erase.yaml", MACE)
    assert concepts == [
        Concept("adam driver", "a person"),
        Concept("claude monet", "art", kind_given="style"),
        Concept("nudity", "a person wearing clothes"),
    ]
    assert [c.kind for c in concepts] == ["person", "style", "explicit"]
    assert read("erase.yaml", MACE, concept="MACE.multi_concept")[0] == concepts
    with pytest.raises(ConceptError, match="3 names and 2 anchors"):
        read("erase.yaml", MACE.replace("    - 'art'\n", ""))


def test_other_published_forms(read, kept):
    uce = {
        "concepts": ["Kelly McKernan", "Foo Bar"],
        "guide_concepts": "art",
        "preserve_concepts": ["Claude Monet"],
        "concept_type": "art",
    }
    assert read("uce.json", json.dumps(uce))[0] == [
        Concept(n, "art", kind_given="style") for n in uce["concepts"]
    ]
    assert kept("uce.json", json.dumps(uce)) == ["Claude Monet"]
    assert read("uce.json", '{"edit_concepts": "cat; dog", "guide_concept": "bird"}')[0] == [
        Concept("cat", "bird"),
        Concept("dog", "bird"),
    ]
    leco = (
        "- target: van gogh\n  positive: van gogh\n  unconditional: ''\n  neutral: art\n  action: "
        "erase\n- target: snoopy\n  neutral: ''\n"
    )
    assert read("leco.yml", leco)[0] == [Concept("van gogh", "art"), Concept("snoopy")]
    pairs = {
        "concept": "Van Gogh",
        "protect": "a photo",
        "pairs": [{"concept": "an oil painting by Van Gogh", "anchor": "an oil painting"}],
    }
    with pytest.raises(
        ConceptError,
        match="space.json: 'concept' and 'pairs' may both be meant; choose one by --column, such as "
        "--column concept",
    ):
        read("space.json", json.dumps(pairs))
    assert read("space.json", json.dumps(pairs), concept="concept")[0] == [Concept("Van Gogh")]
    assert read("space.json", json.dumps(pairs), concept="pairs")[0] == [
        Concept("an oil painting by Van Gogh", "an oil painting")
    ]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (
            '["cat", "dog -> truck", "Washington, D.C.", "still from a film"]',
            [
                Concept("cat"),
                Concept("dog", "truck"),
                Concept("Washington, D.C."),
                Concept("still from a film"),
            ],
        ),
        (
            '[["cat", "object"], ["Foo", "style"], ["Bar"]]',
            [Concept("cat", kind_given="object"), Concept("Foo", kind_given="style"), Concept("Bar")],
        ),
        ('{"cat": "dog", "Foo": null}', [Concept("cat", "dog"), Concept("Foo")]),
        (
            '{"cat": {"anchor": "dog", "strength": 0.5}, "Foo": {"kind": "person"}}',
            [Concept("cat", "dog", strength=0.5), Concept("Foo", kind_given="person")],
        ),
        (
            '[{"name": "cat", "anchor": "dog"}, {"name": "Foo", "type": "artist"}]',
            [Concept("cat", "dog"), Concept("Foo", kind_given="style")],
        ),
        ('{"my list": ["cat"]}', [Concept("cat")]),
        ('{"concept": "Washington, D.C.", "anchor": "a city"}', [Concept("Washington, D.C.", "a city")]),
        ('{"erase": {"cat": "dog"}}', [Concept("cat", "dog")]),
        ('{"concepts": ["cat", "dog"], "anchors": ["bird", null]}', [Concept("cat", "bird"), Concept("dog")]),
    ],
)
def test_json(read, content, found):
    assert read("a.json", content)[0] == found
    assert read("a.yaml", content)[0] == found, "JSON is YAML"


def test_names_of_yaml_are_strings(read):
    assert [c.target for c in read("a.yaml", "- no\n- 1984\n- on\n- 2020-01-01\n- 'null'\n")[0]] == [
        "no",
        "1984",
        "on",
        "2020-01-01",
        "null",
    ]
    assert [c.target for c in read("a.jsonl", '"cat"\n\n{"concept": "dog", "anchor": "bird"}\n')[0]] == [
        "cat",
        "dog",
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", '["cat",\n"dog"\n"x"]', "a.json, line 3: this is not JSON"),
        ("a.jsonl", '"cat"\n{dog}', "a.jsonl, line 2: this is not JSON"),
        ("a.json", '["cat", 5]', "a.json: entry 2 is '5', not a name"),
        ("a.json", '["cat", null]', "a.json: entry 2 is empty, not a name"),
        ("a.json", '[["cat", "dog"], ["a", "b"]]', "a.json: entry 1 is a list of 2, not a name"),
        ("a.json", '["cat",\n\n"(dog:1.2)"]', "a.json, line 3: .* is a prompt weight"),
        ("a.json", '["cat",\n"Cat"]', "a.json, line 2: 'Cat' already stands on line 1"),
        (
            "a.json",
            '{"cat": ["kitty", "puss"], "dog": ["hound"]}',
            "a.json: it is not clear which key holds the names; choose one by --column. The keys are "
            "'cat', 'dog'",
        ),
        ("a.json", '{"model": "sd", "device": "cuda"}', "a.json: it is not clear"),
        (
            "a.json",
            '{"artist": "person", "cat": "dog"}',
            "a.json: 'artist' may be a name with its anchor, or a key with names",
        ),
        (
            "a.json",
            '{"seed": 1, "concepts": "Kelly McKernan, Foo"}',
            "a.json, line 1: 'Kelly McKernan, Foo' contains a comma; write 'concepts' as a list",
        ),
        ("a.json", '{"cat": "dog", "Cat": "bird"}', "a.json: one object has 'cat' twice"),
        ("a.json", '[{"concept": "cat",\n"kind": "animal"}]', "a.json, line 1: 'animal' is not a kind"),
        (
            "a.json",
            '[{"concept": "cat", "strength": "much"}]',
            "a.json, line 1: the strength 'much' is not a number",
        ),
        ("a.json", '[{"concept": "cat", "strength": 9}]', "a.json, line 1: the strength '9.0'"),
        ("a.json", "[" * 100_000, "a.json"),
        ("a.json", "[]", "a.json: nothing to erase"),
        ("a.yaml", "- cat\n* dog\n", "a.yaml, line 2: this is not YAML"),
        ("a.yaml", "cat\ndog\n", "a.yaml: the file contains one text instead of a list"),
        ("a.yaml", "- cat\n-\n", "a.yaml: entry 2 is empty"),
        ("a.yaml", "- cat\n- [dog:1.2]\n", "a.yaml"),
        ("a.yaml", "", "a.yaml: the file contains empty"),
        (
            "a.yaml",
            "- !!python/object/apply:os.system ['x']\n",
            "a.yaml, line 1: the tag '.*os.system' is not allowed in a list",
        ),
        ("a.yaml", "- cat\n- ['dog']\n- !x y\n", "a.yaml, line 3: the tag '!x' is not allowed"),
        ("a.yaml", "cat: dog\nCat: bird\n", "a.yaml: one object has 'cat' twice"),
        (
            "a.yaml",
            "a: &a ['x','x']\n"
            + "".join(
                f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)},*{chr(97 + i)},*{chr(97 + i)}]\n"
                for i in range(15)
            ),
            "a.yaml",
        ),
    ],
)
def test_a_bad_file_says_where(read, name, content, says):
    with pytest.raises(ConceptError, match=f"^{says}"):
        read(name, content)


def test_an_alias_bomb_is_refused(read):
    bomb = "concepts: &a ['x','y']\n" + "".join(
        f"c{i}: &c{i} [*{'a' if not i else f'c{i - 1}'}, *{'a' if not i else f'c{i - 1}'}]\n"
        for i in range(40)
    )
    with pytest.raises(ConceptError, match="too deep|more than 100,000"):
        read("a.yaml", bomb, concept="c39")


def test_a_column_that_is_not_there(read):
    for content, column, says in (
        ('["cat"]', "x", "has no such key"),
        ('[{"a": "cat"}, {"b": "dog"}]', "a", "entry 2 of a.json has no such key"),
        ('{"a": {"x": ["cat"]}, "b": {"x": ["dog"]}}', "x", "more than one; write its path"),
    ):
        with pytest.raises(ConceptError, match=f"^--column '{column}'.*{says}"):
            read("a.json", content, concept=column)
    assert [
        c.target for c in read("a.json", '{"a": {"x": ["cat"]}, "b": {"x": ["dog"]}}', concept="b.x")[0]
    ] == ["dog"]


def test_without_pyyaml_the_message_says_what_to_do(read, monkeypatch):
    known = builtins.__import__

    def importing(name, *args, **options):
        if name == "yaml":
            raise ImportError("no yaml")
        return known(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(
        ConceptError,
        match="reading YAML needs the package pyyaml, which is not installed; .*JSON, CSV or text",
    ):
        read("a.yaml", "- cat")
