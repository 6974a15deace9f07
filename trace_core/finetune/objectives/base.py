"""Objectives as tables of terms, most of them a squared error in the network's own prediction space (eps, v
or velocity).

In x0 space the same error would be weighted by sigma squared, and what happens late would vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

WINDOWS = ("late", "early", "all")

SIGMA_SQUARED = 30.0  #: bound of the weight of noisy steps; SD's sigmas reach 14.6, FLUX's 1


@dataclass(frozen=True)
class Term:
    """A loss over points of one role: unless it has an ``error`` of its own, ``weight * mean ||student -
    target||^2``.

    Attributes:
        name: shown beside its curve.
        role: ``erase`` or ``keep``: on whose trajectories.
        prompt: ``prompt`` (the point's own) or ``uncond``.
        when: ``late`` (in the window), ``early`` (before it) or ``all``.
        needs: the base model's predictions that the target is made of.
        target: ``target(predictions, eta) -> [n, c, h, w]``.
        weight: lambda.
        share: of a step's samples.
        error: ``error(student, predictions, sigma) -> [n]`` in place of the squared error to a target.
        attention: the loss is on the student's attention maps, not on its prediction.
        focus: ``focus(t) -> [n]`` how often a point at time t (0 clean, 1 noise) is drawn; evenly without.
    """

    name: str
    role: str
    prompt: str
    when: str
    needs: tuple[str, ...]
    target: Callable[[Mapping[str, Tensor], float], Tensor] | None
    weight: float = 1.0
    share: float = 1.0
    error: Callable[[Tensor, Mapping[str, Tensor], Tensor], Tensor] | None = None
    attention: bool = False
    focus: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Objective:
    """A paper's loss: its terms, its values by kind of concept, and how its points are sampled.

    Attributes:
        source: paper and equation.
        student: whose trajectories the erase points are on: ``student`` or ``base``.
        terms: in the order of a step's batch.
        kinds: kind of concept -> values of :class:`~trace_core.finetune.FinetuneConfig`, as in the paper;
            ``longer`` multiplies the preset's steps.
        flux: the same for FLUX, over ``kinds``.
        combined: the same where a combined concept is erased, over both; ``wider`` multiplies the preset's
            keep trajectories.
        unconditional: keep points are sampled without a prompt, not from the keep list.
    """

    name: str
    source: str
    student: str
    terms: tuple[Term, ...]
    kinds: Mapping[str, Mapping] = field(default_factory=dict)
    flux: Mapping[str, Mapping] = field(default_factory=dict)
    combined: Mapping = field(default_factory=dict)
    unconditional: bool = False


def predicted(name: str) -> Callable[[Mapping[str, Tensor], float], Tensor]:
    """The target that is one of the base model's predictions."""
    return lambda predictions, eta: predictions[name]


def squared_error(prediction: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
    """Of every sample, ``(1 + min(sigma^2, S)) ||prediction - target||^2 / n``: the error of the prediction
    and that of x0.

    An error of eps moves x0 by sigma times as much. Without the second part the steps that decide what a
    picture shows weigh next to nothing; without the first, what happens late vanishes.
    """
    weight = 1 + sigma.square().clamp_max(SIGMA_SQUARED)
    return weight * (prediction - target).square().mean(dim=(1, 2, 3))
