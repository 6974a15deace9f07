"""Objectives as tables of terms, each a squared error in the network's own prediction space (eps, v or velocity).

In x0 space the same error would be weighted by sigma squared, and what happens late would vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

WINDOWS = ("late", "early", "all")


@dataclass(frozen=True)
class Term:
    """``weight * mean ||student(x, prompt) - target(predictions)||^2`` over points of one role.

    Attributes:
        name: shown beside its curve.
        role: ``erase`` or ``keep``: on whose trajectories.
        prompt: ``prompt`` (the point's own) or ``uncond``.
        when: ``late`` (in the window), ``early`` (before it) or ``all``.
        needs: the base model's predictions that the target is made of.
        target: ``target(predictions, eta) -> [n, c, h, w]``.
        weight: lambda.
        share: of a step's samples.
    """

    name: str
    role: str
    prompt: str
    when: str
    needs: tuple[str, ...]
    target: Callable[[Mapping[str, Tensor], float], Tensor]
    weight: float = 1.0
    share: float = 1.0


@dataclass(frozen=True)
class Objective:
    """A paper's loss: its terms, its values by kind of concept, and how its points are sampled.

    Attributes:
        source: paper and equation.
        student: whose trajectories the erase points are on: ``student`` or ``base``.
        terms: in the order of a step's batch.
        kinds: kind of concept -> values of :class:`~trace_core.finetune.FinetuneConfig`, as in the paper.
        closed_form: whether a closed form comes first unless told otherwise.
    """

    name: str
    source: str
    student: str
    terms: tuple[Term, ...]
    kinds: Mapping[str, Mapping] = field(default_factory=dict)
    closed_form: bool = False


def predicted(name: str) -> Callable[[Mapping[str, Tensor], float], Tensor]:
    """The target that is one of the base model's predictions."""
    return lambda predictions, eta: predictions[name]
