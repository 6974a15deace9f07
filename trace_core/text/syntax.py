"""Lists as people write them, as text: what is layout, what is a name, and what is syntax of prompts.

Layout is left out: byte order marks, bullets (``-``, ``*``, ``•``), numbering (``1.``, ``2)``), blank lines,
``# comments``, brackets, quotes and commas of a list that was pasted from Python or JSON. ``;`` separates. A
comma is a question (a name, or two?) and refused, and so are weights and keywords of prompts, which no text
encoder would read as a name. What stands in quotes is a name as it is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import ConceptError

MAX_CHARACTERS = 300  #: of one concept; the text encoders read 77 tokens

#: Every form in which an arrow comes: typed, of one character, as word processors make it
ARROW = re.compile(r"[-–—−‒=]+>|[→⇒⟶⟹➔➜➝➞➡⇨↦⟼]\ufe0f?")
BACKWARDS = re.compile(r"<[-–—−=]+>?|[←⇐⟵⟸↔⇔⬅]\ufe0f?")
QUOTED = r'"[^"]*"|“[^”]*”|„[^“”]*[“”]|«[^»]*»'

_COMMA = re.compile(r"(?<!\d)[,，、،]|[,，、،](?!\d)")  # not in 10,000
_SEMICOLON = re.compile("[;；؛]")
# byte order mark and what has no width; joiners and marks of direction belong to names
_EDGES = "\ufeff\u200b\u2060"
_BULLET = re.compile(r"(?:[-*–—·]\s+|[•‣◦▪●○]\s*|[-–—](?=[^\W\d_])|\d{1,4}[.)]\s+)(?:\[[ xX]?\]\s+)?(?=.*\w)")
_STRING = rf"(?:{QUOTED}|'[^']*'(?=\s*(?:[,\])]|$|\#)))"
_PASTED = re.compile(
    rf"(?:\w+\s*=\s*)?[\[(]*\s*{_STRING}(?:\s*,\s*{_STRING})*\s*,?\s*[\])]*\s*,?\s*(?:\#.*)?"
)
_BRACKETS = re.compile(r"(?:\w+\s*=\s*)?[\[\](){}]+,?")

#: Syntax of prompts, each with what to do instead
_SYNTAX: tuple[tuple[re.Pattern, str], ...] = (
    (
        re.compile(r"<\s*(?:lora|lyco|hypernet|embedding)\s*:[^>]*>?", re.IGNORECASE),
        "loads a file in some user interfaces and names nothing; leave it out",
    ),
    (
        re.compile(r"\bembedding:\S*", re.IGNORECASE),
        "is a trained embedding, which has no name in the text encoder; write what it draws in words",
    ),
    (
        re.compile(r"\([^()]*:\s*[-+]?(?:\d+\.?\d*|\.\d+)\s*\)"),
        "is a weight of prompts; write the name alone, and `name @ 0.5` to erase half of it",
    ),
    (
        re.compile(r"(?<=[^\W\d_])::?[-+]?(?:\d\.\d+|\.\d+|\d)$"),
        "is a weight of prompts; write the name alone, and `name @ 0.5` to erase half of it",
    ),
    (re.compile(r"\(\([^()]*\)\)"), "is an emphasis of prompts; write the name alone"),
    (
        re.compile(r"^\[[^\[\]]*\]$|\[\[[^\[\]]*\]\]|\[[^\[\]]*[:|][^\[\]]*\]"),
        "is an emphasis or a switch of prompts; write the name alone",
    ),
    (
        re.compile(r"\{[^{}]*\|[^{}]*\}"),
        "is a choice of wildcard prompts; write each of them on a line of its own",
    ),
    (
        re.compile(r"(?:^|(?<=\s))__[\w/*-]+__(?=\s|$)"),
        "is a wildcard; write the names that it stands for, one a line",
    ),
)
_KEYWORD = re.compile(r"(?:^|(?<=\s))(BREAK|AND|ADDCOMM|ADDROW|ADDCOL|ADDBASE)(?=\s|$)")


@dataclass(frozen=True)
class Item:
    """One entry of a list, and where it stands.

    Attributes:
        text: what it says, with arrows and strengths, but without layout.
        source: file, option or text box.
        line: in it, from 1; 0 where there are none.
        anchor: of a list with a column for it; None where the text may hold one itself.
        kind: of a list that says it, one of :data:`trace_core.text.kinds.KINDS`.
        strength: of a list that says it.
        string: the text is a string of a file or of a program: commas, and words that would combine two
            things, belong to the name.
    """

    text: str
    source: str
    line: int = 0
    anchor: str | None = None
    kind: str = ""
    strength: float | None = None
    string: bool = False

    @property
    def where(self) -> str:
        return f"{self.source}, line {self.line}" if self.line else self.source


def key(text: str) -> str:
    """What two spellings of one name have in common: no case, one kind of white space, one Unicode form."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def masked(line: str) -> str:
    """A line, as long as it was, without what stands in quotes, which is no grammar."""
    return re.sub(QUOTED, lambda found: "\0" * len(found[0]), line)


