"""Anchors that are erased themselves.

An edit maps the rows of a concept onto those of its anchor as the base model has them, W' c = W g. Where g is
erased as well, what ``W g`` draws is what must go: two lines ``cat -> dog`` and ``dog -> cat`` would swap
them at best, and in one edit, whose columns of difference are the same but for their sign, both stay. So a
concept follows the arrows: to where its anchor's own arrow leads, and where that is no anchor, or the arrows
lead round in a circle, it is erased as a line without an arrow is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from .concepts import Concept, same
from .syntax import key


def follow_anchors(concepts: Sequence[Concept]) -> tuple[list[Concept], list[str]]:
    """The concepts with anchors that are not erased, and what was changed, in sentences.

    Anchors are compared with the list as names, without an article: "a dog" is "dog". One that merely holds
    the name of something erased ("a dog on a sofa") stays, and a sentence says so.
    """
    by_name = {_name(c.target): c for c in concepts if not c.parts}
    by_words = {tuple(_words(c.target)): c.target for c in by_name.values()}
    out, said = [], []
    for concept in concepts:
        way = _way(concept, by_name)
        if len(way) > 1:
            anchor = "" if _name(way[-1]) in by_name or same(way[-1], concept.target) else way[-1]
            if concept.parts and anchor and same(anchor, concept.parts[1]):
                anchor = ""
            out.append(replace(concept, anchor=anchor))
            said.append(_sentence(concept, anchor, way))
            continue
        out.append(concept)
        part = next((p for p in concept.parts if _name(p) in by_name), "")
        if part:
            said.append(
                f"'{concept.target}': '{part}' is erased altogether, so the two together need no line of "
                "their own; remove it"
            )
        other = next((t for t in _held(concept.anchor, by_words) if not same(t, concept.target)), "")
        if other:
            said.append(
                f"'{concept.anchor}', the anchor of '{concept.target}', holds '{other}', which is erased as "
                "well: name an anchor without it"
            )
    return out, said


def _way(concept: Concept, by_name: dict[str, Concept]) -> list[str]:
    """The anchors from arrow to arrow, as far as they are erased and none comes again."""
    way = [concept.anchor] if concept.anchor else []
    seen = {_name(concept.target)}
    while way and way[-1] and (name := _name(way[-1])) in by_name and name not in seen:
        seen.add(name)
        way.append(by_name[name].anchor)
    return way


def _sentence(concept: Concept, anchor: str, way: Sequence[str]) -> str:
    line = f"'{concept.target} -> {concept.anchor}'"
    lost = "', '".join(dict.fromkeys(w for w in way if w and w != anchor and not same(w, concept.target)))
    are = "are" if "', '" in lost else "is"
    if anchor:
        return f"{line}: '{lost}' {are} erased as well, so '{concept.target}' is steered to '{anchor}'"
    round_ = way[-1] and ", and the arrows lead round in a circle"
    return (
        f"{line}: '{lost}' {are} erased as well{round_ or ''}, so '{concept.target}' is erased as a line "
        "without an arrow is; to draw something else, name an anchor that is not erased"
    )


def _held(text: str, by_words: dict[tuple[str, ...], str]) -> list[str]:
    """Names that stand in a text as whole words."""
    words = _words(text)
    spans = (tuple(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1))
    return [by_words[span] for span in spans if span in by_words]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", key(text))


def _name(text: str) -> str:
    return re.sub(r"^(a|an|the) (?=\S)", "", key(text))
