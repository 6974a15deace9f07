"""Near neighbours: which vocabulary entries are near to a concept, and which are the concept itself."""

from __future__ import annotations

import pytest
import torch

from trace_core.closed_form import ClosedFormConfig
from trace_core.errors import TraceError
from trace_core.text import neighbours as module
from trace_core.text.concepts import Concept, combined
from trace_core.text.encoding import BEFORE, BOS, FIRST_EOT, SUBJECT, TextRows
from trace_core.text.grammar import parse_keep
from trace_core.text.kinds import KINDS, bare, guess_kind
from trace_core.text.lines import quoted
from trace_core.text.neighbours import added, alike, nearest_of, neighbours
from trace_core.text.vocabulary import shipped

#: what a name changes, in degrees from what "cat" changes; "kitten" is another name of a cat
DEGREES = {"cat": 0, "moggy": 5, "dog": 30, "fox": 40, "lion": 50, "cow": 60, "ship": 120, "house": 140}
SMALL = {"object": {"animals": ("cat", "moggy", "lion", "fox", "dog", "cow"), "things": ("ship", "house")}}


class Encoder:
    """Rows of a start token, a word, a subject and an end token. A name turns the last two by its degrees.

    Attributes:
        asked: encoded prompts.
        means: input embeddings by name; None: the encoder shows none.
    """

    def __init__(self, means=()):
        self.asked, self.means = [], None if means is None else dict(means)

    def encode(self, prompt, subject=""):
        self.asked.append(prompt)
        angle = torch.tensor(DEGREES.get(subject, 90.0)).deg2rad()
        change = torch.stack([angle.cos(), angle.sin()]) if subject else torch.zeros(2)
        rows = [torch.ones(2)] * 2 + [torch.ones(2) + change] * (2 if subject else 1)
        groups = (BOS, BEFORE, *([SUBJECT] if subject else []), FIRST_EOT)
        ids = (0, 1, *([2 + sum(map(ord, subject))] if subject else []), 2)
        return TextRows(torch.stack(rows), ids, groups, None)

    def encode_all(self, prompts):
        return (self.encode(*pair) for pair in prompts)

    def finds(self, prompt, subject):
        return subject != "lost"

    def input_means(self, texts):
        if self.means is None:
            return None
        return torch.tensor([self.means.get(t, [-1.0, float(len(t))]) for t in texts])


def found(concepts, count=3, **options):
    concepts = [Concept(c) if isinstance(c, str) else c for c in concepts]
    return neighbours(concepts, options.pop("encoder", Encoder()), count, **{"vocabulary": SMALL, **options})


def test_the_nearest_come_first_and_another_name_of_the_concept_does_not():
    assert found(["cat"]) == ({"cat": ["dog", "fox", "lion"]}, [])


def test_an_erased_concept_is_no_neighbour_and_an_anchor_is_one():
    near, _ = found([Concept("cat", "dog"), "fox"])
    assert near["cat"] == ["dog", "lion", "cow"]
    assert not {"cat", "fox"} & set(near["fox"])


@pytest.mark.parametrize(
    "concept", [combined("cat", "red background"), Concept("nude")], ids=["both", "explicit"]
)
def test_combinations_and_explicit_words_have_none(concept):
    assert found([concept], vocabulary=None) == ({}, [])


def test_no_neighbours_ask_nothing_of_the_encoder():
    encoder = Encoder()
    assert found(["cat"], 0, encoder=encoder) == ({}, [])
    assert encoder.asked == []


def test_what_the_keep_list_holds_is_not_added():
    near, kinds = {"cat": ["dog", "fox"], "Van Gogh": ["Monet"]}, {"cat": "object", "Van Gogh": "style"}
    assert added(near, ["Dog", "ship"], kinds) == {"fox": "object", "Monet": "style"}


