"""Synonyms of everyday things, from a list in the pack.

A synonym is neither kept nor used as a substitute.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from .concepts import Concept, same
from .kinds import DATA, bare
from .templates import EVERYDAY


def synonymous(a: str, b: str) -> bool:
    """Whether two names mean the same thing: equal, or on one line of ``data/synonyms.txt``."""
    return same(a, b) or bool(_lines().get(bare(a), frozenset()) & _lines().get(bare(b), frozenset()))


def everyday(concepts: Sequence[Concept]) -> list[str]:
    """The default keep list: everyday things without the erased ones and their synonyms."""
    return [k for k in EVERYDAY if not any(synonymous(k, c.target) for c in concepts)]


@lru_cache(1)
def _lines() -> dict[str, frozenset[int]]:
    """Name -> numbers of the lines that contain it."""
    found: dict[str, set[int]] = {}
    for number, line in enumerate((DATA / "synonyms.txt").read_text(encoding="utf-8").splitlines()):
        if line and not line.startswith("#"):
            first, _, others = line.partition(":")
            for name in (first, *others.split(",")):
                found.setdefault(bare(name), set()).add(number)
    return {name: frozenset(numbers) for name, numbers in found.items()}
