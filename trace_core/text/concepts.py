"""What to erase and what to keep: concepts, the one-line grammar, prompt templates.

Grammar, the same in a node's text box and in a list file, one concept a line::

    Van Gogh                 erase it, steer to another of its kind that stays, or to the neutral prompt
    cat -> dog               erase it, steer to the anchor
    cat @ 0.5                half of it; above 1 past the anchor, up to 2
    cat + red background     only the two together: cats elsewhere stay, and other things on red
    cat on a red background  the same
    glasses from scientist   the attribute, there alone: the same as scientist + glasses
    "still from a film"      what stands in quotes is taken as it is
    # a comment, and blank lines, are ignored

Layout (bullets, numbering, quotes and commas of pasted lists) is left out, ``;`` separates, and a comma is
refused with the remedy: see :mod:`.syntax`. A keep list has the same grammar without arrows and strengths.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import ConceptError
from .kinds import KINDS as KINDS
from .kinds import guess_kind, kind_of
from .lists import from_text
from .syntax import ARROW, BACKWARDS, Item, is_number, masked, plain, reads_as_it_is, short, split
from .syntax import MAX_CHARACTERS as MAX_CHARACTERS
from .syntax import key as _key

AT, PLUS, FROM = "@", " + ", " from "
MAX_STRENGTH = 2.0  #: of one concept


@dataclass(frozen=True)
class Concept:
    """One thing to erase. An empty anchor means: the same prompt without the concept.

    Attributes:
        weight: how much it counts against the other concepts and the keep set.
        strength: how much of it goes: 1 all, 0.5 half, above 1 past the anchor. In (0, 2].
        parts: of a combined concept, which is erased only where both are asked for: a thing, and what is with
            it (another thing, a background, a style). Each alone stays. Its target is the two in one phrase.
            See :func:`settled` for its anchor.
        kind_given: one of :data:`KINDS` that a list says of it; empty: guessed.
    """

    target: str
    anchor: str = ""
    weight: float = 1.0
    strength: float = 1.0
    parts: tuple[str, ...] = ()
    kind_given: str = ""

    def __str__(self) -> str:
        """The line that :func:`parse_concepts` reads it from."""
        line = PLUS.join(map(_quoted, self.parts)) or _quoted(self.target)
        if self.anchor:
            line += f" -> {_quoted(self.anchor)}"
        return line if self.strength == 1 else f"{line} {AT} {self.strength:g}"

    @property
    def kind(self) -> str:
        """The kind given, or guessed; of a combined concept its first part's."""
        return self.kind_and_why()[0]

    def kind_and_why(self, chosen: str = "auto") -> tuple[str, str]:
        """The kind to use and what it follows from, where ``chosen`` is set for all concepts that say
        nothing of their own.
        """
        if self.kind_given:
            return self.kind_given, "given in the list"
        if chosen != "auto":
            return chosen, "chosen"
        return kind_of(self.parts[0] if self.parts else self.target)


def combined(thing: str, other: str, anchor: str = "", **options) -> Concept:
    """Two things that are erased only where they stand together."""
    return Concept(phrases(thing, other)[0], anchor, parts=(thing, other), **options)


def sort_of(part: str) -> str:
    """``background``, ``style`` or ``thing``: what the second part of a combined concept is."""
    return (
        "background"
        if _key(part).endswith("background")
        else "style"
        if guess_kind(part) == "style"
        else "thing"
    )


def settled(concept: Concept, keep: Sequence[str], erased: Iterable[Concept] = ()) -> Concept:
    """A combined concept with an anchor: the one given, or what its prompts draw instead by default.

    In the place of a background or style stands another (the first of the keep list, or of :data:`OTHERS`):
    then both prompts have the same words in the same places, and the rest of the picture stays. A thing is
    left out. What is ``erased`` itself is no other.
    """
    if not concept.parts or concept.anchor:
        return concept
    thing, other = concept.parts
    gone = {_key(other), *(_key(c.target) for c in erased)}
    found = [o for o in (*others_of(other, keep), *OTHERS[sort_of(other)]) if _key(o) not in gone] or [thing]
    return replace(concept, anchor=thing if sort_of(other) == "thing" else found[0])


