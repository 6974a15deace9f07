"""A concept: its target, its anchor, and its kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..errors import ConceptError
from .kinds import KINDS as KINDS
from .kinds import category_of, kind_of
from .lines import AT, PLUS, quoted
from .syntax import key as _key
from .syntax import short
from .templates import OTHERS

MAX_STRENGTH = 2.0  #: per concept


@dataclass(frozen=True)
class Concept:
    """One thing to erase. An empty anchor means the same prompt without the concept.

    Attributes:
        weight: weight against the other concepts and the keep set.
        strength: share of the concept to erase, in (0, 2]: 1 all, 0.5 half, above 1 past the anchor.
        parts: the two parts of a combined concept: a thing, and another thing, a background or a style with
            it. Only prompts for both parts are erased; each part alone stays. The target is a phrase with
            both parts. See :func:`with_default_anchor` for the anchor.
        kind_given: the kind from a list, one of :data:`KINDS`; empty to guess it.
    """

    target: str
    anchor: str = ""
    weight: float = 1.0
    strength: float = 1.0
    parts: tuple[str, ...] = ()
    kind_given: str = ""

    def __str__(self) -> str:
        """The line that :func:`~trace_core.text.grammar.parse_concepts` parses to this concept."""
        line = PLUS.join(map(quoted, self.parts)) or quoted(self.target)
        if self.anchor:
            line += f" -> {quoted(self.anchor)}"
        short_form = f"{self.strength:g}"
        strength = short_form if float(short_form) == self.strength else repr(self.strength)
        return line if self.strength == 1 else f"{line} {AT} {strength}"

    @property
    def kind(self) -> str:
        """The given or guessed kind. A combined concept has the kind of its first part."""
        return self.kind_and_why()[0]

    def kind_and_why(self, chosen: str = "auto") -> tuple[str, str]:
        """The kind and the reason for it. ``chosen`` applies to concepts without a given kind."""
        if self.kind_given:
            return self.kind_given, "given in the list"
        if chosen != "auto":
            return chosen, "chosen"
        return kind_of(self.parts[0] if self.parts else self.target)


def combined(thing: str, other: str, anchor: str = "", **options) -> Concept:
    """A concept of two parts that is erased only where both appear together."""
    return Concept(phrases(thing, other)[0], anchor, parts=(thing, other), **options)


def with_default_anchor(concept: Concept, keep: Sequence[str], erased: Iterable[Concept] = ()) -> Concept:
    """A combined concept with an anchor: the given one, or the default for its category.

    A background or style is replaced by another one, the first of the keep list or of :data:`OTHERS`. Both
    prompts then have the same words in the same places, and the rest of the picture stays. A second thing is
    left out of the prompt. Concepts in ``erased`` are not used as a replacement.
    """
    if not concept.parts or concept.anchor:
        return concept
    thing, other = concept.parts
    erased_names = {_key(other), *(_key(c.target) for c in erased)}
    choices = [
        o for o in (*alternatives_to(other, keep), *OTHERS[category_of(other)]) if _key(o) not in erased_names
    ] or [thing]
    return replace(concept, anchor=thing if category_of(other) == "thing" else choices[0])


def alternatives_to(part: str, keep: Sequence[str]) -> list[str]:
    """Alternatives to a part of the same category, from the keep list if it has any, else :data:`OTHERS`."""
    category = category_of(part)
    found = [k for k in keep if category_of(k) == category] if category != "thing" else []
    return found or list(OTHERS[category])


def phrases(thing: str, other: str) -> list[str]:
    """Phrasings for two things together, the usual one first. They depend on the category of the second."""
    joints = {
        "background": ("{} on a {}", "{}, {}"),
        "style": ("{}, {}", "{} in {}"),
        "thing": ("{} with {}", "{} with a {}", "{} and {}", "{}, {}"),
    }
    return [joint.replace("{}", "%s") % (thing, other) for joint in joints[category_of(other)]]


def kinds_of(concepts: Iterable[Concept], chosen: str = "auto") -> list[dict[str, str]]:
    """For a report: ``{"concept": ..., "kind": ..., "why": ...}`` of each concept."""
    found = ((c.target, *c.kind_and_why(chosen)) for c in concepts)
    return [{"concept": target, "kind": kind, "why": why} for target, kind, why in found]


def check_disjoint(concepts: Sequence[Concept], keep: Sequence[str]) -> None:
    """Refuse concepts that are in the keep list as well.

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
    """Whether two names are equal up to case, white space and Unicode form."""
    return _key(a) == _key(b)
