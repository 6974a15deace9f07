"""Concept lists, keep lists and list files of any contents: they are read and written back, or refused."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path

from hypothesis import strategies as st

from fault_trials import Fault, UnclearError, attempt
from trace_core.text import lists
from trace_core.text.concepts import Concept
from trace_core.text.grammar import concepts_of, keep_of, parse_concepts, parse_keep
from trace_core.text.lines import quoted

WORDS = ("cat", "Van Gogh", "naïve café", "猫", "Ünïcode", "still", "from", "a", "on a red background", "AND",
    "10,000", "C-3PO", "e\u0301", "\u200bcat", "İstanbul", "ß", "saber_\\(fate\\)", "null", "no")  # fmt: skip
SIGNS = ("->", "→", "<-", "=>", "@", " @ ", "@ 0.5", "@ 1e-9", "@ nan", "@ 1.2345678", " + ", " from ",
    ";", ",", '"', "'", "“", "”", "„", "«", "»", "#", "- ", "* ", "1. ", "• ", "(cat:1.2)", "((cat))",
    "[a|b]", "：", "{a|b}", "__x__", "<lora:x:1>", "embedding:x", "BREAK", "[", "]", "{", "}", "\\", "\t",
    " ", "\ufeff")  # fmt: skip
ANY = st.text(st.characters(), max_size=12)
PIECE = st.one_of(st.sampled_from(WORDS), st.sampled_from(SIGNS), ANY)
LINE = st.lists(PIECE, max_size=7).map("".join)
TEXT = st.one_of(st.lists(LINE, max_size=5).map("\n".join), st.text(st.characters(), max_size=80))
TAME = st.text(st.sampled_from("abcdefgXYZ éü猫12 "), min_size=1, max_size=20).map(
    lambda t: " ".join(t.split())
)
NAMES = st.lists(TAME.filter(bool), min_size=1, max_size=6, unique_by=lambda t: t.casefold())
WEIGHTS = st.floats(0, 2, exclude_min=True)


def plain(concept: Concept) -> tuple:
    return concept.target, concept.anchor, concept.strength, concept.parts


def concept_list(draw) -> None:
    """A text is read, and what is read is written as lines that read the same."""
    text = draw(TEXT)
    concepts, error = attempt(lambda: parse_concepts(text, "erase"), "erase")
    if error:
        return
    again, error = attempt(lambda: parse_concepts("\n".join(map(str, concepts)), "erase"), "erase")
    if error or list(map(plain, again)) != list(map(plain, concepts)):
        raise UnclearError(f"{text!r} is read as {concepts}, and its lines as {again or error}")


def concept_made(draw) -> None:
    """A concept of any name, anchor and strength is written as a line that reads the same."""
    target, anchor = (draw(st.one_of(TAME, LINE)).strip() for _ in range(2))
    concept, error = attempt(lambda: one(target, anchor, draw(WEIGHTS)), "list")
    if error:
        return
    found, error = attempt(lambda: parse_concepts(str(concept), "erase"), "erase")
    if error or list(map(plain, found)) != [plain(concept)]:
        raise UnclearError(f"{concept} is written as {str(concept)!r} and read as {found or error}")


def one(target: str, anchor: str, strength: float) -> Concept:
    """The concept of an object in a JSON list, which is read as a string, whatever its signs."""
    data = json.dumps([{"concept": target, "anchor": anchor, "strength": strength}])
    (concept,) = concepts_of(lists.from_text(data, "list"), "list")
    return concept


def keep_list(draw) -> None:
    text = draw(TEXT)
    kept, error = attempt(lambda: parse_keep(text, "keep"), "keep")
    if error:
        return
    again, error = attempt(lambda: parse_keep("\n".join(map(quoted, kept)), "keep"), "keep")
    if error or again != kept:
        raise UnclearError(f"{text!r} is read as {kept}, and its lines as {again or error}")


def written(names: list[str], ending: str) -> str:
    """The same names in a file of a form."""
    if ending == "txt":
        return "\n".join(names)
    if ending in ("json", "yaml"):  # JSON is YAML
        return json.dumps(names)
    if ending == "jsonl":
        return "\n".join(json.dumps(name) for name in names)
    out = io.StringIO()
    rows = csv.writer(out, delimiter="\t" if ending == "tsv" else ",")
    rows.writerows([["concept", "anchor"], *([name, ""] for name in names)])
    return out.getvalue()


ENDINGS = ("txt", "json", "jsonl", "yaml", "csv", "tsv")


def list_file(draw) -> None:
    """A file of names in any form holds these names."""
    names, ending = draw(NAMES), draw(st.sampled_from(ENDINGS))
    encoding = draw(st.sampled_from(("utf-8", "utf-8-sig", "utf-16")))
    found, error = read(written(names, ending).encode(encoding), ending, False)
    if error or [c.target for c in found] != names:
        raise UnclearError(f"{names} as {ending}: {found or error}")


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), LINE),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(ANY, st.sampled_from(("concept", "anchor", "kind", "strength", "keep",
            "multi_concept", "guide_concepts", "target"))), inner, max_size=4),
    ),
    max_leaves=12,
)  # fmt: skip
CONTENT = st.one_of(
    st.binary(max_size=60),
    TEXT.map(lambda t: t.encode("utf-8", "surrogatepass")),
    JSON.map(lambda v: json.dumps(v).encode()),
    st.lists(st.lists(LINE, max_size=4).map(",".join), max_size=4).map(
        lambda rows: "\n".join(rows).encode("utf-8", "surrogatepass")
    ),
)


def foreign_file(draw) -> None:
    """A file of any contents is a list, or is refused by its name."""
    read(draw(CONTENT), draw(st.sampled_from(ENDINGS)), draw(st.booleans()))


def read(data: bytes, ending: str, keep: bool):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"list.{ending}"
        path.write_bytes(data)

        def work():
            items, _ = lists.read(path, "list.file", keep=keep)
            return keep_of(items) if keep else concepts_of(items, "list.file")

        return attempt(work, "list.file")


FAULTS = (
    Fault("concept lists of any text", 110, concept_list),
    Fault("concepts of any name", 60, concept_made),
    Fault("keep lists of any text", 60, keep_list),
    Fault("list files in every form", 40, list_file),
    Fault("list files of any bytes", 80, foreign_file),
)
