"""Closed-form erasure: one solve for the whole network, exported as a low-rank edit."""

from .edit import ContextEdit
from .erase import ClosedFormConfig, ClosedFormResult, erase
from .gram import Gram
from .policies import POLICIES, Policy
from .solvers import projection, ridge

__all__ = [
    "POLICIES",
    "ClosedFormConfig",
    "ClosedFormResult",
    "ContextEdit",
    "Gram",
    "Policy",
    "erase",
    "projection",
    "ridge",
]
