"""Other names of everyday things, from a list that comes with the pack: what is erased must neither be
kept nor stand in for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from .concepts import Concept, same
from .kinds import DATA, bare
from .templates import EVERYDAY


def synonymous(a: str, b: str) -> bool:
    """Whether two names mean the same thing: the same words, or in one line of ``data/synonyms.txt``."""
    return same(a, b) or bool(_lines().get(bare(a), frozenset()) & _lines().get(bare(b), frozenset()))


def everyday(concepts: Sequence[Concept]) -> list[str]:
    """What is kept where the user names nothing: everyday things, less those that are erased by any of
    their names.
    """
    return [k for k in EVERYDAY if not any(synonymous(k, c.target) for c in concepts)]


@lru_cache(1)
def _lines() -> dict[str, frozenset[int]]:
    """Name -> the lines that it stands in."""
    found: dict[str, set[int]] = {}
    for number, line in enumerate((DATA / "synonyms.txt").read_text(encoding="utf-8").splitlines()):
        if line and not line.startswith("#"):
            first, _, others = line.partition(":")
            for name in (first, *others.split(",")):
                found.setdefault(bare(name), set()).add(number)
    return {name: frozenset(numbers) for name, numbers in found.items()}
