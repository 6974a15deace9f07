"""The items of a verification: each a figure, its thresholds, a status, and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ...text.concepts import Concept
from . import thresholds as at
from .drawn import Drawn
from .layers import Residual
from .trajectory import Way

TEXT, TRAJECTORY, PICTURES, KEEP, ATTACK = "text", "trajectory", "pictures", "keep", "attacks"
JUDGE = "judge"


@dataclass(frozen=True)
class Item:
    """One line of the verdict.

    Attributes:
        side: :data:`TEXT`, :data:`TRAJECTORY`, :data:`PICTURES`, :data:`KEEP`, :data:`ATTACK` or
            :data:`JUDGE`.
        name: what was measured.
        concept: of which concept; empty for what must stay.
        status: ``PASS``, ``WARN`` or ``FAIL``.
        sentence: the status in plain words.
        figure: what was measured; None if it could not be.
        warn, fail: the figure passes up to the first, and fails above the second.
        worst: the weakest layer, prompt or thing by name.
        decides: whether the verdict depends on the item.
    """

    side: str
    name: str
    concept: str
    status: str
    sentence: str
    figure: float | None
    warn: float
    fail: float
    worst: str = ""
    decides: bool = True

    def to_dict(self) -> dict:
        return asdict(self)


def item(side, name, concept, figure, sentence, worst="", limits: at.Limits | None = None) -> Item:
    """An item that decides, or with limits of its own one that does not."""
    chosen = limits or at.DECIDING[name]
    status = chosen.status(figure)
    return Item(
        side, name, concept, status, sentence, figure, chosen.warn, chosen.fail, worst, limits is None
    )


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def of_pictures(drawn: Drawn) -> Item:
    """How often the concept is still drawn, as the unerased model sees it."""
    n, seen = len(drawn.prompts), round(drawn.drawn * len(drawn.prompts))
    if drawn.usable < n / 2:
        sentence = (
            f"The model itself shows '{drawn.name}' in {drawn.usable} of {n} pictures before the erasure. "
            "These are too few to tell what the erasure did."
        )
        limits = at.DRAWN
        return Item(
            PICTURES, "concept drawn", drawn.name, at.WARN, sentence, drawn.drawn, limits.warn, limits.fail
        )
    sentence = f"The unerased model sees '{drawn.name}' in {seen} of {n} pictures after the erasure."
    if drawn.names:
        sentence = (
            f"Of {len(drawn.names) + 1} names, '{drawn.name}' fits {seen} of {n} pictures best after the "
            "erasure. The unerased model chose."
        )
    return item(PICTURES, "concept drawn", drawn.name, drawn.drawn, sentence)


def of_ways(concept: Concept, ways: Sequence[Way]) -> list[Item]:
    """The plain prompt's reach, and that of the way to write the concept that reaches farthest."""
    plain, others = ways[0], [w for w in ways[1:] if w.known]
    sentence = (
        f"The predictions for '{concept.target}' go {percent(max(plain.reach, 0.0))} of the way back to the "
        "old ones."
    )
    items = [item(TRAJECTORY, "predictions", concept.target, plain.reach, sentence)]
    if others:
        worst = max(others, key=lambda w: w.reach)
        sentence = (
            f"Of {len(others)} other ways to write '{concept.target}', the {worst.probe.name} reaches "
            f"farthest: {percent(max(worst.reach, 0.0))} of the old predictions."
        )
        items.append(
            item(
                TRAJECTORY,
                "other wordings",
                concept.target,
                worst.reach,
                sentence,
                worst.probe.name,
            )
        )
    return items


def of_negative(concept: Concept, towards: float) -> Item:
    """What the concept does as a negative prompt. It does not decide: the prompt asks for something else."""
    does = (
        "leads towards the concept"
        if towards > at.NEGATIVE.warn
        else "leads away from the concept or nowhere"
    )
    sentence = f"Guidance away from '{concept.target}' as a negative prompt {does}."
    return item(ATTACK, "negative prompt", concept.target, towards, sentence, limits=at.NEGATIVE)


def of_layers(concept: Concept, found: Sequence[Residual], known: Sequence[str]) -> Item | None:
    """The weakest layer over all ways to write the concept that the unerased model knows."""
    found = [r for r in found if r.probe in known]
    if not found:
        return None
    worst = max(found, key=lambda r: r.left)
    left = sorted(r.left for r in found)
    middle = left[len(left) // 2]
    where = worst.layer.removeprefix("diffusion_model.")
    sentence = (
        f"The middle one of the layers that read the text keeps {percent(max(middle, 0.0))} of what tells "
        f"'{concept.target}' from its counterpart, and the weakest {percent(worst.left)} ({where}, "
        f"{worst.probe})."
    )
    return item(TEXT, "text layers", concept.target, middle, sentence, where, at.RESIDUAL)


def of_kept(things: Sequence[Drawn]) -> list[Item]:
    """What of the kept things is lost, the weakest by name, and the same of near neighbours alone."""
    items = []
    groups = {"kept things": things, "near neighbours": [t for t in things if t.near]}
    for name, group in groups.items():
        usable, still = sum(t.usable for t in group), sum(t.still for t in group)
        if not usable:
            continue
        weakest = min(group, key=rank)
        lost = 1 - still / usable
        sentence = (
            f"{still} of {usable} pictures of {name} show what they showed before. The weakest is "
            f"'{weakest.name}': {weakest.still} of {weakest.usable}."
        )
        limits = None if name in at.DECIDING else at.NEIGHBOURS
        items.append(item(KEEP, name, "", lost, sentence, weakest.name, limits))
    return items


def rank(thing: Drawn) -> tuple[float, float]:
    """The thing that loses most pictures comes first; of equals the one whose pictures moved most."""
    return (thing.still / thing.usable if thing.usable else 1.0, -thing.moved)


def of_attacks(concept: Concept, ways: Sequence[Way]) -> list[Item]:
    """One item an attack. None decides."""
    items = []
    for way in (w for w in ways if w.known):
        sentence = (
            f"{percent(max(way.reach, 0.0))} of the old predictions for '{concept.target}' come back "
            f"({way.probe.name})."
        )
        items.append(item(ATTACK, way.probe.name, concept.target, way.reach, sentence, limits=at.ATTACKED))
    return items
