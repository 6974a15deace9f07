"""The one-line grammar: text to concepts, and text to a keep list.

The same grammar holds in a node's text box and in a list file, one concept per line::

    Van Gogh                 erase it, steer to a substitute of its kind or to the neutral prompt
    cat -> dog               erase it, steer to the anchor
    cat @ 0.5                erase half of it; above 1 steers past the anchor, up to 2
    cat + red background     erase only the combination: other cats stay, and other things on red
    cat on a red background  the same
    glasses from scientist   erase the attribute on this thing only, like scientist + glasses
    "still from a film"      text in quotes is taken literally
    # a comment              comments and blank lines are ignored

:mod:`.syntax` removes layout (bullets, numbering, quotes and commas of pasted lists), splits at ``;``, and
refuses a comma with a remedy. A keep list has the same grammar without arrows and strengths.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..errors import ConceptError
from .concepts import MAX_STRENGTH, Concept, combined, same
from .lines import AT, PLUS, two_parts
from .lists import from_text
from .syntax import ARROW, BACKWARDS, Item, is_number, masked, plain, short, split
from .syntax import MAX_CHARACTERS as MAX_CHARACTERS
from .syntax import key as _key


def parse_concepts(text: str, source: str = "erase list") -> list[Concept]:
    """Parse an erase list, one concept per line. Pasted JSON is parsed as JSON.

    Raises:
        ConceptError: naming ``source`` and the line: nothing to erase, two arrows, an anchor equal to its
            concept, a strength outside (0, 2], a concept given twice, a comma outside quotes, prompt syntax,
            a line that is too long, control characters.
    """
    return concepts_of(from_text(text, source), source)


def concepts_of(items: Iterable[Item], source: str = "erase list") -> list[Concept]:
    """Concepts from the entries of lists, files and options, see :mod:`.lists`.

    Raises:
        ConceptError: as :func:`parse_concepts`, naming the position of the entry.
    """
    found: dict[str, tuple[Item, Concept]] = {}
    twice = []
    for item in items:
        concept = _concept(item)
        if not concept.target:
            raise ConceptError(
                f"{item.where}: there is no concept before the arrow in '{short(item.text)}'; write "
                "`concept -> anchor`"
            )
        if same(concept.target, concept.anchor):
            raise ConceptError(
                f"{item.where}: the anchor equals the concept '{short(concept.target)}'; name another anchor "
                "or leave it out"
            )
        first, _ = found.setdefault(_key(concept.target), (item, concept))
        if first is not item:
            on = (
                f"on line {first.line}" if first.source == item.source and first.line else f"in {first.where}"
            )
            twice.append(f"{item.where}: '{short(concept.target)}' already stands {on}")
    if twice:
        more = f"; and {len(twice) - 8} more" if len(twice) > 8 else ""
        raise ConceptError(f"{'; '.join(twice[:8])}{more}; remove one{' of each' if len(twice) > 1 else ''}")
    if not found:
        raise ConceptError(
            f"{source}: nothing to erase; write one concept per line, such as `cat` or `Van Gogh`"
        )
    return [concept for _, concept in found.values()]


def _concept(item: Item) -> Concept:
    """The concept of one entry.

    In a string of a file, arrows and strengths are grammar. Joining words belong to the name.
    """
    where, (line, strength) = item.where, _strength(item.text, item.where, item.string)
    if BACKWARDS.search(masked(line)):
        raise ConceptError(
            f"{where}: the arrow in '{short(line)}' points backwards; write `concept -> anchor`, with the "
            "anchor behind the arrow"
        )
    parts = split(line, ARROW)
    if len(parts) > 2 or (len(parts) == 2 and item.anchor):
        raise ConceptError(
            f"{where}: '{short(line)}' has {len(parts) - 1 + bool(item.anchor)} arrows; write `concept -> "
            "anchor`"
        )
    anchor = plain(item.anchor or (parts[1] if len(parts) == 2 else ""))
    strength = strength if item.strength is None else _checked(item.strength, str(item.strength), line, where)
    both = two_parts(parts[0], item.string or len(parts) == 2, where)
    options = {"strength": strength, "kind_given": item.kind}
    if not both or (item.string and PLUS not in masked(line)):
        return Concept(plain(parts[0]), anchor, **options)
    if same(*both):
        raise ConceptError(
            f"{where}: '{short(line)}' names the same thing twice; a combined concept needs two different "
            "parts"
        )
    if anchor and same(anchor, both[1]):
        raise ConceptError(
            f"{where}: '{short(line)}' steers to '{short(anchor)}', a part of it; write "
            f"`{short(PLUS.join(both[::-1]))}`"
        )
    return combined(*both, anchor, **options)


def _strength(line: str, where: str, string: bool = False) -> tuple[str, float]:
    """Split a line into its text and its ``@ strength``.

    An @ that touches a word other than a number belongs to the concept.
    """
    parts = split(line, AT)
    if len(parts) == 1 or not (is_number(parts[-1]) or (not string and f" {AT} " in f"{masked(line)} ")):
        return line, 1.0
    rest, given = line[: masked(line).rindex(AT)].strip(), parts[-1]
    strength = _checked(float(given) if is_number(given) else math.nan, given, line, where)
    if not rest:
        raise ConceptError(
            f"{where}: there is no concept before the @ in '{short(line)}'; write `concept {AT} 0.5`"
        )
    if _strength(rest, where, string) != (rest, 1.0):
        raise ConceptError(f"{where}: '{short(line)}' has two strengths; write one, at the end of the line")
    return rest, strength


def _checked(strength: float, given: str, line: str, where: str) -> float:
    if 0 < strength <= MAX_STRENGTH:
        return strength
    raise ConceptError(
        f"{where}: the strength '{short(given)}' in '{short(line)}' must be a number above 0, at most "
        f"{MAX_STRENGTH:g}, at the end of the line; put quotes around a concept that contains an @"
    )


def parse_keep(text: str, source: str = "keep list") -> list[str]:
    """Parse a keep list. It may be empty; arrows and strengths are refused. Duplicates are dropped.

    Raises:
        ConceptError: naming ``source`` and the line.
    """
    return keep_of(from_text(text, source, keep=True))


def keep_of(items: Iterable[Item]) -> list[str]:
    """A keep list from the entries of lists, files and options, see :mod:`.lists`.

    Raises:
        ConceptError: as :func:`parse_keep`.
    """
    keep: dict[str, str] = {}
    for item in items:
        if len(split(item.text, ARROW)) > 1:
            raise ConceptError(
                f"{item.where}: a keep list has no arrows ('{short(item.text)}'); write the name alone"
            )
        if _strength(item.text, item.where, item.string)[0] != item.text:
            raise ConceptError(
                f"{item.where}: a keep list has no strengths ('{short(item.text)}'); write the name alone"
            )
        keep.setdefault(_key(plain(item.text)), plain(item.text))
    return list(keep.values())