def split(line: str, sign: str | re.Pattern) -> list[str]:
    """A line's parts between the signs that stand outside quotes."""
    pattern = re.compile(re.escape(sign)) if isinstance(sign, str) else sign
    parts, start = [], 0
    for found in pattern.finditer(masked(line)):
        parts.append(line[start : found.start()].strip())
        start = found.end()
    return [*parts, line[start:].strip()]


def plain(part: str) -> str:
    """A part without the quotes around it, if they stand around all of it."""
    return " ".join(part[1:-1].split()) if re.fullmatch(QUOTED, part) else part


def items(text: str, source: str, table: str = "", numbered: bool = True) -> Iterator[Item]:
    """The entries of a list that is written as text, one a line.

    Args:
        table: what to do if it is a table with columns, for the error.
        numbered: whether lines have numbers that a reader can find.

    Raises:
        ConceptError: naming ``source`` and the line: a comma outside quotes, syntax of prompts, an entry that
            is too long, control characters.
    """
    commas = []
    for item in _entries(text, source, numbered):
        if not item.string and _COMMA.search(masked(item.text)):
            commas.append(item)
            continue
        if not commas:
            check(item)
            yield item
    if commas:
        first, more = commas[0], len(commas) - 1
        raise ConceptError(
            f"{first.where}: '{short(first.text)}' holds a comma"
            + (f" (and {more:,} more of the list)" if more else "")
            + "; write one a line or a semicolon between two, or double quotes around a name with a comma, "
            "such as "
            '"Washington, D.C."' + (f". {table}" if table else "")
        )


def check(item: Item) -> None:
    """Refuse what cannot be a name.

    Raises:
        ConceptError: as :func:`items`.
    """
    for text in filter(None, (item.text, item.anchor)):
        if len(text) > MAX_CHARACTERS:
            raise ConceptError(
                f"{item.where}: {len(text)} characters, of which the text encoder would read a part; "
                f"shorten '{short(text)}' to {MAX_CHARACTERS} or split it over several lines"
            )
        if any(unicodedata.category(c) in ("Cc", "Cs", "Co") for c in text):
            raise ConceptError(f"{item.where}: '{short(text)}' holds control characters; remove them")
        for part in split(text, ARROW):
            if said := _prompt_syntax(part):
                raise ConceptError(f"{item.where}: {said}; a name that is written so goes into double quotes")


def _prompt_syntax(part: str) -> str:
    """What in a part is syntax of prompts, and what to do; empty if it is a name."""
    hidden = masked(part)
    for pattern, remedy in _SYNTAX:
        if found := pattern.search(hidden):
            return f"{_in(found[0], part)} {remedy}"
    found = _KEYWORD.search(hidden)
    # ROCK AND ROLL is in capitals altogether
    if found and (any(c.islower() for c in hidden) or hidden.strip() == found[0]):
        return (
            f"{_in(found[0], part)} is a keyword of prompts; write what stands on both sides of it on "
            "lines of their own"
        )
    return ""


def _in(found: str, part: str) -> str:
    return f"'{short(found)}'" if found == part else f"'{short(found)}' in '{short(part)}'"


def _entries(text: str, source: str, numbered: bool) -> Iterator[Item]:
    """Lines and what stands between semicolons, without layout."""
    for number, raw in enumerate(text.lstrip(_EDGES).splitlines(), start=1):
        number = number if numbered else 0
        line = _without_comment(raw).strip(_EDGES + " \t")
        string = _pasted(line if "'" not in raw else raw.strip())
        if string is not None:
            yield from (Item(s, source, number, string=True) for s in string if s)
            continue
        line = " ".join(line.split())
        if not line or _BRACKETS.fullmatch(line):
            continue
        line = line[found.end() :] if (found := _BULLET.match(line)) else line
        for part in split(line, _SEMICOLON):
            part = part.strip(",，、، ") if _is_listed(part) else part
            part = re.sub(r"\\([()\[\]{}])", r"\1", part)  # saber_\(fate\), as prompts have it
            if part:
                yield Item(part, source, number)


def _without_comment(raw: str) -> str:
    end = masked(raw).find("#")
    return raw if end < 0 else raw[:end]


def _is_listed(part: str) -> bool:
    """Whether the commas of a part are those at its ends."""
    return not _COMMA.search(masked(part.strip(",，、، ")))


def _pasted(line: str) -> list[str] | None:
    """The strings of a line that was pasted from a list of a program, or None. One string in double quotes
    alone is a name of ours.
    """
    bare = line[found.end() :] if (found := _BULLET.match(line)) else line
    if not _PASTED.fullmatch(bare) or re.fullmatch(QUOTED, bare.split("#")[0].strip()):
        return None
    return [" ".join(found[0][1:-1].split()) for found in re.finditer(_STRING, bare.split(" #")[0])]


def reads_as_it_is(text: str) -> bool:
    """Whether a line with this text alone is an entry of just this text."""
    try:
        return [(i.text, i.string) for i in items(text, "")] == [(text, False)]
    except ConceptError:
        return False


def is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, re.ASCII | re.IGNORECASE) is not None
