"""Which part of a table or an object holds what, by its name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..syntax import key

#: Names of columns and keys, without case, blanks, hyphens and underscores
NAMES = {
    "concept": "concept concepts target targets targetconcept targetconcepts erase erased eraseconcept "
    "eraseconcepts eraselist editconcept "
    "editconcepts oldtext oldtexts multiconcept concepttoerase conceptstoerase forget unlearn pairs name "
    "names artist artists artistname "
    "celebrity celebrities",
    "keep": "keep keeplist keepconcepts preserve preserveconcept preserveconcepts retain retaintext "
    "retaintexts retainconcepts protect protectk",
    "anchor": "anchor anchors anchorconcept anchorconcepts guide guideconcept guideconcepts guidedconcept "
    "guidedconcepts mapping "
    "mappingconcept mappingconcepts mapto neutral newtext newtexts replacement replacewith surrogate "
    "surrogateconcept",
    "kind": "kind type category concepttype",
    "strength": "strength",
}
NAMES = {role: frozenset(words.split()) for role, words in NAMES.items()}
#: What a table with one column may have as its header, and no list as its first entry
HEADERS = frozenset(
    (
        "concept concepts target targets targetconcept targetconcepts eraseconcept eraseconcepts name names "
        "artistname"
    ).split()
)
#: Keys of objects that are settings and no concepts
SETTINGS = frozenset(
    (
        "model modelid device seed lr output outputdir savepath path prompt rank steps version description "
        "title"
    ).split()
)

KIND_WORDS = {
    "object": "object objects thing things instance instances",
    "style": "style styles art artist artists artstyle artisticstyle",
    "person": "person persons people celebrity celebrities cele identity face",
    "explicit": "explicit explicitcontent nudity nsfw unsafe sexual",
}
KIND_WORDS = {word: kind for kind, words in KIND_WORDS.items() for word in words.split()}
NONE = "none"


@dataclass(frozen=True)
class Columns:
    """Which columns of a table, or keys of an object, hold what: a name, or a number from 1. Empty: those
    with a known name.
    """

    concept: str = ""
    anchor: str = ""
    kind: str = ""


def word(text) -> str:
    return re.sub(r"[\s_-]", "", key(str(text)))


def kind_named(text: str) -> str | None:
    """The kind that a word of a list names; empty for none or auto, None if it is no kind."""
    return "" if word(text) in ("", "auto", "none") else KIND_WORDS.get(word(text))
