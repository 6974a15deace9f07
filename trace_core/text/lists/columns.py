"""Known names of table columns and object keys, by role."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..syntax import key

#: column and key names by role, without case, blanks, hyphens and underscores
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
#: headers of a table with one column; no list has these as its first entry
HEADERS = frozenset(
    (
        "concept concepts target targets targetconcept targetconcepts eraseconcept eraseconcepts name names "
        "artistname"
    ).split()
)
#: object keys that are settings, not concepts
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
    """Columns of a table or keys of an object, by role.

    Each is a name or a number from 1. An empty one is looked up by the known names.
    """

    concept: str = ""
    anchor: str = ""
    kind: str = ""


def word(text) -> str:
    return re.sub(r"[\s_-]", "", key(str(text)))


def kind_named(text: str) -> str | None:
    """The kind that a word names: empty for no kind or auto, None if the word is not a kind."""
    return "" if word(text) in ("", "auto", "none") else KIND_WORDS.get(word(text))
