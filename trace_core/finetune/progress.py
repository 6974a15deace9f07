"""What a caller hears of a finetune, and what is raised where the loss is no number."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import TraceError
from .resume import TrainingState


@dataclass
class Progress:
    """What a caller hears at every model evaluation.

    Attributes:
        phase: ``sample keep``, ``sample erase``, ``teacher on erase``, ``train`` ...
        step, steps: optimiser steps done, and in all.
        done, total: within the phase.
        losses: of the last step, by term.
        steps_per_second, eta_seconds: of the optimiser, refreshes counted; None before the first step.
        bank_bytes: cached latents and predictions.
        evaluations: model evaluations so far (forward 1, backward 2).
        window: where the erasure acts; None while it is being measured.
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
    """The loss left the numbers. ``state`` is the last good one, to resume from with a lower learning
    rate.
    """

    def __init__(self, message: str, state: TrainingState):
        super().__init__(message)
        self.state = state
