"""The demo models' classes, for the evaluation and the erasure."""

from __future__ import annotations

from ..evaluate.domains import Domain, Trait
from . import people
from .loader import load_judge
from .vocabulary import OBJECTS, STYLES
from .world import CONTEXTS as CONTEXTS
from .world import FINETUNE as FINETUNE
from .world import keep_list as keep_list


def domain(name: str = "demo-sd") -> Domain:
    """The classes of a demo model's world, and their judge."""
    judge = load_judge(name).probabilities
    if name == "demo-people":
        trait = Trait("patch", people.trait_prompts())
        return Domain({}, list(people.STYLES), judge, list(people.people()), {people.PATCH: trait})
    return Domain({name: spec["synonyms"] for name, spec in OBJECTS.items()}, list(STYLES), judge)
