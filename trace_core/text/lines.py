"""The signs of the one-line grammar, and quoting of names that contain them."""

from __future__ import annotations

import re

from ..errors import ConceptError
from .syntax import ARROW, BACKWARDS, masked, plain, reads_as_it_is, short, split

AT, PLUS, FROM = "@", " + ", " from "


def two_parts(text: str, anchored: bool, where: str) -> tuple[str, str] | None:
    """The parts of a combined concept, or None for any other.

    ``from`` is grammar only in a line without an arrow: `still from a film -> photo` has it in its name.
    """
    added = split(text, PLUS)
    taken = [] if anchored else split(text, FROM)
    if len(added) > 2 or len(taken) > 2 or (len(added) == 2 and len(taken) == 2):
        raise ConceptError(
            f"{where}: '{short(text)}' combines more than two things; write `thing + other` or `attribute "
            "from thing`, or put quotes around a name that contains these signs"
        )
    found = added if len(added) == 2 else taken[::-1] if len(taken) == 2 else None
    if found is None:
        setting = re.fullmatch(r"(.*\S) on an? (\S.* background)", masked(text), re.IGNORECASE)
        return (text[: setting.end(1)], text[setting.start(2) :]) if setting else None
    if not all(map(plain, found)):
        raise ConceptError(
            f"{where}: a part is missing in '{short(text)}'; write `thing + other` or `attribute from thing`"
        )
    return plain(found[0]), plain(found[1])


def quoted(text: str) -> str:
    """A name as the grammar has to write it: in quotes if it would otherwise be read differently."""
    padded = f" {text} "
    sign = (
        any(mark in padded for mark in (AT, PLUS, FROM))
        or ARROW.search(text)
        or BACKWARDS.search(text)
        or two_parts(text, True, "")
        or any(
            opening in masked(text) for opening in '"“„«'
        )  # with one of the anchor it would hide the arrow
    )
    if not sign and reads_as_it_is(text):
        return text
    return next((f"{a}{text}{b}" for a, b in ('""', "“”", "«»") if a not in text and b not in text), text)
