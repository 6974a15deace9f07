"""Another erasure on top, and the erasure at less than its strength."""

from __future__ import annotations

from ...backbones.defaults import defaults_of
from ...closed_form import ClosedFormConfig, erase
from ...lora.erasure import ErasureLora
from ...lora.gating import apply
from ...text.concepts import Concept
from .case import Attack, Case, Outcome
from .variants import strongest

STRENGTH = 0.8  #: of the weakened erasure


def run(case: Case) -> Outcome:
    """Two ways in which users change an erasure without meaning to.

    ``stacked``: another class is erased as well, by TRACE's closed form, made on the unerased model with the
    concept in its keep list. ``strength 0.8``: the erasure's LoRA strength is turned down.
    """
    other = case.others[0]
    extra = another(case, other)
    models = {
        "stacked": (apply(case.erased, extra), apply(case.model, extra)),
        f"strength {STRENGTH:g}": (
            apply(case.model, case.lora, STRENGTH) if case.lora else case.model,
            case.model,
        ),
    }
    found = {}
    for name, (attacked, control) in models.items():
        alone = control is case.model
        found[name] = {
            "rate": case.rate(attacked, case.prompts, f"stacking, {name}"),
            "unerased": case.unerased
            if alone
            else case.rate(control, case.prompts, f"stacking, {name}, unerased"),
            "reach": case.reach(attacked),
        }
    return strongest(found, other=other)


def another(case: Case, name: str) -> ErasureLora:
    """The closed form's erasure of another class, made on the unerased model."""
    own, concepts = defaults_of(case.model), [Concept(name)]
    keep = own.keep_list(concepts) if own else [c for c in case.classes if c != name]
    config = ClosedFormConfig(contexts=own.contexts if own else {})
    return erase(case.model, case.clip, concepts, keep, config, seed=case.seed).lora


ATTACK = Attack(
    "stacking",
    "another class's erasure stacked on top, and the erasure at strength 0.8",
    "practice",
    run,
)
