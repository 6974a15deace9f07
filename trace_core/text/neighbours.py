"""Near neighbours of a concept: the things of its kind that a text encoder finds most alike.

An erasure changes most what lies nearest to the concept, and benchmarks ask for it: EMMA (arXiv 2512.17320)
for similar concepts, HUB (arXiv 2410.05664) for the nearest nouns.

Nearness is the cosine between the changes that two names make to the rows of one prompt, centred on the mean
of all candidates. Without centring, the part that every name shares decides. A long vocabulary is first cut
by its groups and by the input embeddings, which need no pass of the encoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from .concepts import Concept
from .encoding import FIRST_EOT, SUBJECT, TextEncoder, TextRows, align
from .kinds import bare
from .synonyms import synonymous
from .templates import fill
from .vocabulary import Vocabulary, shipped

PROBES = {"object": "a photo of a {}", "style": "a photo, {}", "person": "a photo of {}"}
CANDIDATES = 40  #: vocabulary entries that a run encodes, shared by its concepts; each costs one prompt
TOTAL = 64  #: neighbours of all concepts together
SAME = 0.95  #: cosine of the changes, not centred, from which an entry is the concept by another name


def neighbours(
    concepts: Sequence[Concept],
    encoder: TextEncoder,
    count: int,
    kind: str = "auto",
    vocabulary: Vocabulary | None = None,
) -> tuple[dict[str, list[str]], list[str]]:
    """The nearest entries of each concept, nearest first, by target, and sentences for a report.

    The concepts, their other names and plurals, and names that contain them are no neighbours. A combination
    and an explicit concept have none. What takes a concept's place may be its neighbour, since it stays.

    Args:
        encoder: the model's text encoder.
        count: neighbours of each concept; fewer if there are many concepts (:data:`TOTAL`).
        kind: kind of all concepts, or ``auto`` to decide by each name.
        vocabulary: entries to choose from; None: the shipped ones.
    """
    vocabulary = shipped() if vocabulary is None else vocabulary
    kinds = {c.target: c.kind_and_why(kind)[0] for c in concepts}
    plain = [c.target for c in concepts if not c.parts and kinds[c.target] in PROBES.keys() & vocabulary]
    each = min(count, TOTAL // max(len(plain), 1))
    if each < 1:
        many = f"{len(plain)} concepts are too many to keep neighbours of each; name them in the keep list"
        return {}, [many] if count and plain else []
    names = [c.target for c in concepts]
    found = {}
    for target in plain:
        own, limit = kinds[target], max(2 * each, CANDIDATES // len(plain))
        pool = _shortlist(target, *_candidates(target, own, vocabulary[own], names), limit, encoder)
        if pool is None:
            return {}, ["the text encoder shows no input embeddings, so no neighbours are kept"]
        nearest = [entry for entry, cosine in nearest_of(target, pool, own, encoder) if cosine < SAME]
        if nearest:
            found[target] = nearest[:each]
    return found, []


def added(
    found: Mapping[str, Sequence[str]], keep: Sequence[str], kinds: Mapping[str, str]
) -> dict[str, str]:
    """The neighbours that the keep list does not hold, each with the kind of its concept.

    Args:
        found: neighbours by target.
        keep: the keep list.
        kinds: kind by target.
    """
    held = {bare(entry) for entry in keep}
    return {n: kinds[target] for target, names in found.items() for n in names if bare(n) not in held}


def nearest_of(
    target: str, entries: Sequence[str], kind: str, encoder: TextEncoder
) -> list[tuple[str, float]]:
    """Entries, nearest first, each with the cosine of its change to the target's, not centred.

    An entry that the encoder cannot find in a prompt is left out.
    """
    probe = PROBES[kind]
    entries = [entry for entry in entries if encoder.finds(fill(probe, entry), entry)]
    if not entries:
        return []
    neutral = encoder.encode(fill(probe, ""))
    prompts = ((fill(probe, name), name) for name in (target, *entries))
    changes = torch.stack([_change(rows, neutral) for rows in encoder.encode_all(prompts)])
    plain = cosine_similarity(changes[1:], changes[:1], dim=2).mean(1)
    centred = changes - changes.mean(0)
    order = cosine_similarity(centred[1:], centred[:1], dim=2).mean(1).argsort(descending=True, stable=True)
    return [(entries[i], plain[i].item()) for i in order.tolist()]


def alike(entry: str, name: str, kind: str) -> bool:
    """Whether an entry means the same as a name, or contains it.

    Of artists and people, a name with fewer words ("Van Gogh" of "Vincent van Gogh") is the same one, and so
    is one with the same last word and the same initial ("Alfons Mucha" of "Alphonse Mucha").
    """
    a, b = bare(entry), bare(name)
    if not a or b in a or synonymous(entry, name) or _singular(a) == _singular(b):
        return True
    if kind == "object":
        return False
    first, second = a.split(), b.split()
    return set(first) <= set(second) or (first[-1] == second[-1] and first[0][0] == second[0][0])


def _singular(name: str) -> str:
    """A name without the ending of a plural."""
    return re.sub(r"(?<=\w\w)(ies|y|es|e|s)$", "", name)


def _candidates(
    target: str, kind: str, groups: Mapping[str, Sequence[str]], names: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The entries of the target's own groups, and the others, without other names of any concept.

    Backgrounds are near to backgrounds alone. People are found by the words of their names, not by groups.
    """
    background = bare(target).endswith("background")
    found: tuple[dict, dict] = {}, {}
    for entries in groups.values():
        own = kind != "person" and any(synonymous(entry, target) for entry in entries)
        found[not own].update(dict.fromkeys(entries))
    own, others = (
        [
            e
            for e in part
            if bare(e).endswith("background") == background and not any(alike(e, n, kind) for n in names)
        ]
        for part in found
    )
    return own, [entry for entry in others if entry not in found[False]]


def _shortlist(
    target: str, own: Sequence[str], others: Sequence[str], limit: int, encoder: TextEncoder
) -> list[str] | None:
    """At most ``limit`` entries: the target's ``own`` groups first, then by the input embeddings.

    None if there are more and the encoder shows no input embeddings.
    """
    entries = [*own, *others]
    if len(entries) <= limit:
        return entries
    # an encoder of few words has no room for the longest names
    own, others = ([e for e in part if encoder.finds(e, e)] for part in (own, others))
    entries = [*own, *others]
    means = encoder.input_means([target, *entries])
    if means is None:
        return None
    means = normalize(means - means.mean(0), dim=1)
    cosines = (means[1:] @ means[0]).tolist()
    order = sorted(range(len(entries)), key=lambda i: (i >= len(own), -cosines[i]))
    return [entries[i] for i in order[:limit]]


def _change(rows: TextRows, neutral: TextRows) -> Tensor:
    """Change of the name's last row and, if present, of the end token's, ``[1 or 2, d]``."""
    at = [*rows.rows(SUBJECT)[-1:], *rows.rows(FIRST_EOT)[:1]]
    return rows.embeddings[at] - align(rows, neutral).want[at]
