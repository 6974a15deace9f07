"""Substitutes: default anchors for concepts without an anchor, chosen from things of the same kind that stay.

Two measurements (``benchmarks/prompts.py``) led to substitutes. The neutral prompt sometimes draws the
concept by chance. An overshoot past the neutral prompt lowers that chance, but guidance undoes it where the
concept is the *negative* prompt: guidance pushes away from the erased model's "cat", and the opposite of an
anti-cat is a cat. The opposite of a dog is not a cat.

The substitute is the nearest entry of the keep list that is not a synonym. Nearness is measured on the
differences that a name makes to the rows of the same prompts. Distant entries do not work: guidance away from
a ship leads to animals, among them cats.

Styles are all about equally near in rows, however they look, and guidance away from one leads to its
opposite. For styles, the model's first sampling step ranks the nearest few. The best substitute moves the
first step away from the neutral prompt in the same direction as the concept. Guidance away from such a
substitute is least likely to draw the concept.
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

#: Kinds that get a substitute. For a person or an explicit word, guidance away from the substitute would lead
#: to the wrong place, and the neutral prompt rarely draws either by chance.
KINDS = ("object", "style")
NEAREST = 0.85  #: cosine from which an entry counts as a synonym of the concept
FARTHEST = 0.3  #: cosine below which an entry is unrelated to the concept
CANDIDATES = 64  #: entries taken evenly from a long keep list; each costs one prompt per probe
DRAWN = 6  #: styles that the first sampling step ranks
PROBES = {"object": ("a {}", "a photo of a {}"), "style": ("a photo, {}", "a painting in {}")}


def substitutes(
    concepts: Sequence[Concept],
    keep: Sequence[str],
    encoder: TextEncoder,
    kind: str = "auto",
    first_step: Callable[[Sequence[str]], Tensor] | None = None,
) -> dict[str, str]:
    """The substitute of each concept without an anchor, by target.

    A target without a fitting substitute is left out.

    Args:
        keep: things that stay. If none is of the kind, :data:`~trace_core.text.templates.OTHERS` are
            candidates.
        encoder: the model's text encoder; nothing is drawn at random.
        kind: kind of all concepts, or ``auto`` to decide by each name.
        first_step: function from prompts to the model's predictions after one step, ``[prompts, seeds,
            values]``, with the same noise for all (:class:`~trace_core.backbones.sampling.FirstStep`).
            Without it, styles are ranked by rows alone.
    """
    out = {}
    changes: dict[tuple[str, str], Tensor] = {}
    for concept in concepts:
        own = concept.kind_and_why(kind)[0]
        if concept.anchor or concept.parts or own not in KINDS:
            continue
        pool = _candidates(concept, own, keep, concepts)
        target_change = _row_change(concept.target, own, encoder)
        cosines = []
        for entry in pool:
            if (entry, own) not in changes:
                changes[entry, own] = _row_change(entry, own, encoder)
            cosines.append(
                torch.nn.functional.cosine_similarity(target_change, changes[entry, own], dim=1).mean().item()
            )
        in_range = [i for i, value in enumerate(cosines) if FARTHEST <= value < NEAREST]
        names = [pool[i] for i in sorted(in_range, key=lambda i: -cosines[i])]
        if own == "style" and first_step and len(names) > 1:
            likeness = _likeness(concept.target, names[:DRAWN], PROBES[own][0], first_step)
            names = [names[i] for i in likeness.argsort(descending=True, stable=True).tolist()]
        substitute = next((name for name in names if _fits(name, own, encoder)), None)
        if substitute:
            out[concept.target] = substitute
    return out


def _fits(name: str, kind: str, encoder: TextEncoder) -> bool:
    """Whether the encoder can find the name in every template of its kind."""
    try:
        for template in TEMPLATES[kind]:
            encoder.encode(fill(template, name), name)
    except ConceptError:
        return False
    return True


def _likeness(
    target: str, names: Sequence[str], probe: str, first_step: Callable[[Sequence[str]], Tensor]
) -> Tensor:
    """Cosine ``[names]`` between each name's and the target's first step, both minus the neutral prompt's."""
    drawn = first_step([fill(probe, name) for name in ("", target, *names)])
    changes = drawn[1:] - drawn[:1]
    return torch.nn.functional.cosine_similarity(changes[1:], changes[:1], dim=2).mean(1)


def _candidates(concept: Concept, kind: str, keep: Sequence[str], concepts: Sequence[Concept]) -> list[str]:
    """Keep entries of the same kind that share no word with the concept.

    A background is replaced only by a background, a style only by a style.
    """
    background = _is_background(concept.target)
    pool = [k for k in keep if guess_kind(k) == kind and _is_background(k) == background]
    pool = pool or [
        k
        for k in OTHERS["background" if background else "thing" if kind == "object" else kind]
        if not any(same(k, c.target) for c in concepts)
    ]
    common = {"style", "background", "art", "by", "a", "an", "the", "in", "of", "with"}
    words = set(_words(concept.target)) - common
    pool = [k for k in pool if not words & set(_words(k)) and not synonymous(k, concept.target)]
    step = max(1, -(-len(pool) // CANDIDATES))
    return pool[::step]


def _is_background(name: str) -> bool:
    return "background" in _words(name)


def _words(name: str) -> list[str]:
    return re.findall(r"\w+", name.casefold())


def _row_change(name: str, kind: str, encoder: TextEncoder) -> Tensor:
    """Change of the last subject row and, if present, of the end token by a name, ``[probes * rows, d]``."""
    rows = []
    for probe in PROBES[kind]:
        named, neutral = encoder.encode(fill(probe, name), name), encoder.encode(fill(probe, ""))
        pairs = align(named, neutral)
        positions = [named.rows(SUBJECT)[-1], *named.rows(FIRST_EOT)[:1]]
        rows.append(named.embeddings[positions] - pairs.want[positions])
    return torch.cat(rows)
