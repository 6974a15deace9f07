"""What takes an erased concept's place where the user names nothing."""

from __future__ import annotations

import pytest
import torch

from trace_core.text.concepts import Concept, combined
from trace_core.text.encoding import BEFORE, BOS, FIRST_EOT, SUBJECT, TextRows
from trace_core.text.substitutes import CANDIDATES, PROBES, substitutes

#: cosine of what a name adds to what "cat" or "Van Gogh" adds
NEAR = {"cat": 1.0, "kitten": 0.95, "dog": 0.7, "tiger": 0.5, "ship": 0.1, "sea": -0.4, "comic style": 0.6,
    "oil painting style": 0.4,
        "red background": 0.8, "blue background": 0.2, "cat house": 0.8, "Van Gogh": 1.0}  # fmt: skip


class Encoder:
    """Rows of a start token, the words before, a subject, an end token; a name turns the last two by its
    cosine.
    """

    def __init__(self):
        self.asked = []

    def encode(self, prompt, subject=""):
        self.asked.append(prompt)
        cosine = NEAR.get(subject, 0.2)
        change = torch.tensor([cosine, (1 - cosine**2) ** 0.5, 0.0]) if subject else torch.zeros(3)
        base = torch.tensor([0.0, 0.0, 1.0])
        rows = [base, base, *([base + change] if subject else []), base + change]
        groups = (BOS, BEFORE, *([SUBJECT] if subject else []), FIRST_EOT)
        ids = (0, 1, *([2 + sum(map(ord, subject))] if subject else []), 2)
        return TextRows(torch.stack(rows), ids, groups, None)


def chosen(concept, keep, **options):
    found = substitutes([concept] if isinstance(concept, Concept) else concept, keep, Encoder(), **options)
    return found


def test_the_nearest_that_is_not_the_same_by_another_name():
    assert chosen(Concept("cat"), ["ship", "tiger", "kitten", "dog", "sea"]) == {"cat": "dog"}
    assert chosen(Concept("cat"), ["ship", "tiger"]) == {"cat": "tiger"}


@pytest.mark.parametrize(
    "keep", [["ship", "sea"], ["kitten"], ["cat house"]], ids=["far", "a synonym", "of the same word"]
)
def test_nothing_rather_than_what_does_not_fit(keep):
    assert chosen(Concept("cat"), keep) == {}


def test_an_object_gives_way_to_an_object_and_a_style_to_a_style():
    keep = ["comic style", "dog", "oil painting style", "red background"]
    assert chosen(Concept("cat"), keep) == {"cat": "dog"}
    assert chosen(Concept("Van Gogh"), keep, kind="style") == {"Van Gogh": "comic style"}
    assert chosen(Concept("red background"), [*keep, "blue background"]) == {
        "red background": "blue background"
    }


def test_of_near_styles_the_one_that_the_model_draws_most_alike():
    """By rows the comic style is nearer; the first step of the other goes the concept's way."""
    ways = {"Van Gogh": [1.0, 0.0], "comic style": [-1.0, 0.1], "oil painting style": [0.8, 0.6]}

    def first_step(prompts):
        way = [next((w for name, w in ways.items() if name in p), [0.0, 0.0]) for p in prompts]
        # of two seeds
        return torch.tensor(way)[:, None] + torch.tensor([[[5.0, 5.0]], [[-3.0, 2.0]]]).movedim(1, 0)

    keep = ["comic style", "oil painting style", "dog"]
    assert chosen(Concept("Van Gogh"), keep, kind="style", first_step=first_step) == {
        "Van Gogh": "oil painting style"
    }
    assert chosen(Concept("Van Gogh"), keep, kind="style") == {"Van Gogh": "comic style"}
    assert chosen(Concept("cat"), ["dog", "tiger"], first_step=None) == {"cat": "dog"}


def test_styles_are_found_where_the_keep_list_has_none():
    assert chosen(Concept("Van Gogh"), ["dog"], kind="style") == {"Van Gogh": "comic style"}


@pytest.mark.parametrize("kind", ["person", "explicit"])
def test_persons_and_explicit_words_give_way_to_nothing(kind):
    """Away from what would stand there is where the concept is."""
    assert chosen(Concept("cat"), ["dog"], kind=kind) == {}


def test_what_has_an_anchor_or_parts_has_its_own():
    assert chosen(Concept("cat", "ship"), ["dog"]) == {}
    assert chosen(combined("cat", "hat"), ["dog"]) == {}


def test_a_substitute_is_never_erased_itself():
    both = [Concept("Van Gogh"), Concept("comic style")]
    assert chosen(both, [], kind="style").get("Van Gogh") == "oil painting style"


def test_a_long_keep_list_costs_a_bounded_number_of_prompts():
    encoder = Encoder()
    keep = [f"thing{i}" for i in range(1000)]
    substitutes([Concept("cat"), Concept("Van Gogh")], keep, encoder, kind="object")
    assert len(set(encoder.asked)) <= len(PROBES["object"]) * (CANDIDATES + 3)
