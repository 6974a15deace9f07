"""How well an erasure worked: accuracies by a judge, harmonic means, drift, and pictures to look at."""

from .metrics import drift, h_c, h_o, top1
from .protocol import Evaluator

__all__ = ["Evaluator", "drift", "h_c", "h_o", "top1"]