def test_many_concepts_share_the_total_and_too_many_are_told():
    names = [f"thing{i:03}" for i in range(module.TOTAL + 1)]
    near, notes = found(names[:16], 8)
    assert {len(n) for n in near.values()} == {module.TOTAL // 16}
    near, notes = found(names)
    assert near == {}
    assert "too many" in notes[0] and "keep list" in notes[0]


def test_a_name_that_the_encoder_cannot_find_is_left_out():
    assert [name for name, _ in nearest_of("cat", ["lost", "dog"], "object", Encoder())] == ["dog"]


@pytest.mark.parametrize(
    ("entry", "name", "kind", "same"),
    [
        ("cat", "Cat", "object", True),
        ("cats", "cat", "object", True),
        ("pony", "ponies", "object", True),
        ("kitten", "cat", "object", True),
        ("wildcat", "cat", "object", True),
        ("fire truck", "truck", "object", True),
        ("truck", "fire truck", "object", False),
        ("dog", "cat", "object", False),
        ("Van Gogh", "Vincent van Gogh", "style", True),
        ("Alfons Mucha", "Alphonse Mucha", "style", True),
        ("Jan Brueghel", "Pieter Brueghel", "style", False),
        ("Emma Watson", "Emma Stone", "person", False),
        ("Sharon Stone", "Emma Stone", "person", False),
        ("Emma", "Emma Stone", "person", True),
    ],
)
def test_what_is_the_same_thing(entry, name, kind, same):
    assert alike(entry, name, kind) is same


def test_a_long_vocabulary_is_cut_by_its_groups_and_then_by_input_embeddings(monkeypatch):
    monkeypatch.setattr(module, "CANDIDATES", 6)
    encoder = Encoder({"cat": [1.0, 0.0], "house": [1.0, 0.1]})
    near, _ = found(["cat"], 3, encoder=encoder)
    asked = {prompt.removeprefix("a photo of a ") for prompt in encoder.asked}
    assert {"dog", "fox", "lion", "cow", "house"} <= asked  # its own group, then what is nearest
    assert "ship" not in asked
    assert near["cat"] == ["dog", "fox", "lion"]


def test_without_input_embeddings_a_long_vocabulary_is_not_searched(monkeypatch):
    monkeypatch.setattr(module, "CANDIDATES", 2)
    near, notes = found(["cat"], 1, encoder=Encoder(None))
    assert near == {}
    assert "input embeddings" in notes[0]


def test_the_cost_is_bounded():
    encoder = Encoder()
    neighbours([Concept("cat"), Concept("ship")], encoder, 5)
    assert len(set(encoder.asked)) <= module.CANDIDATES + 3  # both concepts and the neutral prompt


def test_the_shipped_vocabulary():
    vocabulary = shipped()
    assert set(vocabulary) == set(KINDS) - {"explicit"}
    counts = {kind: sum(map(len, groups.values())) for kind, groups in vocabulary.items()}
    assert counts["object"] > 1400 and counts["style"] > 1300 and counts["person"] > 1800
    for groups in vocabulary.values():
        for entries in groups.values():
            names = [bare(e) for e in entries]
            assert all(names) and len(set(names)) == len(names)
    explicit = [
        e for groups in vocabulary.values() for n in groups.values() for e in n if guess_kind(e) == "explicit"
    ]
    assert explicit == []


def test_every_entry_fits_the_line_grammar():
    """Somebody may copy neighbours into a keep list."""
    for groups in shipped().values():
        for entry in (e for entries in groups.values() for e in entries):
            assert parse_keep(quoted(entry), "keep") == [entry]


@pytest.mark.parametrize("count", [-1, 65])
def test_a_wrong_number_is_named(count):
    with pytest.raises(TraceError, match=f"neighbours is {count}"):
        ClosedFormConfig(neighbours=count)


def test_published_policies_keep_none():
    assert ClosedFormConfig(policy="uce").near == 0
    assert ClosedFormConfig().near == 5
