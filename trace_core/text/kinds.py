"""The kind of a concept, from words in its name and from lists of names (``data/``, see NOTICE).

A name is looked up as a whole, without case, accents, hyphens and dots. "Dali" equals "Dalí", and "Turner
Prize" is no artist.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from .syntax import key

KINDS = ("object", "style", "person", "explicit")
DATA = Path(__file__).parent / "data"

#: Kind -> file and its name in reports. The first list that has a name decides, so a painter who is also in
#: the list of people is an artist.
LISTS = {
    "style": ("artists.txt", "list of artists"),
    "person": ("people.txt", "list of people"),
    "explicit": ("explicit.txt", "list of explicit words"),
}
STYLES = ("styles.txt", "list of styles")  #: movements, media, studios
#: Words that an explicit phrase may also contain
BESIDE = frozenset(
    (
        "a an the of and with or in very fully completely totally partially explicit content scene scenes "
        "image images photo photos picture pictures pose posing person people man men woman women adult "
        "adults couple body bodies male female human figure art model models"
    ).split()
)
#: Words that may follow an artist's name and still mean the artist's style
WORKS = frozenset(
    "painting paintings artwork artworks art drawing drawings illustration illustrations".split()
)


def kind_of(target: str) -> tuple[str, str]:
    """The kind of a concept and the reason.

    Examples: ``("style", "list of artists")``, ``("style", "words")``, ``("object", "on no list of names")``.
    """
    words = key(target).split()
    by_artist = "by" in words[1:-1] and bool({"art", "artwork", "painting", "drawing", "style"} & set(words))
    if {"style", "background"} & set(words) or by_artist:
        return "style", "words"
    name = bare(target)
    names = {kind: _names(file) for kind, (file, _) in LISTS.items()}
    for kind, (_, called) in LISTS.items():
        if name in names[kind]:
            return kind, called
    if name in _names(STYLES[0]):
        return "style", STYLES[1]
    *first, last = name.split() or [""]
    whose = target.strip().removesuffix("'s").removesuffix("’s") if last.endswith("s") else ""
    artists = (
        " ".join(first) if last in WORKS else "",
        name.removeprefix("by ") if name.startswith("by ") else "",
        bare(whose),
    )
    if any(artist in names["style"] for artist in artists if artist):
        return "style", LISTS["style"][1]
    if _is_explicit(name.split(), names["explicit"]):
        return "explicit", LISTS["explicit"][1]
    return "object", "on no list of names"


def guess_kind(target: str) -> str:
    """The kind alone: see :func:`kind_of`.

    ``style`` for a listed artist, "... style", "... background", "art by ..." or "painting by ...";
    ``person`` and ``explicit`` for listed names; ``object`` otherwise.
    """
    return kind_of(target)[0]


#: Words of a name that start with a small letter
PARTICLES = frozenset("al ap bin da das de del della der di do dos du el ibn la le of the van von zu".split())


def kinds_of_kept(keep: Iterable[str], erased: Iterable[str]) -> list[str]:
    """The kind of every kept entry, which decides the prompts that keep it.

    Where nothing but people or explicit content is erased, a kept name in capitals ("Anna Holt", "Mira van
    Holt") is a person although no list has it. "a photo of a Anna Holt" would keep less of her than "a photo
    of Anna Holt".

    Args:
        keep: kept entries.
        erased: kinds of the erased concepts.
    """
    people = set(erased) <= {"person", "explicit"}
    return [
        "person" if people and k == "object" and _is_name(entry) else k
        for entry, k in ((e, guess_kind(e)) for e in keep)
    ]


def _is_name(entry: str) -> bool:
    words = entry.split()
    return bool(words) and words[0][0].isupper() and all(w[0].isupper() or w in PARTICLES for w in words)


_LETTERS = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "ı": "i", "_": " "})


def bare(text: str) -> str:
    """A name without case, accents and punctuation."""
    letters = "".join(
        c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c)
    )
    return " ".join(re.findall(r"\w+", re.sub(r"['’.]", "", letters.translate(_LETTERS))))


def _is_explicit(words: list[str], explicit: frozenset[str]) -> bool:
    """Whether every word is explicit or in :data:`BESIDE`: "a naked woman", but not "naked mole rat"."""
    flags = [w in explicit for w in words]
    return any(flags) and all(is_one or w in BESIDE for w, is_one in zip(words, flags))


@lru_cache(None)
def _names(file: str) -> frozenset[str]:
    lines = (DATA / file).read_text(encoding="utf-8").splitlines()
    return frozenset(bare(line) for line in lines if line and not line.startswith("#"))


def category_of(part: str) -> str:
    """``background``, ``style`` or ``thing``: the category of the second part of a combined concept."""
    return (
        "background"
        if key(part).endswith("background")
        else "style"
        if guess_kind(part) == "style"
        else "thing"
    )
