"""Content that no prompt asks for: how often it is drawn, and whether the rest of the pictures stays."""

from __future__ import annotations

from statistics import fmean

from torch import Tensor

from .domains import PERSON, TRAIT, Domain, Trait
from .metrics import drift, h_c

NEITHER = "neither"


def of_trait(evaluator, model, name: str) -> dict:
    """Measure a trait's erasure, by kind of prompt: those that name it, imply it, and do neither.

    Args:
        evaluator: :class:`~trace_core.evaluate.protocol.Evaluator`, for its pictures.
        model: the model with the trait erased.

    Returns:
        ``acc_e``: share of pictures that show the trait, of the kind of prompt with the largest share;
        ``acc_s``: share of all pictures that show the prompt's person; ``h_c`` of the two; ``trait``: by kind
        of prompt, shares of both with and without the erasure; ``drift`` on prompts of the kind ``neither``.
    """
    domain: Domain = evaluator.domain
    trait: Trait = domain.traits[name]
    kinds, moved = {}, None
    for kind, asked in trait.prompts.items():
        prompts, people = zip(*asked(evaluator.samples))
        base = evaluator.base(f"{name}, {kind}", prompts)
        after = evaluator.pictures(model, prompts, f"{name}, {kind}")
        kinds[kind] = {
            "before": _share(domain, base[1], name),
            "after": _share(domain, after[1], name),
            "people_before": _people(domain, base[1], people),
            "people_after": _people(domain, after[1], people),
        }
        if kind == NEITHER:
            moved = drift(after[0], base[0], after[1], base[1])
    acc_e = max(found["after"] for found in kinds.values())
    acc_s = fmean(found["people_after"] for found in kinds.values())
    return {
        "acc_e": acc_e,
        "acc_s": acc_s,
        "acc_g": None,
        "h_o": None,
        "h_c": h_c(acc_e, acc_s),
        "drift": moved,
        "trait": kinds,
        "head": TRAIT,
        "definition": "acc_e is the share of pictures with the trait, of the worst kind of prompt; acc_s is "
        "the share with the prompt's person",
    }


def _share(domain: Domain, pictures: Tensor, name: str) -> float:
    return domain.shows(pictures, TRAIT, name).float().mean().item()


def _people(domain: Domain, pictures: Tensor, people) -> float:
    seen = domain.judge(pictures, PERSON).argmax(-1).tolist()
    return fmean(domain.people[i] == person for i, person in zip(seen, people))
