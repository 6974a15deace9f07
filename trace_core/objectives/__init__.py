"""What the finetune teaches: one formula per function, one file per paper."""

from .ant import ANT
from .base import Objective, Term
from .esd import ESD
from .trace import TRACE

OBJECTIVES: dict[str, Objective] = {o.name: o for o in (TRACE, ANT, ESD)}

__all__ = ["OBJECTIVES", "Objective", "Term"]