def others_of(part: str, keep: Sequence[str]) -> list[str]:
    """Backgrounds, styles or things that may stand in a part's place: those of the keep list, if it has
    any, or :data:`OTHERS`.
    """
    sort = sort_of(part)
    found = [k for k in keep if sort_of(k) == sort] if sort != "thing" else []
    return found or list(OTHERS[sort])


def phrases(thing: str, other: str) -> list[str]:
    """Ways to ask for two things at once, the usual one first, by what the second is."""
    joints = {
        "background": ("{} on a {}", "{}, {}"),
        "style": ("{}, {}", "{} in {}"),
        "thing": ("{} with {}", "{} with a {}", "{} and {}", "{}, {}"),
    }
    return [joint.replace("{}", "%s") % (thing, other) for joint in joints[sort_of(other)]]


def parse_concepts(text: str, source: str = "erase list") -> list[Concept]:
    """Parse an erase list, one concept a line; JSON that was pasted into it is read as well.

    Raises:
        ConceptError: naming ``source`` and the line: nothing to erase, two arrows, an anchor equal to its
            concept, a strength that is no number in (0, 2], concepts given twice, a comma outside quotes,
            syntax of prompts, a line that is too long, control characters.
    """
    return concepts_of(from_text(text, source), source)


def concepts_of(items: Iterable[Item], source: str = "erase list") -> list[Concept]:
    """Concepts of the entries of lists, files and options, see :mod:`.lists`.

    Raises:
        ConceptError: as :func:`parse_concepts`, naming where each entry stands.
    """
    found: dict[str, tuple[Item, Concept]] = {}
    twice = []
    for item in items:
        concept = _concept(item)
        if not concept.target:
            raise ConceptError(f"{item.where}: nothing stands before the arrow in '{short(item.text)}'")
        if same(concept.target, concept.anchor):
            raise ConceptError(
                f"{item.where}: the anchor equals the concept '{short(concept.target)}'; name something "
                "else or leave it out"
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
            f"{source}: nothing to erase; write one concept a line, such as `cat` or `Van Gogh`"
        )
    return [concept for _, concept in found.values()]


def _concept(item: Item) -> Concept:
    """One entry's concept. Of a string of a file, arrows and strengths are grammar, and words that may be
    of a name are not.
    """
    where, (line, strength) = item.where, _strength(item.text, item.where, item.string)
    if BACKWARDS.search(masked(line)):
        raise ConceptError(
            f"{where}: the arrow in '{short(line)}' points backwards; write `concept -> anchor`, what is "
            "drawn instead behind it"
        )
    parts = split(line, ARROW)
    if len(parts) > 2 or (len(parts) == 2 and item.anchor):
        raise ConceptError(
            f"{where}: '{short(line)}' has {len(parts) - 1 + bool(item.anchor)} arrows; write `concept -> "
            "anchor`"
        )
    anchor = plain(item.anchor or (parts[1] if len(parts) == 2 else ""))
    strength = strength if item.strength is None else _checked(item.strength, str(item.strength), line, where)
    both = _both(parts[0], item.string or len(parts) == 2, where)
    options = {"strength": strength, "kind_given": item.kind}
    if not both or (item.string and PLUS not in masked(line)):
        return Concept(plain(parts[0]), anchor, **options)
    if same(*both):
        raise ConceptError(
            f"{where}: '{short(line)}' names the same thing twice; a combined concept has two different parts"
        )
    if anchor and same(anchor, both[1]):
        raise ConceptError(
            f"{where}: '{short(line)}' steers to '{short(anchor)}', a part of it; write "
            f"`{short(PLUS.join(both[::-1]))}`"
        )
    return combined(*both, anchor, **options)


