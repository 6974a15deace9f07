"""Lists as people write them: layout, names, and prompt syntax.

Layout is removed: byte order marks, bullets (``-``, ``*``, ``•``), numbering (``1.``, ``2)``, ``a)``), blank
lines, ``# comments``, and the brackets, quotes and commas of a list pasted from Python or JSON. ``;``
separates entries. A comma is refused because it may separate two names or belong to one. What cannot be a
name is refused too, see :mod:`.refused`. Text in quotes is taken literally.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import ConceptError
from .refused import no_name, printable, short

MAX_CHARACTERS = 300  #: per concept; the text encoders read 77 tokens

#: All spellings of an arrow: typed signs, single characters, word-processor forms
ARROW = re.compile(r"[-–—−‒=]+>|[→⇒⟶⟹➔➜➝➞➡⇨↦⟼]\ufe0f?")
BACKWARDS = re.compile(r"<[-–—−=]+>?|[←⇐⟵⟸↔⇔⬅]\ufe0f?")
QUOTED = r'"[^"]*"|“[^”]*”|„[^“”]*[“”]|«[^»]*»'

_COMMA = re.compile(r"(?<!\d)[,，、،]|[,，、،](?!\d)")  # not the comma in 10,000
_SEMICOLON = re.compile("[;；؛]")
# byte order mark and zero-width space; joiners and direction marks belong to names
_EDGES = "\ufeff\u200b\u2060"
_BULLET = re.compile(
    r"(?:[-*–—·]\s+|[•‣◦▪●○]\s*|[-–—](?=[^\W\d_])|(?:\d{1,4}[.)]|[a-zA-Z]\))\s+)(?:\[[ xX]?\]\s+)?(?=.*\w)"
)
_STRING = rf"(?:{QUOTED}|'[^']*'(?=\s*(?:[,\])]|$|\#)))"
_PASTED = re.compile(
    rf"(?:\w+\s*=\s*)?[\[(]*\s*{_STRING}(?:\s*,\s*{_STRING})*\s*,?\s*[\])]*\s*,?\s*(?:\#.*)?"
)
#: quoted text, or an escaped bracket outside it: saber_\(fate\), as prompts have it
_ESCAPED = re.compile(rf"({QUOTED})|\\([()\[\]{{}}])")
_BRACKETS = re.compile(r"(?:\w+\s*=\s*)?[\[\](){}]+,?")


@dataclass(frozen=True)
class Item:
    """One entry of a list, with its position.

    Attributes:
        text: the entry with arrows and strengths, without layout.
        source: file, option or text box.
        line: line number in the source, from 1; 0 if the source has no lines.
        anchor: the anchor from a column of the list; None if ``text`` itself may contain an arrow.
        kind: the kind from the list, one of :data:`trace_core.text.kinds.KINDS`, or empty.
        strength: the strength from the list, or None.
        string: True if the text is a string of a file or program. Its commas and joining words then belong to
            the name.
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
    """A name in one case, with single spaces, in Unicode form NFKC."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def masked(line: str) -> str:
    """A line of the same length, with quoted parts replaced so that they contain no grammar."""
    return re.sub(QUOTED, lambda found: "\0" * len(found[0]), line)


def split(line: str, sign: str | re.Pattern) -> list[str]:
    """The parts of a line between the signs outside quotes."""
    pattern = re.compile(re.escape(sign)) if isinstance(sign, str) else sign
    parts, start = [], 0
    for found in pattern.finditer(masked(line)):
        parts.append(line[start : found.start()].strip())
        start = found.end()
    return [*parts, line[start:].strip()]


def plain(part: str) -> str:
    """A part without its quotes, if they surround the whole part."""
    return " ".join(part[1:-1].split()) if re.fullmatch(QUOTED, part) else part


def items(text: str, source: str, table: str = "", numbered: bool = True) -> Iterator[Item]:
    """The entries of a text list, one per line.

    Args:
        table: the remedy to name in errors if the text is a table with columns.
        numbered: True if a reader can find a line by its number.

    Raises:
        ConceptError: naming ``source`` and the line: a comma outside quotes, prompt syntax, an entry that is
            too long, control characters.
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
            f"{first.where}: '{short(first.text)}' contains a comma"
            + (f" (and {more:,} more of the list)" if more else "")
            + "; write one name per line, or put a semicolon between two names, or put double quotes around "
            'a name with a comma, such as "Washington, D.C."' + (f". {table}" if table else "")
        )


def check(item: Item) -> None:
    """Refuse an entry that cannot be a name.

    Raises:
        ConceptError: as :func:`items`.
    """
    for text in filter(None, (item.text, item.anchor)):
        if len(text) > MAX_CHARACTERS:
            raise ConceptError(
                f"{item.where}: {len(text)} characters, more than the text encoder can read; "
                f"shorten '{short(text)}' to {MAX_CHARACTERS} or split it over several lines"
            )
        if any(unicodedata.category(c) in ("Cc", "Cs", "Co") for c in text):
            raise ConceptError(
                f"{item.where}: '{short(printable(text))}' contains control characters; remove them, or save "
                "the file as UTF-8"
            )
        for part in split(text, ARROW):
            if problem := no_name(part, masked(part), typed=not item.string):
                raise ConceptError(f"{item.where}: {problem}; if it is a name, put it in double quotes")


def _entries(text: str, source: str, numbered: bool) -> Iterator[Item]:
    """The entries between line ends and semicolons, without layout."""
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
            part = _ESCAPED.sub(lambda found: found[1] or found[2], part)
            if part:
                yield Item(part, source, number)


def _without_comment(raw: str) -> str:
    found = re.search(r"(?<!\w)#", masked(raw))  # C# is a name
    return raw[: found.start()] if found else raw


def _is_listed(part: str) -> bool:
    """Whether a part has commas only at its ends."""
    return not _COMMA.search(masked(part.strip(",，、، ")))


def _pasted(line: str) -> list[str] | None:
    """The strings of a line pasted from a program's list, or None.

    A single string in double quotes is a quoted name of the grammar, not a pasted list.
    """
    bare = line[found.end() :] if (found := _BULLET.match(line)) else line
    if not _PASTED.fullmatch(bare) or re.fullmatch(QUOTED, bare.split("#")[0].strip()):
        return None
    return [" ".join(found[0][1:-1].split()) for found in re.finditer(_STRING, bare.split(" #")[0])]


def reads_as_it_is(text: str) -> bool:
    """Whether a line with only this text, or with more behind it, parses to one entry with the same text."""
    if _BULLET.match(f"{text} a"):
        return False
    try:
        return [(i.text, i.string) for i in items(text, "")] == [(text, False)]
    except ConceptError:
        return False


def is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, re.ASCII | re.IGNORECASE) is not None
