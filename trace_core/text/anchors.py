"""Anchors that are erased themselves.

An edit maps the rows of a concept to the rows of its anchor under the base model: W' c = W g. If the anchor g
is erased too, ``W g`` still draws a concept that must go. Two lines ``cat -> dog`` and ``dog -> cat`` would
swap the two at best. In one edit, their two difference columns are equal up to sign, so both concepts would
stay.

A concept therefore follows the arrows to the anchor of its anchor. Where that anchor has none of its own, or
the arrows form a circle, the concept is erased like a line without an arrow.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from .concepts import Concept, same
from .syntax import key


def follow_anchors(concepts: Sequence[Concept]) -> tuple[list[Concept], list[str]]:
    """Replace anchors that are erased themselves. Returns the concepts and a sentence for each change.

    Anchors are compared with the targets by name, without an article: "a dog" equals "dog". An anchor that
    only contains an erased name ("a dog on a sofa") stays, and a sentence reports it.
    """
    by_name = {_name(c.target): c for c in concepts if not c.parts}
    names_by_words = {tuple(_words(c.target)): c.target for c in by_name.values()}
    resolved, notes = [], []
    for concept in concepts:
        path = _anchor_path(concept, by_name)
        if len(path) > 1:
            anchor = "" if _name(path[-1]) in by_name or same(path[-1], concept.target) else path[-1]
            if concept.parts and anchor and same(anchor, concept.parts[1]):
                anchor = ""
            resolved.append(replace(concept, anchor=anchor))
            notes.append(_change_note(concept, anchor, path))
            continue
        resolved.append(concept)
        part = next((p for p in concept.parts if _name(p) in by_name), "")
        if part:
            notes.append(
                f"'{concept.target}': '{part}' is erased everywhere, so the combination needs no line of its "
                "own; remove that line"
            )
        other = next(
            (t for t in _contained_names(concept.anchor, names_by_words) if not same(t, concept.target)), ""
        )
        if other:
            notes.append(
                f"'{concept.anchor}', the anchor of '{concept.target}', contains '{other}', which is erased "
                "as well; name an anchor without it"
            )
    return resolved, notes


def _anchor_path(concept: Concept, by_name: dict[str, Concept]) -> list[str]:
    """The anchors along the arrows, until one is not erased or repeats."""
    path = [concept.anchor] if concept.anchor else []
    seen = {_name(concept.target)}
    while path and path[-1] and (name := _name(path[-1])) in by_name and name not in seen:
        seen.add(name)
        path.append(by_name[name].anchor)
    return path


def _change_note(concept: Concept, anchor: str, path: Sequence[str]) -> str:
    line = f"'{concept.target} -> {concept.anchor}'"
    erased = "', '".join(dict.fromkeys(w for w in path if w and w != anchor and not same(w, concept.target)))
    verb = "are" if "', '" in erased else "is"
    if anchor:
        return f"{line}: '{erased}' {verb} erased as well, so '{concept.target}' is steered to '{anchor}'"
    circle = path[-1] and ", and the arrows form a circle"
    return (
        f"{line}: '{erased}' {verb} erased as well{circle or ''}, so '{concept.target}' is erased like a "
        "line without an arrow; to draw something else, name an anchor that is not erased"
    )


def _contained_names(text: str, names_by_words: dict[tuple[str, ...], str]) -> list[str]:
    """Erased names that a text contains as whole words."""
    words = _words(text)
    spans = (tuple(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1))
    return [names_by_words[span] for span in spans if span in names_by_words]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", key(text))


def _name(text: str) -> str:
    return re.sub(r"^(a|an|the) (?=\S)", "", key(text))
