"""Progress of a finetune for the caller, and the error for a diverged loss."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import TraceError
from .resume import TrainingState


@dataclass
class Progress:
    """Progress of a finetune, reported at every model evaluation.

    Attributes:
        phase: ``sample keep``, ``sample erase``, ``teacher on erase``, ``train`` and others.
        step, steps: finished optimiser steps, and their total.
        done, total: progress within the phase.
        losses: losses of the last step, by term.
        steps_per_second, eta_seconds: speed of the optimiser including refreshes; None before the first step.
        bank_bytes: size of cached latents and predictions.
        evaluations: model evaluations so far (forward 1, backward 2).
        window: where the erasure acts; None while it is measured.
    """

    phase: str
    step: int
    steps: int
    done: int
    total: int
    losses: dict[str, float]
    steps_per_second: float | None
    eta_seconds: float | None
    bank_bytes: int
    evaluations: int
    window: tuple[float, float] | None = None


class Diverged(TraceError):
    """The loss is NaN or infinite. ``state`` is the last finite one, to resume with a lower learning rate."""

    def __init__(self, message: str, state: TrainingState):
        super().__init__(message)
        self.state = state
