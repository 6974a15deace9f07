"""A protocol's figures as Markdown, in the form of the papers' tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..judges import nudity
from ..markdown import escaped, shortened, table
from . import cifar10
from .run import AFTER, BEFORE

SIDES = {BEFORE: "without the erasure", AFTER: "with the erasure"}
MOST = 200  #: classes in a table


def percent(share: float | None) -> str:
    """A share in percent with two digits, as the papers have it."""
    return "-" if share is None else f"{100 * share:.2f}"


@escaped
def markdown(found: Mapping) -> str:
    """The report of a result of :mod:`trace_core.cli.protocols`."""
    lines = [f"# {title(found)}", "", *_body(found), ""]
    s = found["settings"]
    sampler = s["sampler"]
    lines += [
        f"{found['pictures']} pictures a side, judged by {found['judge']}. Sampled with {sampler['sampler']}/"
        f"{sampler['scheduler']}, {sampler['steps']} steps, guidance {_guidance(found)}, "
        f"{sampler['width']} x {sampler['height']} pixels.",
    ]
    return "\n".join(lines + [text for note in found["notes"] for text in ("", f"> **Note:** {note}")])


def title(found: Mapping) -> str:
    gone = shortened(found["erased"], 8)
    return f"{found['protocol']}: {gone} erased" if gone else found["protocol"]


def _guidance(found: Mapping) -> str:
    return "of each row" if found.get("row_guidance") else f"{found['settings']['sampler']['cfg']:g}"


def _body(found: Mapping) -> list[str]:
    if found["protocol"] == cifar10.NAME:
        return [summary(found), "", *_words(found)]
    if found["kind"] == nudity.NUDENET:
        return [summary(found), "", _shares(found)]
    return [summary(found)]


def summary(found: Mapping) -> str:
    """The table that the papers have."""
    sides = [side for side in SIDES if side in found]
    if found["protocol"] == cifar10.NAME:
        return _objects(found, sides)
    if found["kind"] == nudity.NUDENET:
        rows = [(SIDES[side], *nudity.row_of(found[side]["counts"])) for side in sides]
        return table(("exposed, boxes", *nudity.HEADINGS), rows)
    return _accuracy(found, sides)


def _objects(found: Mapping, sides: Sequence[str]) -> str:
    """MACE's table 1: the figures by top-1, and those of its program, which are mean probabilities."""
    keys = ("acc_e", "acc_s", "acc_g", "h_o")
    rows = [(SIDES[side], *(percent(found[side][k]) for k in keys)) for side in sides]
    rows += [
        (f"{SIDES[side]}, mean probability", *(percent(found[side]["mean_prob"][k]) for k in keys))
        for side in sides
    ]
    if found["as_paper"]:
        rows += [
            (name, *("-" if v is None else f"{v:.2f}" for v in values))
            for name, values in cifar10.PAPER.items()
        ]
    return table(("in %", "Acc_e, lower is better", "Acc_s, higher", "Acc_g, lower", "H_o, higher"), rows)


def _words(found: Mapping) -> list[str]:
    """Every class and synonym."""
    sides = [side for side in SIDES if side in found]
    words = found[sides[0]]["per_word"]
    rows = [
        (word, spec["class"], spec["group"], *(percent(found[s]["per_word"][word]["top1"]) for s in sides))
        for word, spec in words.items()
    ]
    head = ("in the prompt", "counts for", "group", *(f"seen in %, {SIDES[s]}" for s in sides))
    return [table(head, rows)]


def _shares(found: Mapping) -> str:
    parts = [
        f"{found[side]['pictures_with']} of {found['pictures']} pictures {SIDES[side]}"
        for side in SIDES
        if side in found
    ]
    return (
        f"An exposed part was found in {' and in '.join(parts)}. The total is that of MACE's table 2, which "
        f"leaves out the last column. The threshold is {nudity.THRESHOLD:g}."
    )


def _accuracy(found: Mapping, sides: Sequence[str]) -> str:
    """Accuracy by class."""
    classes = found[sides[0]]["per_class"]
    rows = [("all", found["judged"], *(percent(found[s]["accuracy"]) for s in sides))]
    for key, label in (("acc_e", "erased classes (Acc_e)"), ("acc_s", "other classes (Acc_s)")):
        if found[sides[0]][key] is not None:
            rows.append((label, "", *(percent(found[s][key]) for s in sides)))
    rows += [
        (name, spec["pictures"], *(percent(found[s]["per_class"][name]["top1"]) for s in sides))
        for name, spec in list(classes.items())[:MOST]
    ]
    if len(classes) > MOST:
        rows.append((f"{len(classes) - MOST} more classes are in the JSON", "", *("" for _ in sides)))
    return table(("class", "pictures", *(f"seen in %, {SIDES[s]}" for s in sides)), rows)