def _both(text: str, anchored: bool, where: str) -> tuple[str, str] | None:
    """The parts of a combined concept, or None for any other.

    ``from`` is grammar only without an arrow: `still from a film -> photo` has it in its name.
    """
    added = split(text, PLUS)
    taken = [] if anchored else split(text, FROM)
    if len(added) > 2 or len(taken) > 2 or (len(added) == 2 and len(taken) == 2):
        raise ConceptError(
            f"{where}: '{short(text)}' combines more than two things; write `thing + other` or `attribute "
            "from thing`, or put quotes around what is one name"
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


def _strength(line: str, where: str, string: bool = False) -> tuple[str, float]:
    """A line without its ``@ strength``, and the strength. An @ that touches a word that is no number
    belongs to the concept.
    """
    parts = split(line, AT)
    if len(parts) == 1 or not (is_number(parts[-1]) or (not string and f" {AT} " in f"{masked(line)} ")):
        return line, 1.0
    rest, given = line[: masked(line).rindex(AT)].strip(), parts[-1]
    strength = _checked(float(given) if is_number(given) else math.nan, given, line, where)
    if not rest:
        raise ConceptError(f"{where}: nothing stands before the @ in '{short(line)}'")
    if _strength(rest, where, string) != (rest, 1.0):
        raise ConceptError(f"{where}: '{short(line)}' has two strengths; write one, at the end of the line")
    return rest, strength


def _checked(strength: float, given: str, line: str, where: str) -> float:
    if 0 < strength <= MAX_STRENGTH:
        return strength
    raise ConceptError(
        f"{where}: the strength '{short(given)}' in '{short(line)}' must be a number above 0, at most "
        f"{MAX_STRENGTH:g}, at the end of the line; put quotes around a concept that holds an @"
    )


def parse_keep(text: str, source: str = "keep list") -> list[str]:
    """Parse a keep list; empty is allowed, an arrow or a strength is not. What comes again is left out.

    Raises:
        ConceptError: naming ``source`` and the line.
    """
    return keep_of(from_text(text, source, keep=True))


def keep_of(items: Iterable[Item]) -> list[str]:
    """A keep list of the entries of lists, files and options, see :mod:`.lists`.

    Raises:
        ConceptError: as :func:`parse_keep`.
    """
    keep: dict[str, str] = {}
    for item in items:
        if len(split(item.text, ARROW)) > 1:
            raise ConceptError(f"{item.where}: a keep list has no arrows ('{short(item.text)}')")
        if _strength(item.text, item.where, item.string)[0] != item.text:
            raise ConceptError(f"{item.where}: a keep list has no strengths ('{short(item.text)}')")
        keep.setdefault(_key(plain(item.text)), plain(item.text))
    return list(keep.values())


def kinds_of(concepts: Iterable[Concept], chosen: str = "auto") -> list[dict[str, str]]:
    """For a report: ``{"concept": ..., "kind": ..., "why": ...}`` of each, see
    :meth:`Concept.kind_and_why`.
    """
    found = ((c.target, *c.kind_and_why(chosen)) for c in concepts)
    return [{"concept": target, "kind": kind, "why": why} for target, kind, why in found]


def check_disjoint(concepts: Sequence[Concept], keep: Sequence[str]) -> None:
    """Refuse to keep what is to be erased.

    Raises:
        ConceptError: naming the entry.
    """
    erased = {_key(c.target) for c in concepts}
    both = [line for line in keep if _key(line) in erased]
    if both:
        names = ", ".join(f"'{short(line)}'" for line in both[:8]) + (
            f" and {len(both) - 8} more" if len(both) > 8 else ""
        )
        stands, it = ("stands", "it") if len(both) == 1 else ("stand", "each")
        raise ConceptError(f"{names} {stands} in the erase list and in the keep list; remove {it} from one")


def same(a: str, b: str) -> bool:
    """Whether two concepts differ in nothing but case, white space and Unicode form."""
    return _key(a) == _key(b)


def _quoted(text: str) -> str:
    """A text as a line would have to name it: in quotes, where it would be read as something else."""
    padded = f" {text} "
    sign = (
        any(mark in padded for mark in (AT, PLUS, FROM))
        or ARROW.search(text)
        or BACKWARDS.search(text)
        or _both(text, True, "")
    )
    if not sign and reads_as_it_is(text):
        return text
    return next((f"{a}{text}{b}" for a, b in ('""', "“”", "«»") if a not in text and b not in text), text)


# --------------------------------------------------------------------------------------------- templates

#: Prompts that introduce a concept, by kind. ``{}`` takes the concept, the anchor, or (neutral) nothing.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "object": (
        "{}", "a {}", "the {}", "a photo of a {}", "a photo of the {}", "a picture of a {}",
        "an image of a {}",
        "a drawing of a {}", "a painting of a {}", "an icon of a {}", "a close-up of a {}",
        "a rendering of a {}",
        "a {} on a white background", "a photo of a {} in the garden", "a picture of a {} on a table",
        "a photo of a {}, watercolor style", "an image of a {}, red background",
        "a small {} in front of a house",
    ),
    "style": (
        "{}", "a photo, {}", "a picture, {}", "a painting, {}", "an image in {}", "a drawing in {}",
        "artwork, {}",
        "a photo of a house, {}", "a picture of a tree, {}", "a painting of a city in {}",
        "a portrait of a woman, {}",
        "a drawing of flowers in {}", "{}, a photo of a mountain", "a landscape, {}, red background",
    ),
    "person": (
        "{}", "a photo of {}", "a portrait of {}", "an image of {}", "an oil painting of {}",
        "a sketch of {}",
        "{} in an official photo", "{} at a public event", "a close-up of {}",
        "a photo of {} on a red carpet",
    ),
    "explicit": (
        "{}", "a photo of {}", "an image of {}", "{} photo", "a painting of {}", "a picture showing {}",
        "a person, {}", "a woman, {}", "a man, {}", "a portrait, {}, studio light",
    ),
}  # fmt: skip

