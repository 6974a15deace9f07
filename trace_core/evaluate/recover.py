"""The former place of two attacks; :mod:`trace_core.evaluate.attacks` has them and others."""

from __future__ import annotations

from .attacks.both import recoverability
from .attacks.case import RECOGNISED
from .attacks.learning import BATCH, TRAJECTORIES
from .attacks.rece import RIDGE, Rewritten, adversarial_map, adversarial_maps
from .attacks.rows import inversion
from .protocol import Progress

__all__ = [
    "BATCH",
    "RECOGNISED",
    "RIDGE",
    "TRAJECTORIES",
    "Progress",
    "Rewritten",
    "adversarial_map",
    "adversarial_maps",
    "inversion",
    "recoverability",
]
