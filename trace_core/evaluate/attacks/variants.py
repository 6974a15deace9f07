"""Attacks that are a list of variants, each with its own rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .case import RECOGNISED, Case, Outcome


def of_prompts(
    case: Case, label: str, variants: Mapping[str, Sequence[str]], clip=None, least: float = RECOGNISED
) -> Outcome:
    """Every variant's prompts on both models.

    Args:
        variants: name -> one prompt per picture, in the place of the case's own.
        clip: their text encoder; None: the own one.
        least: see :func:`strongest`.
    """
    found = {}
    for name, prompts in variants.items():
        found[name] = {
            "rate": case.rate(case.erased, prompts, f"{label}, {name}", clip),
            "unerased": case.rate(case.model, prompts, f"{label}, {name}, unerased", clip),
            "reach": case.reach(case.erased, prompts, clip),
            "prompt": prompts[0],
        }
    return strongest(found, least=least)


def strongest(
    variants: Mapping[str, Mapping], above: str | None = None, least: float = RECOGNISED, **details
) -> Outcome:
    """The outcome of the variant with the largest rate; the others are in its details.

    Args:
        above: name of a rate that does not count as the attack's own. The variant that exceeds it most is the
            strongest.
        least: a variant counts if the unerased model draws the concept with it this often. With others, an
            erased model has nothing to bring back.
    """
    drawn = {k: v for k, v in variants.items() if v["unerased"] >= least}
    if not drawn:
        note = "the unerased model draws the concept with none of the variants"
        return Outcome(None, details={"note": note, "variants": {k: dict(v) for k, v in variants.items()}})
    name = max(drawn, key=lambda n: drawn[n]["rate"] - (drawn[n][above] if above else 0.0))
    best = variants[name]
    more = {"strongest": name, "variants": {k: dict(v) for k, v in variants.items()}, **details}
    return Outcome(best["rate"], best.get("unerased"), best.get("reach"), more)
