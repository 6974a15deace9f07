"""Tables: CSV, TSV, and other column separators."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from ...errors import ConceptError
from ..kinds import KINDS
from ..syntax import Item, check, key, short
from .columns import HEADERS, NAMES, NONE, Columns, kind_named, word

#: names by which a first column marks a header row
KNOWN = frozenset().union(*NAMES.values()) | {
    "tag",
    "tags",
    "prompt",
    "prompts",
    "casenumber",
    "evaluationseed",
    "id",
    "index",
    "no",
    "nr",
}


def rows(text: str, source: str, columns: Columns, keep: bool) -> tuple[list[Item], list[str]]:
    """The entries of a table, and notes about dropped rows.

    Tables often have a row per prompt, so a repeated name with the same anchor is dropped.

    Raises:
        ConceptError: naming the line, or the columns between which to choose.
    """
    lines = _lines(text, source)
    if not lines:
        return [], []
    width = max(len(cells) for _, cells in lines)
    head = _head(lines[0][1], columns, width)
    prefix = "--keep-" if keep else "--"
    roles = {
        "concept": ("keep", "concept") if keep else ("concept",),
        "anchor": ("anchor",),
        "kind": ("kind",),
    }
    given = {"concept": columns.concept, "anchor": columns.anchor, "kind": columns.kind}
    options = {"concept": f"{prefix}column", "anchor": "--anchor-column", "kind": "--kind-column"}
    found = {
        role: _column(given[role], head, names, options[role], width, source) for role, names in roles.items()
    }
    if found["concept"] is None:
        if width > 1:
            shown = ", ".join(f"{i} '{short(c)}'" for i, c in enumerate(lines[0][1], start=1))
            raise ConceptError(
                f"{source}: the table has {width} columns and none is named 'concept'; name the one to read "
                f"by its number or header, such as {options['concept']} 1. The first row: {shown}"
            )
        found["concept"] = 0
    if keep:
        found["anchor"] = found["kind"] = None
    out, seen = [], {}
    for line, cells in lines[1 if head else 0 :]:
        item = _row(cells, line, source, found, options)
        if seen.setdefault((key(item.text), key(item.anchor or ""), item.kind), item) is item:
            out.append(item)
    repeated = len(lines) - bool(head) - len(out)
    rows = "1 row repeats a name and was" if repeated == 1 else f"{repeated:,} rows repeat a name and were"
    return out, [f"{source}: {rows} left out"] if repeated else []


def _lines(text: str, source: str) -> list[tuple[int, list[str]]]:
    """Non-empty rows with their line numbers."""
    separator_line = re.match(r"sep=(.)\r?\n", text)  # a spreadsheet's first line names the separator
    first = [line for line in text.splitlines() if line.strip()][:50]
    counts = {d: sum(re.sub('"[^"]*"', "", line).count(d) for line in first) for d in ",;\t|"}
    delimiter = separator_line[1] if separator_line else max(counts, key=counts.get)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    rows, before = [], 0
    try:
        for cells in reader:
            cells = [" ".join(c.split()) for c in cells]
            if any(cells) and not (separator_line and reader.line_num == 1):
                rows.append((before + 1, cells))
            before = reader.line_num
    except csv.Error as error:
        raise ConceptError(f"{source}, line {before + 1}: {error}; is this a table of text?") from error
    return rows


def _row(
    cells: list[str], line: int, source: str, found: dict[str, int | None], options: dict[str, str]
) -> Item:
    def cell(role):
        return None if found[role] is None else cells[found[role]] if found[role] < len(cells) else ""

    name = cell("concept")
    if not name:
        raise ConceptError(
            f"{source}, line {line}: column {found['concept'] + 1} is empty in this row; fill it in or "
            "remove the row"
        )
    kind = kind_named(cell("kind") or "")
    if kind is None:
        raise ConceptError(
            f"{source}, line {line}: '{short(cell('kind'))}' is not a kind; use {', '.join(KINDS)}, or "
            f"ignore that column with {options['kind']} {NONE}"
        )
    item = Item(name, source, line, cell("anchor"), kind, string=True)
    check(item)
    return item


def _head(first: Sequence[str], columns: Columns, width: int) -> list[str]:
    """Names of the columns, or an empty list if the first row is an entry."""
    named = [
        c for c in (columns.concept, columns.anchor, columns.kind) if c and not c.isdigit() and key(c) != NONE
    ]
    words = [word(c) for c in first if c]
    # in a row `Art Spiegelman, artist` only the first cell decides
    known = words[0] in (KNOWN if width > 1 else HEADERS)
    return list(first) if known or {word(n) for n in named} & set(words) else []


def _column(
    given: str, head: Sequence[str], roles: Sequence[str], option: str, width: int, source: str
) -> int | None:
    """Index of the column that an option names, or that has a known name."""
    names = [word(h) for h in head]
    if not given:
        for role in roles:
            found = [i for i, name in enumerate(names) if name in NAMES[role]]
            if len(found) > 1:
                raise ConceptError(
                    f"{source}: the columns {' and '.join(repr(head[i]) for i in found)} may both be meant; "
                    f"choose one by {option}"
                )
            if found:
                return found[0]
        return None
    if key(given) == NONE and roles[0] in ("anchor", "kind"):
        return None
    if word(given) in names:
        return names.index(word(given))
    if given.isdigit() and 1 <= int(given) <= width:
        return int(given) - 1
    there = (
        f"the columns are {', '.join(map(repr, head))}"
        if head
        else f"there is no header, so name it by its number, 1 to {width}"
    )
    raise ConceptError(f"{option} '{short(given)}': {source} has no such column; {there}")
