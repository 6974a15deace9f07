"""Evaluation of an erasure: accuracies by a judge, harmonic means, drift, and picture grids."""

from .metrics import drift, h_c, h_o, top1
from .protocol import Evaluator

__all__ = ["Evaluator", "drift", "h_c", "h_o", "top1"]
