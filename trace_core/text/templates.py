"""Prompt templates, the everyday keep list, and default alternatives, all read from data files."""

from __future__ import annotations

import json
from pathlib import Path

DATA = Path(__file__).parent / "data"


def _table(name: str) -> dict[str, tuple[str, ...]]:
    return {kind: tuple(found) for kind, found in json.loads((DATA / name).read_text("utf-8")).items()}


#: Prompts that introduce a concept, by kind. ``{}`` is the place of the concept, the anchor, or nothing
#: (neutral).
TEMPLATES = _table("templates.json")

#: Everyday things to keep when the user names nothing to keep.
EVERYDAY = tuple(
    line for line in (DATA / "everyday.txt").read_text("utf-8").splitlines() if not line.startswith("#")
)

#: Default alternatives by category, used where the keep list has none of that category.
OTHERS = _table("others.json")


def fill(template: str, concept: str) -> str:
    """A template with the concept filled in, or, if ``concept`` is empty, without it and tidied.

    A concept that ends in a symbol keeps a space before a comma. Tokenizers merge neighbouring symbols into
    one token, and the concept could not be found in the prompt.
    """
    if not concept:
        return " ".join(template.format("").split()).replace(" ,", ",").strip(" ,")
    gap = "" if concept[-1].isalnum() else " "
    return " ".join(template.replace("{},", "{}" + gap + ",").format(concept).split())
