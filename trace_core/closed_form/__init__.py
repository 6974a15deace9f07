"""Closed-form erasure: one solve for the whole network, exported as a low-rank edit."""

from .config import ClosedFormConfig
from .edit import ContextEdit
from .fitter import ClosedFormFitter, ClosedFormResult, erase
from .gram import Gram
from .policies import POLICIES, Policy
from .solvers import projection, ridge

__all__ = [
    "POLICIES",
    "ClosedFormConfig",
    "ClosedFormFitter",
    "ClosedFormResult",
    "ContextEdit",
    "Gram",
    "Policy",
    "erase",
    "projection",
    "ridge",
]
