"""What to erase and what to keep: concepts, the one-line grammar, prompt templates.

Grammar, the same in a node's text box and in a list file, one concept a line::

    Van Gogh                 erase it, steer to the neutral prompt
    cat -> dog               erase it, steer to the anchor
    cat @ 0.5                half of it; above 1 past the anchor, up to 2
    "cat @ 0.5" -> dog       what stands in quotes is taken as it is
    # a comment, and blank lines, are ignored

A keep list has the same grammar without arrows and strengths.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import ConceptError

ARROW, AT, QUOTE = "->", "@", '"'
MAX_STRENGTH = 2.0  #: of one concept
MAX_CHARACTERS = 300  #: of one concept; the text encoders read 77 tokens

KINDS = ("object", "style", "person", "explicit")


@dataclass(frozen=True)
class Concept:
    """One thing to erase. An empty anchor means: the same prompt without the concept.

    Attributes:
        weight: how much it counts against the other concepts and the keep set.
        strength: how much of it goes: 1 all, 0.5 half, above 1 past the anchor. In (0, 2].
    """

    target: str
    anchor: str = ""
    weight: float = 1.0
    strength: float = 1.0

    def __str__(self) -> str:
        """The line that :func:`parse_concepts` reads it from."""
        line = _quoted(self.target) + (f" {ARROW} {_quoted(self.anchor)}" if self.anchor else "")
        return line if self.strength == 1 else f"{line} {AT} {self.strength:g}"


def parse_concepts(text: str, source: str = "erase list") -> list[Concept]:
    """Parse an erase list.

    Raises:
        ConceptError: naming ``source`` and the line: nothing to erase, two arrows, an anchor equal to its concept, a strength
            that is no number in (0, 2], a concept given twice, a line that is too long, control characters.
    """
    concepts: dict[str, tuple[int, Concept]] = {}
    for number, line in _lines(text, source):
        where = f"{source}, line {number}"
        concept = _concept(line, where)
        if not concept.target:
            raise ConceptError(f"{where}: nothing stands before the arrow in '{_short(line)}'")
        if same(concept.target, concept.anchor):
            raise ConceptError(f"{where}: the anchor equals the concept '{_short(concept.target)}'; name something else or leave it out")
        key = _key(concept.target)
        if key in concepts:
            raise ConceptError(f"{where}: '{_short(concept.target)}' already stands on line {concepts[key][0]}; remove one")
        concepts[key] = (number, concept)
    if not concepts:
        raise ConceptError(f"{source}: nothing to erase; write one concept a line, such as `cat` or `Van Gogh`")
    return [concept for _, concept in concepts.values()]


def _concept(line: str, where: str) -> Concept:
    """One line's concept."""
    line, strength = _strength(line, where)
    parts = _split(line, ARROW)
    if len(parts) > 2:
        raise ConceptError(f"{where}: '{_short(line)}' has {len(parts) - 1} arrows; write `concept -> anchor`")
    return Concept(_plain(parts[0]), _plain(parts[1]) if len(parts) == 2 else "", strength=strength)


def _strength(line: str, where: str) -> tuple[str, float]:
    """A line without its ``@ strength``, and the strength. An @ that touches a word that is no number belongs to the concept."""
    parts = _split(line, AT)
    if len(parts) == 1 or not (_is_number(parts[-1]) or f" {AT} " in f"{_masked(line)} "):
        return line, 1.0
    rest, given = line[: _masked(line).rindex(AT)].strip(), parts[-1]
    strength = float(given) if _is_number(given) else math.nan
    if not 0 < strength <= MAX_STRENGTH:
        raise ConceptError(f"{where}: the strength '{_short(given)}' in '{_short(line)}' must be a number above 0, at most "
                           f"{MAX_STRENGTH:g}, at the end of the line; put quotes around a concept that holds an @")  # fmt: skip
    if not rest:
        raise ConceptError(f"{where}: nothing stands before the @ in '{_short(line)}'")
    if _strength(rest, where) != (rest, 1.0):
        raise ConceptError(f"{where}: '{_short(line)}' has two strengths; write one, at the end of the line")
    return rest, strength


def parse_keep(text: str, source: str = "keep list") -> list[str]:
    """Parse a keep list; empty is allowed, an arrow or a strength is not.

    Raises:
        ConceptError: naming ``source`` and the line.
    """
    keep: dict[str, str] = {}
    for number, line in _lines(text, source):
        if len(_split(line, ARROW)) > 1:
            raise ConceptError(f"{source}, line {number}: a keep list has no arrows ('{_short(line)}')")
        if _strength(line, f"{source}, line {number}")[0] != line:
            raise ConceptError(f"{source}, line {number}: a keep list has no strengths ('{_short(line)}')")
        keep.setdefault(_key(_plain(line)), _plain(line))
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


def _masked(line: str) -> str:
    """A line, as long as it was, without what stands in quotes, which is no grammar."""
    return re.sub(r'"[^"]*"', lambda found: "\0" * len(found[0]), line)


def _split(line: str, sign: str) -> list[str]:
    """A line's parts between the signs that stand outside quotes."""
    parts, start, masked = [], 0, _masked(line)
    while (at := masked.find(sign, start)) >= 0:
        parts.append(line[start:at].strip())
        start = at + len(sign)
    return [*parts, line[start:].strip()]


def _plain(part: str) -> str:
    """A part without the quotes around it, if they stand around all of it."""
    whole = len(part) > 2 and part[0] == part[-1] == QUOTE and QUOTE not in part[1:-1]
    return " ".join(part[1:-1].split()) if whole else part


def _quoted(text: str) -> str:
    """A text as a line would have to name it: in quotes, where it would be read as something else."""
    sign = ARROW in text or "#" in text or AT in text
    return f"{QUOTE}{text}{QUOTE}" if sign and QUOTE not in text else text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, re.ASCII | re.IGNORECASE) is not None


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _lines(text: str, source: str):
    for number, raw in enumerate(text.splitlines(), start=1):
        line = " ".join(raw[: end if (end := _masked(raw).find("#")) >= 0 else len(raw)].split())
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
