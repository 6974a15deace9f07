"""A concept: what is erased, what it is steered to, and of what kind it is."""

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

MAX_STRENGTH = 2.0  #: of one concept


@dataclass(frozen=True)
class Concept:
    """One thing to erase. An empty anchor means: the same prompt without the concept.

    Attributes:
        weight: how much it counts against the other concepts and the keep set.
        strength: how much of it goes: 1 all, 0.5 half, above 1 past the anchor. In (0, 2].
        parts: of a combined concept, which is erased only where both are asked for: a thing, and what is with
            it (another thing, a background, a style). Each alone stays. Its target is the two in one phrase.
            See :func:`with_default_anchor` for its anchor.
        kind_given: one of :data:`KINDS` that a list says of it; empty: guessed.
    """

    target: str
    anchor: str = ""
    weight: float = 1.0
    strength: float = 1.0
    parts: tuple[str, ...] = ()
    kind_given: str = ""

    def __str__(self) -> str:
        """The line that :func:`~trace_core.text.grammar.parse_concepts` reads it from."""
        line = PLUS.join(map(quoted, self.parts)) or quoted(self.target)
        if self.anchor:
            line += f" -> {quoted(self.anchor)}"
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


def with_default_anchor(concept: Concept, keep: Sequence[str], erased: Iterable[Concept] = ()) -> Concept:
    """A combined concept with an anchor: the one given, or what its prompts draw instead by default.

    In the place of a background or style stands another (the first of the keep list, or of :data:`OTHERS`):
    then both prompts have the same words in the same places, and the rest of the picture stays. A thing is
    left out. What is ``erased`` itself is no other.
    """
    if not concept.parts or concept.anchor:
        return concept
    thing, other = concept.parts
    gone = {_key(other), *(_key(c.target) for c in erased)}
    found = [
        o for o in (*alternatives_to(other, keep), *OTHERS[category_of(other)]) if _key(o) not in gone
    ] or [thing]
    return replace(concept, anchor=thing if category_of(other) == "thing" else found[0])


def alternatives_to(part: str, keep: Sequence[str]) -> list[str]:
    """Backgrounds, styles or things that may stand in a part's place: those of the keep list, if it has
    any, or :data:`OTHERS`.
    """
    sort = category_of(part)
    found = [k for k in keep if category_of(k) == sort] if sort != "thing" else []
    return found or list(OTHERS[sort])


def phrases(thing: str, other: str) -> list[str]:
    """Ways to ask for two things at once, the usual one first, by what the second is."""
    joints = {
        "background": ("{} on a {}", "{}, {}"),
        "style": ("{}, {}", "{} in {}"),
        "thing": ("{} with {}", "{} with a {}", "{} and {}", "{}, {}"),
    }
    return [joint.replace("{}", "%s") % (thing, other) for joint in joints[category_of(other)]]


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
