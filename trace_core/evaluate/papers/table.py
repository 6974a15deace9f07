"""Prompts of a table such as I2P's: a prompt a row, with its seed, guidance and class where it has them."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from ...errors import TraceError
from ...text.concepts import same
from ..metrics import h_c
from .asked import ROW, Asked

MAX_BYTES = 64 << 20
#: Names of columns by role, without case, blanks, hyphens and underscores; the first that is there is taken
COLUMNS = {
    "prompt": ("prompt", "prompts", "caption"),
    "seed": ("evaluationseed", "seed", "sdseed"),
    "guidance": ("evaluationguidance", "guidance", "guidancescale", "sdguidancescale", "cfg"),
    "class": ("class", "label", "object", "artist", "category", "categories"),
}


@dataclass(frozen=True)
class Table:
    """The rows of a table.

    Attributes:
        source: the file's name.
        asked: an entry a row, in the file's order.
        columns: the file's name of each column that was read, by role.
        names: the classes in the order in which they first appear; empty without such a column.
    """

    source: str
    asked: tuple[Asked, ...]
    columns: Mapping[str, str]
    names: tuple[str, ...]


def read(path: str | Path, seed: int = 0, class_column: str | None = None, limit: int | None = None) -> Table:
    """The prompts of a CSV or TSV file.

    Args:
        seed: row i of a table without seeds has ``seed * 100003 + i``.
        class_column: the column with the class that a picture should show; None: a column of a known name.
        limit: read this many rows; None: all.

    Raises:
        TraceError: naming the file, its columns or the line, and the remedy.
    """
    path = Path(path)
    rows = _rows(path)
    head, body = rows[0][1], rows[1:]
    places = _places(path.name, head, class_column)
    out = []
    for line, cells in body[:limit]:
        cell = {role: cells[at].strip() if at < len(cells) else "" for role, at in places.items()}
        if not cell["prompt"]:
            raise TraceError(f"{path.name}, line {line}: the prompt is empty; fill it in or remove the row")
        row_seed = _number(cell.get("seed"), path.name, line, head, places.get("seed"))
        row_guidance = _number(cell.get("guidance"), path.name, line, head, places.get("guidance"))
        shows = cell.get("class", "")
        out.append(
            Asked(
                " ".join(cell["prompt"].split()),
                seed * 100003 + len(out) if row_seed is None else int(row_seed),
                shows,
                ROW,
                shows,
                row_guidance,
            )
        )
    if not out:
        raise TraceError(f"'{path.name}' has no rows below its header; add prompts, one a row")
    names = tuple(dict.fromkeys(a.shows for a in out if a.shows))
    return Table(path.name, tuple(out), {role: head[at] for role, at in places.items()}, names)


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Rows that are not empty, with their line numbers; the first one is the header."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TraceError(f"'{path}' is too large for a table of prompts (64 MB at most); split it")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise TraceError(
            f"cannot read --protocol '{path}': {error.strerror or error}; give `cifar10` or a table (.csv)"
        ) from error
    except UnicodeDecodeError as error:
        raise TraceError(f"'{path.name}' is not UTF-8; save the table as 'CSV UTF-8'") from error
    first = re.sub('"[^"]*"', "", text.split("\n", 1)[0])
    delimiter = max(",;\t", key=first.count)
    reader, found, before = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [], 0
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                found.append((before + 1, cells))
            before = reader.line_num
    except csv.Error as error:
        raise TraceError(f"{path.name}, line {before + 1}: {error}; is this a table of text?") from error
    if not found:
        raise TraceError(
            f"'{path.name}' is empty; it needs a header with the column `prompt`, and a row a picture"
        )
    return found


def _word(text: str) -> str:
    return re.sub(r"[\s_-]", "", text).casefold()


def _places(source: str, head: Sequence[str], class_column: str | None) -> dict[str, int]:
    """Index of each column by role.

    Raises:
        TraceError: if there is no prompt, or not the column that an option names.
    """
    words = [_word(h) for h in head]
    shown = ", ".join(f"'{h}'" for h in head if h.strip())
    found = {}
    for role, names in COLUMNS.items():
        at = next((words.index(name) for name in names if name in words), None)
        if at is not None:
            found[role] = at
    if "prompt" not in found:
        raise TraceError(
            f"'{source}' has no column `prompt`; its columns are {shown}. Name the column with the prompts so"
        )
    if class_column is not None:
        if _word(class_column) not in words:
            raise TraceError(
                f"--class-column '{class_column}': '{source}' has no such column; its columns are {shown}"
            )
        found["class"] = words.index(_word(class_column))
    return found


def _number(text: str | None, source: str, line: int, head: Sequence[str], at: int | None) -> float | None:
    """A number of a cell; None for an empty one."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 2**64:
        raise TraceError(
            f"{source}, line {line}: '{text}' in the column '{head[at]}' is not a number from 0 on; "
            "correct it"
        )
    return value


def accuracy(entries: Sequence[Asked], answers: Sequence[Mapping], erased: Sequence[str] = ()) -> dict:
    """Accuracy by class, of answers with ``seen`` and ``prob``.

    Args:
        erased: classes that were erased; with some of both the means of both are given.

    Returns:
        ``accuracy`` over all rows with a class; ``acc_e, acc_s, h_c`` if there are erased and kept classes,
        else None; ``per_class``.
    """
    per_class = {}
    for name in dict.fromkeys(e.shows for e in entries if e.shows):
        of = [a for e, a in zip(entries, answers) if e.shows == name]
        per_class[name] = {
            "erased": any(same(name, e) for e in erased),
            "pictures": len(of),
            "top1": fmean(a["seen"] == name for a in of),
            "prob": fmean(a["prob"] for a in of),
        }
    gone, kept = ([v["top1"] for v in per_class.values() if v["erased"] is side] for side in (True, False))
    both = bool(gone and kept)
    return {
        "accuracy": fmean(a["seen"] == e.shows for e, a in zip(entries, answers) if e.shows),
        "acc_e": fmean(gone) if gone else None,
        "acc_s": fmean(kept) if both else None,
        "h_c": h_c(fmean(gone), fmean(kept)) if both else None,
        "per_class": per_class,
    }
