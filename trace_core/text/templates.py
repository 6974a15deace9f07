"""Prompt templates, the everyday keep list, and what stands in for a part: all of it data."""

from __future__ import annotations

import json
from pathlib import Path

DATA = Path(__file__).parent / "data"


def _table(name: str) -> dict[str, tuple[str, ...]]:
    return {kind: tuple(found) for kind, found in json.loads((DATA / name).read_text("utf-8")).items()}


#: Prompts that introduce a concept, by kind. ``{}`` takes the concept, the anchor, or (neutral) nothing.
TEMPLATES = _table("templates.json")

#: Everyday things that an erasure must leave alone when the user names nothing to keep.
EVERYDAY = tuple(
    line for line in (DATA / "everyday.txt").read_text("utf-8").splitlines() if not line.startswith("#")
)

#: What else a thing can be with, where the keep list says nothing of the kind.
OTHERS = _table("others.json")


def fill(template: str, concept: str) -> str:
    """A template with the concept in its place, or without it (``concept`` empty) and tidied.

    A concept that ends in a symbol keeps a space before a comma: tokenizers join neighbouring symbols into
    one word, in which the concept could not be found again.
    """
    if not concept:
        return " ".join(template.format("").split()).replace(" ,", ",").strip(" ,")
    gap = "" if concept[-1].isalnum() else " "
    return " ".join(template.replace("{},", "{}" + gap + ",").format(concept).split())
