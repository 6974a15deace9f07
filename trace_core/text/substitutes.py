"""What is drawn in an erased concept's place where the user names nothing: another of its kind that stays.

Two things speak for it, and both were measured (``benchmarks/prompts.py``). The neutral prompt draws the
concept by chance. And an overshoot past it, which lowers that chance, is undone by guidance where the concept
is the *negative* prompt: guidance pushes away from what the erased model makes of "cat", and away from the
opposite of a cat is a cat. Away from a dog is not.

It is the nearest entry of the keep list, by what it adds to the rows of the same prompts, that is not the
same thing by another name. Far ones will not do: guidance away from a ship leads to animals, cats among them.

Styles are all about as near to each other in rows, whatever they look like, and guidance away from one leads
to its opposite. So among the nearest few the model itself is asked: the one whose first sampling step departs
from the neutral prompt's as the concept's does is the last that guidance away from it could turn into the
concept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import ConceptError
from .concepts import Concept, same
from .encoding import FIRST_EOT, SUBJECT, TextEncoder, align
from .kinds import guess_kind
from .synonyms import synonymous
from .templates import OTHERS, TEMPLATES, fill

#: Kinds that get a substitute. Away from another person, or from the opposite of an explicit word, is the
#: wrong way; the neutral prompt rarely draws either by chance.
KINDS = ("object", "style")
NEAREST = 0.85  #: cosine to the concept from which on an entry counts as the same thing by another name
FARTHEST = 0.3  #: and below which it has nothing to do with it
CANDIDATES = 64  #: of a long keep list, spread over it; each costs one prompt for each of :data:`PROBES`
DRAWN = 6  #: styles that the model is asked about
PROBES = {"object": ("a {}", "a photo of a {}"), "style": ("a photo, {}", "a painting in {}")}


def substitutes(
    concepts: Sequence[Concept],
    keep: Sequence[str],
    encoder: TextEncoder,
    kind: str = "auto",
    first_step: Callable[[Sequence[str]], Tensor] | None = None,
) -> dict[str, str]:
    """What stands for each concept without an anchor, by target; those for which nothing fits are left out.

    Args:
        keep: what stays; where it has none of the kind, :data:`~trace_core.text.templates.OTHERS` are
            candidates.
        encoder: of the model; nothing is drawn at random.
        kind: of all concepts, or ``auto``: each by its name.
        first_step: prompts to what the model draws of each in one step, ``[prompts, seeds, values]``, the
            same noise for all (:class:`~trace_core.backbones.sampling.FirstStep`). Without it styles are
            chosen by rows alone.
    """
    out = {}
    changes: dict[tuple[str, str], Tensor] = {}
    for concept in concepts:
        own = concept.kind_and_why(kind)[0]
        if concept.anchor or concept.parts or own not in KINDS:
            continue
        pool = _candidates(concept, own, keep, concepts)
        mine = _change(concept.target, own, encoder)
        near = []
        for entry in pool:
            if (entry, own) not in changes:
                changes[entry, own] = _change(entry, own, encoder)
            near.append(torch.nn.functional.cosine_similarity(mine, changes[entry, own], dim=1).mean().item())
        found = [i for i, value in enumerate(near) if FARTHEST <= value < NEAREST]
        names = [pool[i] for i in sorted(found, key=lambda i: -near[i])]
        if own == "style" and first_step and len(names) > 1:
            likeness = _likeness(concept.target, names[:DRAWN], PROBES[own][0], first_step)
            names = [names[i] for i in likeness.argsort(descending=True, stable=True).tolist()]
        fitting = next((name for name in names if _fits(name, own, encoder)), None)
        if fitting:
            out[concept.target] = fitting
    return out


def _fits(name: str, kind: str, encoder: TextEncoder) -> bool:
    """Whether the encoder can read the name in every prompt that it will stand in."""
    try:
        for template in TEMPLATES[kind]:
            encoder.encode(fill(template, name), name)
    except ConceptError:
        return False
    return True


def _likeness(
    target: str, names: Sequence[str], probe: str, first_step: Callable[[Sequence[str]], Tensor]
) -> Tensor:
    """Cosine ``[names]`` of where each name and the target take the first step, from where the neutral
    prompt takes it.
    """
    drawn = first_step([fill(probe, name) for name in ("", target, *names)])
    changes = drawn[1:] - drawn[:1]
    return torch.nn.functional.cosine_similarity(changes[1:], changes[:1], dim=2).mean(1)


def _candidates(concept: Concept, kind: str, keep: Sequence[str], concepts: Sequence[Concept]) -> list[str]:
    """Entries of the kind that share no word with the concept; a background stands for a background, a
    style for a style.
    """
    sort = _sort(concept.target)
    pool = [k for k in keep if guess_kind(k) == kind and _sort(k) == sort]
    pool = pool or [
        k
        for k in OTHERS["background" if sort else "thing" if kind == "object" else kind]
        if not any(same(k, c.target) for c in concepts)
    ]
    common = {"style", "background", "art", "by", "a", "an", "the", "in", "of", "with"}
    words = set(_words(concept.target)) - common
    pool = [k for k in pool if not words & set(_words(k)) and not synonymous(k, concept.target)]
    step = max(1, -(-len(pool) // CANDIDATES))
    return pool[::step]


def _sort(name: str) -> bool:
    return "background" in _words(name)


def _words(name: str) -> list[str]:
    return re.findall(r"\w+", name.casefold())


def _change(name: str, kind: str, encoder: TextEncoder) -> Tensor:
    """What a name adds to its last row and, where there is one, to the end token, ``[probes * rows, d]``."""
    rows = []
    for probe in PROBES[kind]:
        own, neutral = encoder.encode(fill(probe, name), name), encoder.encode(fill(probe, ""))
        pairs = align(own, neutral)
        at = [own.rows(SUBJECT)[-1], *own.rows(FIRST_EOT)[:1]]
        rows.append(own.embeddings[at] - pairs.want[at])
    return torch.cat(rows)
