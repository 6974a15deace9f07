"""What stands in a list and is no name: prompt syntax, file names, other arrows, markup.

No text encoder would read such text as the name that is meant, so that the erasure would do nothing or too
much, in silence.
"""

from __future__ import annotations

import re

#: prompt syntax, with the remedy for each
_SYNTAX: tuple[tuple[re.Pattern, str], ...] = (
    (
        re.compile(r"<\s*(?:lora|lyco|hypernet|embedding)\s*:[^>]*>?", re.IGNORECASE),
        "loads a file in some user interfaces and is not a name; leave it out",
    ),
    (
        re.compile(r"\bembedding:\S*", re.IGNORECASE),
        "is a trained embedding, which has no words in the text encoder; write what it draws in words",
    ),
    (
        re.compile(r"\([^()]*:\s*[-+]?(?:\d+\.?\d*|\.\d+)\s*\)"),
        "is a prompt weight; write the name alone, and `name @ 0.5` to erase half of it",
    ),
    (
        re.compile(r"(?<=[^\W\d_])::?[-+]?(?:\d\.\d+|\.\d+|\d)$"),
        "is a prompt weight; write the name alone, and `name @ 0.5` to erase half of it",
    ),
    (re.compile(r"\(\([^()]*\)\)"), "is prompt emphasis; write the name alone"),
    (
        re.compile(r"^\[[^\[\]]*\]$|\[\[[^\[\]]*\]\]|\[[^\[\]]*[:|][^\[\]]*\]"),
        "is prompt emphasis or prompt scheduling; write the name alone",
    ),
    (
        re.compile(r"\{[^{}]*\|[^{}]*\}"),
        "is a choice of a wildcard prompt; write each option on a line of its own",
    ),
    (
        re.compile(r"(?:^|(?<=\s))__[\w/*-]+__(?=\s|$)"),
        "is a wildcard; write the names that it stands for, one per line",
    ),
)
_KEYWORD = re.compile(r"(?:^|(?<=\s))(BREAK|AND|ADDCOMM|ADDROW|ADDCOL|ADDBASE)(?=\s|$)")

_FILES = "txt|csv|tsv|jsonl?|ya?ml|md|rtf|docx?|xlsx?|ods|pdf|safetensors|ckpt|pt|gguf|png|jpe?g|webp"
#: the same for text that a person typed. In the strings of a table or a program these signs belong to names
_TYPED: tuple[tuple[re.Pattern, str], ...] = (
    (
        re.compile(rf"@?\S[^\n]*\.(?:{_FILES})$", re.IGNORECASE),
        "is the name of a file; write what stands in it (on the command line, `--erase-file` and "
        "`--keep-file` read files)",
    ),
    (re.compile(r"\{\\rtf.*"), "is the code of a text document; save it as plain text"),
    (re.compile(r"https?://\S*", re.IGNORECASE), "is a web address; write the name alone"),
    (re.compile(r"^//.*"), "begins with //; a comment begins with #"),
    (re.compile(r"</?[a-z][^<>]*>|<!--.*", re.IGNORECASE), "is markup of a web page; write the names alone"),
    (
        re.compile(r"(?<=\S)\s*(?:>+|\s:?=\s|(?<=\w\w)=(?=\w\w))\s*(?=\S)"),
        "is no arrow; write `concept -> anchor`",
    ),
    (re.compile(r"(?<=\S)\s*\|+\s*(?=\S)"), "is no separator; write each name on a line of its own"),
    (
        re.compile(r"(?<=\S)\s*:\s*(?:object|style|artist|person|celebrity|explicit)$", re.IGNORECASE),
        "gives a kind; kinds stand in a table with the columns `name` and `kind`",
    ),
    (re.compile(r"^[!-/:-@\[-`{-~\s…·]+$"), "holds no letter; write a name"),
)


def short(text: str) -> str:
    """A text for a message, cut at 60 characters."""
    return text if len(text) <= 60 else text[:57] + "..."


def printable(text: str) -> str:
    """A text without what a terminal would obey."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def no_name(part: str, hidden: str, typed: bool) -> str:
    """Why a part of a line is no name, as a message; empty if it may be one.

    Args:
        hidden: the part with what stands in quotes replaced, of the same length.
        typed: whether a person typed it. Else it is a string of a table or a program.
    """
    for pattern, remedy in (*_SYNTAX, *(_TYPED if typed else ())):
        if found := pattern.search(hidden):
            return f"{_in(found[0].strip(), part)} {remedy}"
    found = _KEYWORD.search(hidden)
    # a name in capitals only (ROCK AND ROLL) contains no keyword
    if found and (any(c.islower() for c in hidden) or hidden.strip() == found[0]):
        return (
            f"{_in(found[0], part)} is a prompt keyword; write the text before it and the text after it on "
            "separate lines"
        )
    return ""


def _in(found: str, part: str) -> str:
    return f"'{short(found)}'" if found == part else f"'{short(found)}' in '{short(part)}'"
