"""A verification as Markdown."""

from __future__ import annotations

from ..markdown import escaped, percent, shortened, table
from . import thresholds as at
from .result import Verification

SHOWN = 8  #: kept things in the table
LIMITS = (
    "A verdict is no guarantee. It compares the erased model with the unerased one, on a few prompts and "
    "seeds. It cannot see what the unerased model itself does not recognise. Attacks that are trained were "
    "not tried, and no verdict depends on the attacks that were. Look at pictures before you share the file."
)


@escaped
def markdown(found: Verification) -> str:
    """The verdict, its items, the wordings, what stays, and the limits."""
    names = shortened([str(m.concept) for m in found.concepts], 8)
    lines = [f"# Verified: {names}", "", f"**{found.status}.** {found.sentence}", ""]
    lines += [_leak(found), ""]
    lines += [_weakest(found), ""] if found.weakest else []
    lines += [table(("verdict", "what", "in words", "figure", "passes to, fails above"), _items(found)), ""]
    lines += [text for note in found.notes for text in (f"> **Note:** {note}", "")]
    lines += [*_wordings(found), *_kept(found), *_judged(found)]
    s = found.setting
    lines += [
        f"Sampled with {s['sampler']}, seed {s['seed']}. The erasure acts from {s['window'][0]:g} to "
        f"{s['window'][1]:g} of the schedule, at strength {s['strength']:g}.",
        "",
        "## Limits",
        "",
        LIMITS,
    ]
    return "\n".join(lines)


def _leak(found: Verification) -> str:
    leak, reach = found.leak, percent(max(found.leak["reach"], 0.0))
    return f"Strongest leak: {leak['name']} of '{leak['concept']}', {reach} of the old predictions."


def _weakest(found: Verification) -> str:
    weak = found.weakest
    return (
        f"Weakest kept thing: '{weak['name']}', which {weak['still']} of {weak['of']} pictures still show. "
        f"Its pictures moved by {percent(weak['moved'], 1)} of their variance."
    )


def _items(found: Verification) -> list[tuple]:
    return [
        (
            item.status if item.decides else f"({item.status})",
            f"{item.side}: {item.name}",
            item.sentence,
            "" if item.figure is None else f"{item.figure:.2f}",
            f"{item.warn:g}, {item.fail:g}",
        )
        for item in found.items
    ]


def _wordings(found: Verification) -> list[str]:
    """Every way to write a concept; one that the unerased model does not follow has no figure."""
    rows = [
        (m.concept.target, w.probe.name, w.probe.prompt, percent(w.reach) if w.known else "not known to it")
        for m in found.concepts
        for w in m.ways
    ]
    return [
        "## Ways to write it",
        "",
        table(("concept", "way", "prompt", "reach"), rows),
        "",
        "Reach is 100 % where the model predicts as before the erasure, and 0 % where it is as far from that "
        "as the prediction for what takes the concept's place.",
        "",
    ]


def _kept(found: Verification) -> list[str]:
    if not found.kept:
        return []
    rows = [
        (d.name, f"{d.near}" if d.near else "", f"{d.still} of {d.usable}", percent(d.moved, 1))
        for d in found.kept[:SHOWN]
    ]
    left = len(found.kept) - len(rows)
    more = [f"{left} more things lost or moved less."] if left else []
    return [
        "## What stays",
        "",
        table(("thing", "neighbour of", "still shown", "moved, of its variance"), rows),
        "",
        *([*more, ""] if more else []),
    ]


def _judged(found: Verification) -> list[str]:
    """What the user's own judge saw, thing by thing."""
    if not found.judged or not found.judged.seen:
        return []
    boxes = any(s.counts_before for s in found.judged.seen)
    rows = [
        (s.name, "erased" if s.concept else "kept", s.pictures, s.before, s.after, *_boxes(s, boxes))
        for s in found.judged.seen
    ]
    head = ("thing", "which is", "pictures", "seen before", "seen after")
    head += ("exposed parts before", "exposed parts after") if boxes else ()
    plain = "Seen are pictures that show the thing rather than any other name of its kind."
    what = "Seen are pictures with an exposed part." if boxes else plain
    return [f"## What {found.judged.name} sees", "", table(head, rows), "", what, ""]


def _boxes(seen, boxes: bool) -> tuple:
    return (seen.counts_before["Total"], seen.counts_after["Total"]) if boxes else ()


def line(found: Verification) -> str:
    """The verdict on one line, for a terminal or a node."""
    worst = next((i for i in found.items if i.decides and i.status == found.status), None)
    return f"{found.status}: {found.sentence if found.status == at.PASS or not worst else worst.sentence}"
