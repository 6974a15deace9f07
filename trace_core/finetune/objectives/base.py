"""Objectives as tables of terms, mostly squared errors of the network's own prediction.

The prediction is eps, v or velocity.

In x0 space the same error would be weighted by sigma squared, and late steps would not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

WINDOWS = ("late", "early", "all")
LIVE = ("adversarial",)  #: predictions that an adversary makes at every step

SIGMA_SQUARED = 30.0  #: upper bound of the weight of noisy steps; SD's sigmas reach 14.6, FLUX's 1


@dataclass(frozen=True)
class Term:
    """A loss over points of one role, by default ``weight * mean ||student - target||^2``.

    Attributes:
        name: label of its loss curve.
        role: ``erase`` or ``keep``, the trajectories of the points.
        prompt: ``prompt`` (the point's own) or ``uncond``.
        when: ``late`` (in the window), ``early`` (before it) or ``all``.
        needs: the base model's predictions for the target, and those of :data:`LIVE`.
        target: ``target(predictions, eta) -> [n, c, h, w]``.
        weight: lambda.
        share: relative share of a step's samples.
        error: ``error(student, predictions, sigma, eta) -> [n]``, in place of the squared error to a target.
        attention: the loss uses the student's attention maps, not its prediction.
        focus: ``focus(t) -> [n]``, the density of points at time t (0 clean, 1 noise); None: uniform.
    """

    name: str
    role: str
    prompt: str
    when: str
    needs: tuple[str, ...]
    target: Callable[[Mapping[str, Tensor], float], Tensor] | None
    weight: float = 1.0
    share: float = 1.0
    error: Callable[[Tensor, Mapping[str, Tensor], Tensor, float], Tensor] | None = None
    attention: bool = False
    focus: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Objective:
    """A paper's loss: its terms, its options by kind of concept, and the sampling of its points.

    Attributes:
        source: paper and equation.
        student: model of the erase trajectories: ``student`` or ``base``.
        terms: in the order of a step's batch.
        kinds: kind of concept -> values of :class:`~trace_core.finetune.FinetuneConfig`, as in the paper;
            ``longer`` multiplies the preset's steps.
        transformer: overrides of ``kinds`` for transformers (FLUX).
        combined: overrides of both for a combined concept; ``wider`` multiplies the preset's keep
            trajectories.
        unconditional: sample the keep points without a prompt instead of from the keep list.
        whole: a step takes every point of the window once, instead of a random batch.
        overshoot: eta is an overshoot past the target, which distilled guidance has already multiplied.
        adversary: what the objective trains against, a :class:`~trace_core.finetune.adversarial.Adversary`.
        also_needs: the base model's predictions that the adversary reads.
    """

    name: str
    source: str
    student: str
    terms: tuple[Term, ...]
    kinds: Mapping[str, Mapping] = field(default_factory=dict)
    transformer: Mapping[str, Mapping] = field(default_factory=dict)
    combined: Mapping = field(default_factory=dict)
    unconditional: bool = False
    whole: bool = False
    overshoot: bool = True
    adversary: Callable | None = None
    also_needs: tuple[str, ...] = ()


def predicted(name: str) -> Callable[[Mapping[str, Tensor], float], Tensor]:
    """A target that equals one of the base model's predictions."""
    return lambda predictions, eta: predictions[name]


def squared_error(prediction: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
    """``(1 + min(sigma^2, S)) ||prediction - target||^2 / n`` per sample: the errors of prediction and of x0.

    An error of eps moves x0 by sigma times the error. The x0 part gives weight to the steps that decide the
    content of a picture. The prediction part gives weight to late steps.
    """
    weight = 1 + sigma.square().clamp_max(SIGMA_SQUARED)
    return weight * (prediction - target).square().mean(dim=(1, 2, 3))
