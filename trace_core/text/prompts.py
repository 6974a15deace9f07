"""Prompts of a concept, and of what is next to it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .concepts import Concept, alternatives_to, combined, phrases, same
from .kinds import category_of, guess_kind
from .syntax import key as _key
from .templates import EVERYDAY, TEMPLATES, fill


def prompt_pairs(concept: Concept, templates: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """What to erase and what to draw instead: ``(prompt, what is erased in it, counterpart, what stands there
    instead)``.

    A combined concept is asked for in all its phrases, and with the template's own end between its parts ("a
    cat, oil painting, red background"). Templates that speak of another background or style themselves are
    left out.
    """
    if not concept.parts:
        return [
            (fill(t, concept.target), concept.target, fill(t, concept.anchor), concept.anchor)
            for t in templates
        ]
    (thing, other), anchor = concept.parts, concept.anchor
    swapped = category_of(other) != "thing" and category_of(anchor) == category_of(other)
    out = {}
    for template in templates:
        head, _, end = template.partition("{}")
        if category_of(other) in re.findall(r"\w+", template):
            continue
        for phrase, instead in zip(phrases(thing, other), phrases(thing, anchor if swapped else other)):
            for place in ("{}" + end, "late"):
                if place == "late":
                    texts = [fill("{}" + end, thing) + p[len(thing) :] for p in (phrase, instead)]
                else:
                    texts = [fill(place, p) for p in (phrase, instead)]
                prompt = fill(head + "{}", texts[0])
                if swapped:  # word for word the same, but for the second part
                    out[prompt] = (prompt, other, fill(head + "{}", texts[1]), anchor)
                elif same(anchor, thing):
                    out[prompt] = (prompt, phrase[len(thing) :].strip(" ,"), fill(template, thing), "")
                elif place != "late":
                    out[prompt] = (prompt, phrase, fill(template, anchor), anchor)
    return list(out.values())


#: prompts of each part of a combined concept with others in the other part's place, and as many with others
#: in both
PROMPTS_OF_A_PART = 120


def separating_prompts(
    concept: Concept, keep: Sequence[str], contexts: Mapping[str, Sequence[str]] | None = None
) -> list[tuple[str, str]]:
    """Prompts that a combined concept's erasure must leave alone, each with the part that it holds.

    The first part with others in the second's place, the second with others in the first's place, others in
    both places, and each alone: what tells the combination from its parts.

    Args:
        keep: names the others, where it has any of the kind.
        contexts: more templates by kind.
    """
    thing, other = concept.parts
    contexts = contexts or {}
    others = [o for o in alternatives_to(other, keep) if not same(o, other)]
    things = [
        k for k in keep if guess_kind(k) == concept.kind and not same(k, thing) and not same(k, other)
    ] or list(EVERYDAY[:24])
    templates = {
        k: (*TEMPLATES[k], *contexts.get(k, ())) for k in {concept.kind, guess_kind(thing), guess_kind(other)}
    }
    out = []
    neither = [(t, others[i % len(others)]) for i, t in enumerate(things)]
    for part, contrasts in (
        (thing, [(thing, o) for o in others]),
        (other, [(t, other) for t in things]),
        ("", neither),
    ):
        count = -(-PROMPTS_OF_A_PART // len(contrasts))  # as many of each, so that none gives way
        for number, parts in enumerate(contrasts):
            prompts = [
                p for p, *_ in prompt_pairs(combined(*parts, anchor=parts[0]), templates[concept.kind])
            ]
            chosen = {(number * 7 + i * len(prompts) // count) % len(prompts) for i in range(count)}
            out += [(prompts[i], part or parts[0]) for i in sorted(chosen)]
    out += [(fill(t, part), part) for part in concept.parts for t in templates[guess_kind(part)]]
    return [(prompt, entry) for prompt, entry in dict.fromkeys(out) if not asks_for(prompt, concept)]


def asks_for(prompt: str, concept: Concept) -> bool:
    """Whether a prompt names a concept as whole words; of a combined one both parts, in any order."""
    text = _words(prompt)
    return all(_words(part) in text for part in concept.parts or (concept.target,))


def _words(text: str) -> str:
    return " " + " ".join(re.findall(r"\w+", _key(text))) + " "
