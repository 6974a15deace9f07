"""Names among which the unerased model chooses when it says what a picture shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ...text.concepts import Concept, same
from ...text.kinds import guess_kind
from ...text.neighbours import alike, neighbours
from ...text.prompts import asks_for
from ...text.synonyms import synonymous
from .scene import Scene

FEWEST, MOST = 8, 24  #: names beside the asked one
Near = Mapping[str, Sequence[str]]  #: entries of the vocabulary by concept, the nearest first


def nearest(scene: Scene, concepts: Sequence[Concept]) -> Near:
    """Near neighbours of every concept, without what asks for a concept."""
    vocabulary = scene.own.vocabulary if scene.own else None
    count = max(MOST, scene.effort.neighbours)
    near, _ = neighbours(concepts, scene.encoder, count, vocabulary=vocabulary)
    return {target: [n for n in found if not erased(n, concepts)] for target, found in near.items()}


def of_concept(concept: Concept, concepts: Sequence[Concept], near: Near, listed: Sequence[str]) -> list[str]:
    """Names that a picture of a concept may fit better, of its kind.

    What takes its place comes first, then its own neighbours, those of the others, and the keep list. There
    are none of a combination and of an explicit concept, and none if they were too few to choose from.
    """
    if concept.parts or concept.kind == "explicit":
        return []
    pool = [concept.anchor, *near.get(concept.target, ())]
    pool += [name for c in concepts if c.kind == concept.kind for name in near.get(c.target, ())]
    pool += _listed(concept.kind, concepts, listed)
    return _distinct(pool, concept.target)


def of_kept(
    name: str,
    kind: str,
    concepts: Sequence[Concept],
    near: Near,
    things: Sequence[tuple[str, str]],
    listed: Sequence[str],
) -> list[str]:
    """Names that a picture of a kept thing may fit better: the concepts of its kind, and what else stays.

    Args:
        things: names and kinds of all kept things that are drawn.
    """
    like = [c for c in concepts if c.kind == kind and not c.parts and kind != "explicit"]
    pool = [c.target for c in like] + [c.anchor for c in like]
    pool += [entry for c in like for entry in near.get(c.target, ())]
    pool += [other for other, its in things if its == kind]
    pool += _listed(kind, concepts, listed)
    return _distinct((entry for entry in pool if not synonymous(entry, name)), name)


def _listed(kind: str, concepts: Sequence[Concept], listed: Sequence[str]) -> list[str]:
    """The entries of a kind in the keep list, without other names of the concepts."""
    return [
        name
        for name in listed
        if guess_kind(name) == kind
        and not any(erased(name, [c]) or alike(name, c.target, c.kind) for c in concepts)
    ]


def _distinct(pool: Iterable[str], name: str) -> list[str]:
    """The first names of a pool, each once, without ``name``; none if they are too few."""
    found: list[str] = []
    for entry in filter(None, pool):
        if not any(same(entry, other) for other in (*found, name)):
            found.append(entry)
    return found[:MOST] if len(found) >= FEWEST else []


def erased(name: str, concepts: Sequence[Concept]) -> bool:
    """Whether a name means a concept or asks for one."""
    return any(synonymous(name, c.target) or (not c.parts and asks_for(name, c)) for c in concepts)