#: Everyday things that an erasure must leave alone when the user names nothing to keep.
EVERYDAY: tuple[str, ...] = (
    "person", "man", "woman", "child", "face", "hand", "crowd", "dog", "cat", "horse", "bird", "fish", "cow",
    "sheep",
    "bear", "elephant", "lion", "tiger", "rabbit", "frog", "deer", "snake", "butterfly", "bee", "penguin",
    "car",
    "truck", "bus", "bicycle", "motorcycle", "train", "airplane", "boat", "ship", "rocket", "house", "castle",
    "bridge", "tower", "church", "street", "city", "village", "garden", "forest", "tree", "flower", "rose",
    "sunflower", "cactus", "mushroom", "grass", "mountain", "river", "lake", "sea", "beach", "desert", "sky",
    "cloud",
    "sun", "moon", "star", "rain", "snow", "snowman", "fire", "apple", "banana", "orange", "strawberry",
    "bread",
    "pizza", "cake", "coffee", "bottle", "cup", "plate", "knife", "chair", "table", "bed", "lamp", "window",
    "door",
    "book", "pen", "clock", "phone", "computer", "camera", "guitar", "piano", "violin", "ball", "umbrella",
    "hat",
    "shoe", "shirt", "dress", "bag", "key", "box", "robot", "statue", "painting", "map",
)  # fmt: skip


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
    swapped = sort_of(other) != "thing" and sort_of(anchor) == sort_of(other)
    out = {}
    for template in templates:
        head, _, end = template.partition("{}")
        if sort_of(other) in re.findall(r"\w+", template):
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


#: What else a thing can be with, where the keep list says nothing of the kind.
OTHERS: dict[str, tuple[str, ...]] = {
    "background": tuple(
        f"{c} background" for c in ("white", "black", "red", "green", "blue", "yellow", "gray", "wooden")
    ),
    "style": (
        "oil painting style",
        "watercolor style",
        "pencil sketch style",
        "comic style",
        "pixel art style",
        "photo style",
    ),
    "thing": ("hat", "book", "umbrella", "bag", "flower", "tree", "car", "dog"),
}


#: prompts of each part of a combined concept with others in the other part's place, and as many with others
#: in both
APART = 120


def apart(
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
    others = [o for o in others_of(other, keep) if not same(o, other)]
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
        count = -(-APART // len(contrasts))  # as many of each, so that none gives way
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


def fill(template: str, concept: str) -> str:
    """A template with the concept in its place, or without it (``concept`` empty) and tidied.

    A concept that ends in a symbol keeps a space before a comma: tokenizers join neighbouring symbols into
    one word, in which the concept could not be found again.
    """
    if not concept:
        return " ".join(template.format("").split()).replace(" ,", ",").strip(" ,")
    gap = "" if concept[-1].isalnum() else " "
    return " ".join(template.replace("{},", "{}" + gap + ",").format(concept).split())
