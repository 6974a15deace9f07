"""List files: text, CSV, TSV, JSON and YAML, as people save them and as research repositories publish them.

Supported are lists of names, of ``[name, kind]``, and of objects with a name and an anchor; objects
``{name: anchor}``; configuration files with such a list under a known name (``multi_concept`` and
``mapping_concept`` of MACE, ``concepts`` and ``guide_concepts`` of UCE, ``target`` and ``neutral`` of LECO
and SPM); and tables with a header. An ambiguous file is refused, and the error names the option that selects
a part.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import ConceptError
from ..syntax import Item, items
from .columns import Columns
from .records import entries, json_data, yaml_data
from .tables import rows

__all__ = ["Columns", "from_text", "read"]

MAX_BYTES = 32 << 20


def read(
    path: str | Path, source: str = "", columns: Columns | None = None, keep: bool = False
) -> tuple[list[Item], list[str]]:
    """The entries of a list file. The ending decides: .csv, .tsv, .json, .jsonl, .yaml, .yml, otherwise text.

    Args:
        source: name of the file in errors; empty: its path.
        columns: columns of a table or keys of an object. With a column, a text file is read as a table.
        keep: True to read the keep list of a file that has both lists.

    Returns:
        the entries, and sentences about dropped rows.

    Raises:
        ConceptError: naming the file, the line if known, and the remedy.
    """
    path, columns = Path(path), columns or Columns()
    source = source or str(path)
    text, ending = _text(path, source), path.suffix.lower()
    if ending in (".json", ".jsonl"):
        return entries(json_data(text, source, ending == ".jsonl"), source, columns, keep), []
    if ending in (".yaml", ".yml"):
        return entries(yaml_data(text, source), source, columns, keep), []
    if ending in (".csv", ".tsv") or columns.concept:
        return rows(text, source, columns, keep)
    return from_text(text, source, columns, keep), []


def from_text(
    text: str, source: str, columns: Columns | None = None, keep: bool = False, numbered: bool = True
) -> list[Item]:
    """The entries of a text from a file or a text box. Pasted JSON is parsed as JSON."""
    if text.lstrip("\ufeff \t\r\n")[:1] in ("[", "{"):
        try:
            data = json_data(text, source)
        except ConceptError:
            data = None  # text lines that begin with a bracket
        if data is not None:
            return entries(data, source, columns or Columns(), keep)
    table = (
        ""
        if columns is None
        else "If it is a table, name the column with the names, by its number or header: "
        + ("--keep-column 1" if keep else "--column 1")
    )
    return list(items(text, source, table, numbered))


def _text(path: Path, source: str) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConceptError(
                f"cannot read '{path}': {size / 2**20:,.0f} MB is too large for a list; choose another file"
            )
        data = path.read_bytes()
    except OSError as error:
        raise ConceptError(
            f"cannot read '{path}': {error.strerror or error}; choose a file that can be read"
        ) from error
    if data[:4] == b"PK\x03\x04":
        raise ConceptError(
            f"{source} is a spreadsheet, a document or an archive; save it as CSV or as plain text"
        )
    wide = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}.get(data[:2])
    try:
        return data.decode(wide or "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConceptError(
            f"{source}, line {line}: not UTF-8; save the file as UTF-8 ('CSV UTF-8' in a spreadsheet)"
        ) from error
