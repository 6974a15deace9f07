"""The shipped vocabulary: everyday things, artists, art styles, people and their names, by kind and group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from .kinds import DATA, LISTS

FILE = "vocabulary.txt"

#: Entries by kind and group: ``{"object": {"mammals": ("cat", ...)}}``. Entries of a group are alike.
Vocabulary = Mapping[str, Mapping[str, Sequence[str]]]


@lru_cache(1)
def shipped() -> Vocabulary:
    """The vocabulary of ``data/vocabulary.txt``, with the lists of artists and of people.

    There are no explicit words: what is nearest to one is another one.
    """
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for section in (DATA / FILE).read_text(encoding="utf-8").split("\n[")[1:]:
        head, _, body = section.partition("]\n")
        kind, _, group = head.partition(": ")
        entries = (" ".join(entry.split()) for entry in body.split(","))
        found.setdefault(kind, {})[group] = tuple(entry for entry in entries if entry)
    for kind, group in (("style", "artists"), ("person", "people")):
        lines = (DATA / LISTS[kind][0]).read_text(encoding="utf-8").splitlines()
        found[kind][group] = tuple(line for line in lines if line and not line.startswith("#"))
    return found
