"""What to erase and what to keep: concepts, the one-line grammar, prompt templates.

Grammar, the same in a node's text box and in a list file, one concept a line::

    Van Gogh                 erase it, steer to the neutral prompt
    cat -> dog               erase it, steer to the anchor
    # a comment, and blank lines, are ignored

A keep list has the same grammar without arrows.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import ConceptError

ARROW = "->"
MAX_CHARACTERS = 300  #: of one concept; the text encoders read 77 tokens

KINDS = ("object", "style", "person", "explicit")


@dataclass(frozen=True)
class Concept:
    """One thing to erase. An empty anchor means: the same prompt without the concept."""

    target: str
    anchor: str = ""
    weight: float = 1.0

    def __str__(self) -> str:
        return f"{self.target} {ARROW} {self.anchor}" if self.anchor else self.target


def parse_concepts(text: str, source: str = "erase list") -> list[Concept]:
    """Parse an erase list.

    Raises:
        ConceptError: naming ``source`` and the line: nothing to erase, two arrows, an anchor equal to its concept,
            a concept given twice, a line that is too long, control characters.
    """
    concepts: dict[str, tuple[int, Concept]] = {}
    for number, line in _lines(text, source):
        where = f"{source}, line {number}"
        parts = [part.strip() for part in line.split(ARROW)]
        if len(parts) > 2:
            raise ConceptError(f"{where}: '{_short(line)}' has {len(parts) - 1} arrows; write `concept -> anchor`")
        target, anchor = parts[0], parts[1] if len(parts) == 2 else ""
        if not target:
            raise ConceptError(f"{where}: nothing stands before the arrow in '{_short(line)}'")
        if same(target, anchor):
            raise ConceptError(f"{where}: the anchor equals the concept '{_short(target)}'; name something else or leave it out")
        if _key(target) in concepts:
            raise ConceptError(f"{where}: '{_short(target)}' already stands on line {concepts[_key(target)][0]}; remove one")
        concepts[_key(target)] = (number, Concept(target, anchor))
    if not concepts:
        raise ConceptError(f"{source}: nothing to erase; write one concept a line, such as `cat` or `Van Gogh`")
    return [concept for _, concept in concepts.values()]


def parse_keep(text: str, source: str = "keep list") -> list[str]:
    """Parse a keep list; empty is allowed, an arrow is not.

    Raises:
        ConceptError: naming ``source`` and the line.
    """
    keep: dict[str, str] = {}
    for number, line in _lines(text, source):
        if ARROW in line:
            raise ConceptError(f"{source}, line {number}: a keep list has no arrows ('{_short(line)}')")
        keep.setdefault(_key(line), line)
    return list(keep.values())


def check_disjoint(concepts: Sequence[Concept], keep: Sequence[str]) -> None:
    """Refuse to keep what is to be erased.

    Raises:
        ConceptError: naming the entry.
    """
    erased = {_key(c.target) for c in concepts}
    for line in keep:
        if _key(line) in erased:
            raise ConceptError(f"'{_short(line)}' stands in the erase list and in the keep list; remove it from one")


def same(a: str, b: str) -> bool:
    """Whether two concepts differ in nothing but case, white space and Unicode form."""
    return _key(a) == _key(b)


def _key(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _lines(text: str, source: str):
    for number, raw in enumerate(text.splitlines(), start=1):
        line = " ".join(raw.split("#", 1)[0].split())
        if not line:
            continue
        if len(line) > MAX_CHARACTERS:
            raise ConceptError(
                f"{source}, line {number}: {len(line)} characters, of which the text encoder would read a part; "
                f"shorten '{_short(line)}' to {MAX_CHARACTERS} or split it over several lines"
            )
        if any(unicodedata.category(c) in ("Cc", "Cs", "Co") for c in line):
            raise ConceptError(f"{source}, line {number}: '{_short(line)}' holds control characters; remove them")
        yield number, line


# --------------------------------------------------------------------------------------------- templates

#: Prompts that introduce a concept, by kind. ``{}`` takes the concept, the anchor, or (neutral) nothing.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "object": (
        "{}", "a {}", "the {}", "a photo of a {}", "a photo of the {}", "a picture of a {}", "an image of a {}",
        "a drawing of a {}", "a painting of a {}", "an icon of a {}", "a close-up of a {}", "a rendering of a {}",
        "a {} on a white background", "a photo of a {} in the garden", "a picture of a {} on a table",
        "a photo of a {}, watercolor style", "an image of a {}, red background", "a small {} in front of a house",
    ),
    "style": (
        "{}", "a photo, {}", "a picture, {}", "a painting, {}", "an image in {}", "a drawing in {}", "artwork, {}",
        "a photo of a house, {}", "a picture of a tree, {}", "a painting of a city in {}", "a portrait of a woman, {}",
        "a drawing of flowers in {}", "{}, a photo of a mountain", "a landscape, {}, red background",
    ),
    "person": (
        "{}", "a photo of {}", "a portrait of {}", "an image of {}", "an oil painting of {}", "a sketch of {}",
        "{} in an official photo", "{} at a public event", "a close-up of {}", "a photo of {} on a red carpet",
    ),
    "explicit": (
        "{}", "a photo of {}", "an image of {}", "{} photo", "a painting of {}", "a picture showing {}",
        "a person, {}", "a woman, {}", "a man, {}", "a portrait, {}, studio light",
    ),
}  # fmt: skip

#: Everyday things that an erasure must leave alone when the user names nothing to keep.
EVERYDAY: tuple[str, ...] = (
    "person", "man", "woman", "child", "face", "hand", "crowd", "dog", "cat", "horse", "bird", "fish", "cow", "sheep",
    "bear", "elephant", "lion", "tiger", "rabbit", "frog", "deer", "snake", "butterfly", "bee", "penguin", "car",
    "truck", "bus", "bicycle", "motorcycle", "train", "airplane", "boat", "ship", "rocket", "house", "castle",
    "bridge", "tower", "church", "street", "city", "village", "garden", "forest", "tree", "flower", "rose",
    "sunflower", "cactus", "mushroom", "grass", "mountain", "river", "lake", "sea", "beach", "desert", "sky", "cloud",
    "sun", "moon", "star", "rain", "snow", "snowman", "fire", "apple", "banana", "orange", "strawberry", "bread",
    "pizza", "cake", "coffee", "bottle", "cup", "plate", "knife", "chair", "table", "bed", "lamp", "window", "door",
    "book", "pen", "clock", "phone", "computer", "camera", "guitar", "piano", "violin", "ball", "umbrella", "hat",
    "shoe", "shirt", "dress", "bag", "key", "box", "robot", "statue", "painting", "map",
)  # fmt: skip


def guess_kind(target: str) -> str:
    """``style`` for "... style", "... background", "art by ...", "painting by ..."; otherwise ``object``."""
    words = _key(target).split()
    by_artist = "by" in words[1:-1] and bool({"art", "artwork", "painting", "drawing", "style"} & set(words))
    return "style" if {"style", "background"} & set(words) or by_artist else "object"


def fill(template: str, concept: str) -> str:
    """A template with the concept in its place, or without it (``concept`` empty) and tidied.

    A concept that ends in a symbol keeps a space before a comma: tokenizers join neighbouring symbols into one word, in
    which the concept could not be found again.
    """
    if not concept:
        return " ".join(template.format("").split()).replace(" ,", ",").strip(" ,")
    gap = "" if concept[-1].isalnum() else " "
    return " ".join(template.replace("{},", "{}" + gap + ",").format(concept).split())
