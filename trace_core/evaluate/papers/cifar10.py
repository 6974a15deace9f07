"""MACE's object protocol (arXiv 2403.06135, section 4.1): ten classes, and three synonyms of each.

Every class and every synonym is asked for as "a photo of the {}". A CLIP says zero-shot, among the ten names,
what a picture shows. A synonym's picture counts for its class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from ...errors import ConceptError
from ...text.concepts import same
from ..metrics import h_c, h_o
from .asked import ERASED, KEPT, SYNONYM, Asked

NAME = "cifar10"
PROMPT = "a photo of the {}"  #: of the pictures and of the judge's texts
PAPER_SAMPLES = 200  #: pictures of each class and each synonym in the paper
#: The classes and their synonyms, as in the paper's prompts
SYNONYMS: dict[str, tuple[str, ...]] = {
    "airplane": ("aircraft", "plane", "jet"),
    "automobile": ("car", "vehicle", "motorcar"),
    "bird": ("avian", "fowl", "winged creature"),
    "cat": ("feline", "kitty", "housecat"),
    "deer": ("hart", "stag", "doe"),
    "dog": ("canine", "pooch", "hound"),
    "frog": ("amphibian", "anuran", "tadpole"),
    "horse": ("equine", "steed", "mount"),
    "ship": ("vessel", "boat", "watercraft"),
    "truck": ("lorry", "rig", "hauler"),
}
CLASSES = tuple(SYNONYMS)
#: Table 1 of the paper, the average of ten erasures of one class each, in percent: Acc_e, Acc_s, Acc_g, H_o
PAPER = {
    "SD v1.4, in the paper": (98.63, 98.63, 83.64, None),
    "UCE, in the paper": (13.54, 98.45, 23.18, 85.48),
    "ESD-u, in the paper": (18.27, 86.76, 16.26, 83.69),
    "MACE, in the paper": (8.49, 97.35, 10.53, 92.61),
}


def classes_of(names: Sequence[str], synonyms: Mapping[str, Sequence[str]] = SYNONYMS) -> list[str]:
    """The protocol's classes of erased concepts; a synonym gives its class.

    Raises:
        ConceptError: if there is none, one that is no class, or nothing is left to keep.
    """
    if not names:
        raise ConceptError(
            f"the protocol {NAME} needs an erased class; name it with --erase: {', '.join(CLASSES)}"
        )
    found = {}
    for name in names:
        place = next((c for c in CLASSES if any(same(name, w) for w in (c, *synonyms[c]))), None)
        if place is None:
            raise ConceptError(
                f"'{name}' is no class of {NAME}; it has {', '.join(CLASSES)}. Put your own prompts into a "
                "table (.csv) and give that as --protocol"
            )
        found[place] = True
    if len(found) == len(CLASSES):
        raise ConceptError(f"all classes of {NAME} are erased, so nothing is left to keep; erase fewer")
    return list(found)


def asked(
    erased: Sequence[str],
    samples: int,
    seed: int = 0,
    synonyms: Mapping[str, Sequence[str]] = SYNONYMS,
) -> list[Asked]:
    """Every picture of the protocol: erased classes, their synonyms, then the other classes.

    Args:
        erased: classes, see :func:`classes_of`.
        samples: pictures of each class and each synonym.
        seed: picture i of each has the seed ``seed * 100003 + i``.
    """
    words = [(c, ERASED, c) for c in erased]
    words += [(c, SYNONYM, word) for c in erased for word in synonyms[c]]
    words += [(c, KEPT, c) for c in CLASSES if c not in erased]
    return [
        Asked(PROMPT.format(word), seed * 100003 + i, shows, group, word)
        for shows, group, word in words
        for i in range(samples)
    ]


def figures(entries: Sequence[Asked], answers: Sequence[Mapping]) -> dict:
    """The protocol's figures of one model.

    Args:
        answers: ``seen`` (a class) and ``prob`` (that of the class asked for) of every entry.

    Returns:
        ``acc_e, acc_s, acc_g, h_o, h_c`` as fractions of 1, by top-1 as the paper says; ``mean_prob`` the
        same by the mean probability, which the paper's released program reports; ``per_word``: both of every
        class and synonym.
    """
    per_word = {}
    for word in dict.fromkeys(e.word for e in entries):
        of = [(e, a) for e, a in zip(entries, answers) if e.word == word]
        per_word[word] = {
            "class": of[0][0].shows,
            "group": of[0][0].group,
            "pictures": len(of),
            "top1": fmean(a["seen"] == e.shows for e, a in of),
            "prob": fmean(a["prob"] for _, a in of),
        }
    return {**_means(per_word, "top1"), "mean_prob": _means(per_word, "prob"), "per_word": per_word}


def _means(per_word: Mapping[str, Mapping], key: str) -> dict:
    acc_e, acc_s, acc_g = (
        fmean(v[key] for v in per_word.values() if v["group"] == group) for group in (ERASED, KEPT, SYNONYM)
    )
    return {
        "acc_e": acc_e,
        "acc_s": acc_s,
        "acc_g": acc_g,
        "h_o": h_o(acc_e, acc_s, acc_g),
        "h_c": h_c(acc_e, acc_s),
    }
