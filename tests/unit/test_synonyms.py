"""Other names of everyday things."""

from __future__ import annotations

import pytest

from trace_core.text.concepts import Concept
from trace_core.text.kinds import DATA
from trace_core.text.substitutes import _candidates
from trace_core.text.synonyms import everyday, synonymous
from trace_core.text.templates import EVERYDAY


@pytest.mark.parametrize(
    "a, b",
    [
        ("automobile", "car"),
        ("car", "Automobile"),
        ("lorry", "truck"),
        ("aeroplane", "airplane"),
        ("Cat", "cat"),
    ],
)
def test_synonyms_are_found_both_ways(a, b):
    assert synonymous(a, b) and synonymous(b, a)


@pytest.mark.parametrize("a, b", [("cat", "dog"), ("truck", "car"), ("Van Gogh", "car"), ("key", "keyboard")])
def test_other_things_are_not(a, b):
    assert not synonymous(a, b)


def test_what_is_erased_by_another_name_is_not_kept():
    kept = everyday([Concept("automobile"), Concept("feline")])
    assert set(EVERYDAY) - set(kept) == {"car", "cat"}


def test_nothing_stands_in_for_itself():
    pool = _candidates(Concept("automobile"), "object", ["car", "truck", "bus"], [Concept("automobile")])
    assert pool == ["truck", "bus"]


def test_every_everyday_thing_has_a_line():
    lines = [
        line.split(":")[0]
        for line in (DATA / "synonyms.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert sorted(lines) == sorted(EVERYDAY)
