"""Prompts of a concept, and of the things that share a part with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .concepts import Concept, alternatives_to, combined, phrases, same
from .kinds import category_of, guess_kind
from .syntax import key as _key
from .templates import EVERYDAY, TEMPLATES, fill


def prompt_pairs(concept: Concept, templates: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Prompt pairs of a concept: ``(prompt, erased phrase, counterpart, phrase in its place)``.

    A combined concept appears in all its phrasings. Each phrasing also appears with the end of the template
    between the two parts ("a cat, oil painting, red background"). Templates that already mention a background
    or a style are left out for a part of that category.
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
                if swapped:  # the two prompts differ in the second part only
                    out[prompt] = (prompt, other, fill(head + "{}", texts[1]), anchor)
                elif same(anchor, thing):
                    out[prompt] = (prompt, phrase[len(thing) :].strip(" ,"), fill(template, thing), "")
                elif place != "late":
                    out[prompt] = (prompt, phrase, fill(template, anchor), anchor)
    return list(out.values())


#: prompts for each part of a combined concept with alternatives to the other part, and for alternatives to
#: both
PROMPTS_OF_A_PART = 120


def separating_prompts(
    concept: Concept, keep: Sequence[str], contexts: Mapping[str, Sequence[str]] | None = None
) -> list[tuple[str, str]]:
    """Prompts that the erasure of a combined concept must leave unchanged, each with the part it contains.

    They pair the first part with alternatives to the second, the second with alternatives to the first, and
    two alternatives. Each part also appears alone. These prompts separate the combination from its parts.

    Args:
        keep: source of the alternatives, where it has any of the category.
        contexts: additional templates by kind.
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
        count = -(-PROMPTS_OF_A_PART // len(contrasts))  # equally many of each pair
        for number, parts in enumerate(contrasts):
            prompts = [
                p for p, *_ in prompt_pairs(combined(*parts, anchor=parts[0]), templates[concept.kind])
            ]
            chosen = {(number * 7 + i * len(prompts) // count) % len(prompts) for i in range(count)}
            out += [(prompts[i], part or parts[0]) for i in sorted(chosen)]
    out += [(fill(t, part), part) for part in concept.parts for t in templates[guess_kind(part)]]
    return [(prompt, entry) for prompt, entry in dict.fromkeys(out) if not asks_for(prompt, concept)]


def asks_for(prompt: str, concept: Concept) -> bool:
    """Whether a prompt contains a concept as whole words, or both parts of a combined one in any order."""
    text = _words(prompt)
    return all(_words(part) in text for part in concept.parts or (concept.target,))


def _words(text: str) -> str:
    return " " + " ".join(re.findall(r"\w+", _key(text))) + " "
