"""The erase list and keep list of a command, from options and files, and a report of what was read."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import ConceptError
from ..text import lists
from ..text.anchors import follow_anchors
from ..text.concepts import Concept, check_disjoint, kinds_of
from ..text.grammar import concepts_of, keep_of
from ..text.syntax import Item, key

SHOWN = 12  #: concepts listed one by one


@dataclass
class Read:
    """The lists of a command.

    Attributes:
        concepts: concepts to erase, with anchors that are not erased themselves.
        keep: concepts that must not change; empty: the default.
        notes: sentences about dropped or changed entries.
    """

    concepts: list[Concept] = field(default_factory=list)
    keep: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read(args: argparse.Namespace) -> Read:
    """The erase list and the keep list of a command.

    Raises:
        ConceptError: naming the file and the line, or the option.
    """
    erased, notes = concepts(args)
    keep_list, keep_notes = keep(args)
    check_disjoint(erased, keep_list)
    erased, anchor_notes = follow_anchors(erased)
    return Read(erased, keep_list, [*notes, *keep_notes, *anchor_notes])


def concepts(args: argparse.Namespace) -> tuple[list[Concept], list[str]]:
    """Concepts of ``--erase`` and ``--erase-file``. Empty only if the command allows it."""
    if not (args.erase or args.erase_file) and not args.erase_required:
        return [], []
    columns = lists.Columns(
        *(getattr(args, name, None) or "" for name in ("column", "anchor_column", "kind_column"))
    )
    entries, notes = _entries("--erase", args.erase, args.erase_file, columns)
    return concepts_of(entries, f"--erase-file {args.erase_file}" if args.erase_file else "--erase"), notes


def concepts_or_of_files(args: argparse.Namespace, required: bool) -> list[Concept]:
    """Concepts of ``--erase`` and ``--erase-file``; without these, what the files of ``--lora`` erase.

    Raises:
        ConceptError: if ``required``, and a file does not say what it erases.
    """
    from ..lora.erasure import ErasureLora

    given, _ = concepts(args)
    if given:
        return given
    found: dict[str, Concept] = {}
    for file in args.lora:
        own = [c for part in ErasureLora.load(file).parts() for c in part.concepts]
        if required and not own:
            raise ConceptError(f"--lora '{file}' does not say what it erases; name it with --erase")
        found |= {key(c.target): c for c in own}
    return list(found.values())


def keep(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The keep list of ``--keep`` and ``--keep-file``; empty if neither is given."""
    columns = lists.Columns(getattr(args, "keep_column", None) or "")
    entries, notes = _entries("--keep", args.keep, args.keep_file, columns, True)
    return keep_of(entries), notes


def _entries(
    option: str, given: Sequence[str], file: str | None, columns: lists.Columns, keep: bool = False
) -> tuple[list[Item], list[str]]:
    """The entries of the file, then those of the options, each with its position."""
    entries, notes = lists.read(file, f"{option}-file {file}", columns, keep) if file else ([], [])
    for text in given:
        entries += lists.from_text(text, option, keep=keep, numbered=len(text.splitlines()) > 1)
    return entries, notes


def report(read: Read, kind: str = "auto", default_keep: int | None = None) -> dict:
    """A JSON report of what was read.

    Args:
        kind: value of ``--kind``.
        default_keep: number of entries kept if the keep list is empty.
    """
    kinds = kinds_of(read.concepts, kind)
    return {
        "concepts": [
            {**k, "anchor": c.anchor, "strength": c.strength, "parts": list(c.parts)}
            for c, k in zip(read.concepts, kinds)
        ],
        "counts": dict(Counter(k["kind"] for k in kinds)),
        "keep": read.keep,
        "default_keep": None if read.keep else default_keep,
        "notes": read.notes,
    }


def lines(found: dict) -> list[str]:
    """The report as text: counts of concepts by kind and reason, and the number of kept entries."""
    concepts, keep = found["concepts"], found["keep"]
    groups = Counter((c["kind"], c["why"]) for c in concepts)
    kinds = ", ".join(f"{count:,} {kind} ({why})" for (kind, why), count in groups.most_common())
    out = [f"read {count(len(concepts), 'concept')}: {kinds}"]
    more = [
        (sum(bool(c["anchor"]) for c in concepts), "with an anchor"),
        (sum(c["strength"] != 1 for c in concepts), "with a strength"),
        (sum(bool(c["parts"]) for c in concepts), "combined"),
    ]
    if any(count for count, _ in more):
        out[0] += "; " + ", ".join(f"{count:,} {what}" for count, what in more if count)
    keep_text = (
        f"{len(keep):,} named"
        if keep
        else f"the default list of {found['default_keep']}"
        if found["default_keep"]
        else "the default list"
    )
    return [*out, f"keep: {keep_text}", *(f"note: {note}" for note in found["notes"])]


def _with_strength(concept: dict) -> str:
    strength = concept["strength"]
    return concept["concept"] if strength == 1 else f"{concept['concept']} @ {strength:g}"


def table(found: dict) -> list[str]:
    """A table of the first concepts."""
    rows = [
        (_with_strength(c), f"-> {c['anchor']}" if c["anchor"] else "(no anchor)", c["kind"], c["why"])
        for c in found["concepts"][:SHOWN]
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    out = [
        "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]) for row in rows
    ]
    left = len(found["concepts"]) - len(rows)
    return [*out, f"  and {left:,} more"] if left else out


def count(number: int, what: str) -> str:
    """A number with its noun, such as "2 concepts"."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


class DryRun(argparse.Action):
    """``--dry-run``: makes the output option optional."""

    def __init__(self, *args, spares: argparse.Action, **options):
        super().__init__(*args, nargs=0, default=False, **options)
        self.spares = spares

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, True)
        self.spares.required = False
