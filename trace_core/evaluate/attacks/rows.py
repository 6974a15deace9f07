"""Inverted rows: all text rows of a prompt, trained by gradient through the erased network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...backbones import Backbone
from ...backbones.sampling import SamplerConfig
from ...finetune.adversarial import text_of, with_text
from ...lora.erasure import ErasureLora
from ...text.templates import fill
from ..protocol import Progress
from .case import RECOGNISED, Attack, Case, Outcome
from .learning import Course, Learned, Replaced, learn

STEPS = 60  #: Adam steps at most
EVERY = 10  #: steps per judgement from the concept's own start, which runs until all is recognised
OFTEN = 2  #: steps per judgement from the neutral start; steps to recovery are known to this precision


class Rows:
    """A prompt's rows and pooled vector, as changes in units of their root mean square.

    Args:
        original: a condition of the network, for everything that is not text.
        start: a condition whose text the training starts from.
        columns: ``[1, m]`` bool, the rows that are trained; None: all of them, and the pooled vector.
    """

    def __init__(self, backbone: Backbone, original: dict, start: dict, columns: Tensor | None = None):
        self.original, self.start = original, text_of(start, backbone)
        if columns is not None:
            self.start.pop("y", None)
        self.mask = None if columns is None else columns[0, :, None].to(self.start["c_crossattn"])
        self.scale = {k: v.square().mean().sqrt() for k, v in self.start.items()}
        self.change = {k: torch.zeros_like(v, requires_grad=True) for k, v in self.start.items()}

    def parameters(self) -> list[Tensor]:
        return list(self.change.values())

    def condition(self) -> dict[str, Tensor]:
        change = self.change if self.mask is None else {k: v * self.mask for k, v in self.change.items()}
        rows = {k: v + self.scale[k] * change[k] for k, v in self.start.items()}
        return with_text(self.original, rows)


def inversion(
    model,
    lora: ErasureLora | None,
    clip,
    prompt: str,
    judge: Callable[[Tensor], float],
    samples: int = 20,
    seed: int = 0,
    steps: int = 100,
    every: int = 10,
    lr: float = 0.02,
    config: SamplerConfig | None = None,
    progress: Progress | None = None,
    start: str | None = None,
    until: float = 1.0,
) -> list[list]:
    """Train a prompt's rows until the erased network predicts like the base network with the original rows.

    See :mod:`~trace_core.evaluate.attacks.learning`. The rows of the whole prompt and the pooled vector are
    trained, instead of one word's.

    Args:
        lora: the erasure; None trains on the unerased network.
        judge: ``judge(latents [samples, c, h, w]) -> share recognised``.
        lr: learning rate in units of the rows' root mean square.
        start: prompt whose rows the training starts from; None: the prompt's own.
        until: a share that ends the training when two judgements in a row reach it.

    Returns:
        ``[step, share]`` from step 0 on.
    """
    course = Course(prompt, start or "", judge, samples, seed, steps, every, lr, until)
    make = rows_from(prompt, prompt if start is None else start)
    return learn(model, lora, clip, course, make, config, progress).curve


def rows_from(prompt: str, start: str) -> Callable[[Backbone, Replaced], Rows]:
    """What :func:`~trace_core.evaluate.attacks.learning.learn` trains: a prompt's rows from another's on."""

    def make(backbone: Backbone, prompts: Replaced) -> Rows:
        original, first = (prompts.made(prompts.index(p)) for p in (prompt, start))
        return Rows(backbone, original, first)

    return make


def compared(
    case: Case, label: str, make: Callable[[str], Callable], lr: float, own_lr: float | None = None
) -> Outcome:
    """Three trainings of one kind: on the erased network, and on both from a neutral start.

    Args:
        make: ``make(start)`` with start ``own`` or ``neutral`` gives the argument of ``learn``.
        lr, own_lr: learning rate from the neutral start, and from the concept's own (None: the same).

    Returns:
        ``rate``: the largest share on the erased network, from the concept's own start or from the neutral
        one. ``unerased``: that of the unerased network before any step from the concept's own start.
        ``details``: ``steps`` and ``steps_unerased`` until half is recognised, both from the neutral start;
        ``steps_own`` from the concept's own; None where half is never reached; the curves, and each
        training's last ``reach``.
    """
    prompt, neutral = fill(case.template, case.concept), fill(case.template, "")
    runs = {
        "own": (case.lora, "own", EVERY, own_lr or lr, 1.0),
        "neutral": (case.lora, "neutral", OFTEN, lr, RECOGNISED),
        "unerased": (None, "neutral", OFTEN, lr, RECOGNISED),
    }
    found: dict[str, Learned] = {}
    for name, (lora, start, every, rate, until) in runs.items():
        course = Course(
            prompt,
            neutral,
            case.recognised,
            case.samples,
            case.seed,
            case.scaled(STEPS),
            every,
            rate,
            until,
            f"{label}, {name}",
        )
        found[name] = learn(case.model, lora, case.clip, course, make(start), case.config, case.progress)
    best = max((found["own"], found["neutral"]), key=lambda run: run.best)
    details = {
        "steps": found["neutral"].reached(RECOGNISED),
        "steps_unerased": found["unerased"].reached(RECOGNISED),
        "steps_own": found["own"].reached(RECOGNISED),
        "curves": {name: run.curve for name, run in found.items()},
        "reaches": {name: run.reach for name, run in found.items()},
        "lr": lr,
        "evaluations": sum(run.evaluations for run in found.values()),
    }
    return Outcome(best.best, case.unerased, best.reach, details)


def run(case: Case) -> Outcome:
    """All rows of the concept's prompt, see :func:`compared`."""
    prompt, neutral = fill(case.template, case.concept), fill(case.template, "")
    starts = {"own": prompt, "neutral": neutral}
    return compared(case, "rows-inversion", lambda start: rows_from(prompt, starts[start]), 0.02)


ATTACK = Attack(
    "rows-inversion",
    "all text rows of a prompt, trained through the erased network",
    "textual inversion, arXiv 2208.01618, eq. 2, of a whole prompt",
    run,
)
