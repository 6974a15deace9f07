"""Objectives of the finetune: one formula per function, one file per paper."""

from .aegis import AEGIS
from .ant import ANT
from .base import Objective, Term
from .esd import ESD
from .gem import GEM
from .mace import MACE
from .trace import TRACE
from .trce import TRCE

OBJECTIVES: dict[str, Objective] = {o.name: o for o in (TRACE, MACE, ANT, TRCE, ESD, GEM, AEGIS)}

__all__ = ["OBJECTIVES", "Objective", "Term"]
