"""The demo models' classes, for the evaluation and the erasure."""

from __future__ import annotations

from ..evaluate.protocol import Domain
from .loader import load_judge
from .vocabulary import OBJECTS, STYLES
from .world import CONTEXTS as CONTEXTS
from .world import FINETUNE as FINETUNE
from .world import keep_list as keep_list


def domain() -> Domain:
    """The classes of the demo world, and their judge."""
    judge = load_judge()
    return Domain(
        {name: spec["synonyms"] for name, spec in OBJECTS.items()}, list(STYLES), judge.probabilities
    )
