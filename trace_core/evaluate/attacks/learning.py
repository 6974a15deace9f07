"""Training a condition until a network predicts with it as the unerased network does for the concept.

Textual inversion (arXiv 2208.01618, eq. 2), with the unerased network's predictions on its own trajectories
in the place of pictures: ``min_v E ||p'(x, sigma, v) - p0(x, sigma, c)||^2`` by Adam. That is the strongest
teacher an attacker can have.

The numbers of steps of two trainings can be compared if only the network differs. Both then start from the
same condition of a neutral prompt, and share the points, the order in which they are drawn, the learning
rate, the seeds of the judged pictures and the steps at which the judge looks. One training runs on the erased
network. The other runs on the unerased network: it is what finding the words for a known thing costs. An
erased network that takes no more steps knows the concept as before, and has lost only its words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...backbones import Backbone, backbone_for
from ...backbones.sampling import SamplerConfig
from ...finetune.adapters import attached
from ...finetune.gradients import saved_apart, training_mode
from ...finetune.prompts import Prompts
from ...finetune.trajectory import Sampling, trajectories
from ...lora.erasure import ErasureLora
from ...text.batching import Encoded
from ..protocol import Progress
from .reach import reach

BATCH = 16  #: points per step
TRAJECTORIES = 16  #: trajectories of the base model for the training points


class Variable(Protocol):
    """What is trained: tensors, and the network's condition that they make."""

    def parameters(self) -> list[Tensor]:
        """The trained tensors, in units of their own size."""

    def condition(self) -> dict[str, Tensor]:
        """The network's inputs of one prompt, of batch 1, with gradients to :meth:`parameters`."""


@dataclass(frozen=True)
class Course:
    """How a condition is trained and judged.

    Attributes:
        prompt, neutral: the concept's prompt, and the same without the concept.
        judge: ``judge(latents [samples, c, h, w]) -> share recognised``.
        samples: pictures per judgement.
        seed: seed of the points, their order, and the pictures.
        steps, every: Adam steps at most, and steps per judgement.
        lr: learning rate, in units of the trained tensors' size.
        until: a share that ends the training when two judgements in a row reach it.
        label: phase for the progress.
    """

    prompt: str
    neutral: str
    judge: Callable[[Tensor], float]
    samples: int = 20
    seed: int = 0
    steps: int = 100
    every: int = 10
    lr: float = 0.02
    until: float = 1.0
    label: str = "inversion"


@dataclass(frozen=True)
class Learned:
    """A training's course.

    Attributes:
        curve: ``[step, share recognised]`` from step 0 on.
        reach: of the last condition, see :func:`~trace_core.evaluate.attacks.reach.reach`.
        evaluations: forward passes, counted per sample; a backward pass adds two.
    """

    curve: list[list]
    reach: float
    evaluations: int

    @property
    def best(self) -> float:
        return max(share for _, share in self.curve)

    def reached(self, share: float) -> int | None:
        """The first judged step at which a share is recognised, or None."""
        return next((step for step, found in self.curve if found >= share), None)


def learn(
    model,
    lora: ErasureLora | None,
    clip,
    course: Course,
    make: Callable[[Backbone, Replaced], Variable],
    config: SamplerConfig | None = None,
    progress: Progress | None = None,
) -> Learned:
    """Train a condition on a network. The model is read, never written.

    Args:
        lora: the erasure on the network; None: the unerased network itself.
        make: ``make(backbone, prompts)`` gives what is trained. It is called while gradients are on.
        progress: ``progress(phase, done, total)``; an exception raised in it cancels.
    """
    config = config or SamplerConfig.for_model(model)
    backbone = backbone_for(model)
    shape, before = backbone.latent_shape(config.width, config.height), backbone.evaluations
    backbone.load()
    with training_mode(backbone.engine):
        prompts = Replaced(backbone, clip, shape, config.guidance)
        numbers = [prompts.index(p) for p in ("", course.prompt, course.neutral)]
        # attached() needs a trained adapter, which stays zero here; the erasure is its start
        target = backbone.lora_targets("text")[:1]
        with attached(backbone, target, 1, lora, course.seed) as adapters:
            adapters.use("base")
            source = Sampling(config.steps, config.cfg, TRAJECTORIES, torch.float32)
            points = training_points(backbone, prompts, *numbers, source, course.seed + 1)
            adapters.use("start")
            variable = make(backbone, prompts)
            curve = _train(backbone, prompts, numbers, variable, points, course, config, progress)
            with torch.no_grad():
                found = _reach(backbone, variable, points)
    return Learned(curve, found, backbone.evaluations - before)


def _train(
    backbone: Backbone,
    prompts: Replaced,
    numbers: list[int],
    variable: Variable,
    points: list[tuple[Tensor, ...]],
    course: Course,
    config: SamplerConfig,
    progress: Progress | None,
) -> list[list]:
    """The loop: a judgement every few steps, and one step of Adam on a batch of points in between."""
    uncond, number, _ = numbers
    optimiser = torch.optim.Adam(variable.parameters(), lr=course.lr)
    generator = torch.Generator().manual_seed(course.seed)
    joined = tuple(torch.cat(part) for part in zip(*(p[:3] for p in points)))
    pictures, curve = Sampling(config.steps, config.cfg, course.samples), []
    for step in range(course.steps + 1):
        if step % course.every == 0 or step == course.steps:
            with torch.no_grad():
                prompts.put(number, variable.condition())
            share = course.judge(finished(backbone, prompts, number, uncond, pictures, course.seed))
            curve.append([step, share])
            if len(curve) > 1 and min(curve[-1][1], curve[-2][1]) >= course.until:
                break
        if step == course.steps:
            break
        if progress:
            progress(course.label, step, course.steps)
        drawn = torch.randint(len(joined[0]), (BATCH,), generator=generator)
        error = loss(backbone, variable.condition(), *(t[drawn] for t in joined))
        optimiser.zero_grad()
        error.backward()
        backbone.evaluations += 2 * BATCH
        optimiser.step()
    return curve


def loss(backbone: Backbone, condition: dict, x: Tensor, sigma: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of the prediction plus that of x0: ``(1 + min(sigma^2, 30)) ||p - wanted||^2``.

    Args:
        condition: of batch 1.
        x, wanted: ``[b, c, h, w]``, latents and the predictions to meet.
        sigma: ``[b]``.
    """
    with saved_apart(backbone.network):
        whole = {
            k: v.expand(len(x), *v.shape[1:]) if isinstance(v, Tensor) else v for k, v in condition.items()
        }
        out = backbone.predict(x, sigma, whole)
        squared = (out - wanted).square().mean(dim=(1, 2, 3))
        return ((1 + sigma.square().clamp_max(30)) * squared).mean()


class Replaced(Prompts):
    """Prompts of which some have a condition of our own."""

    def made(self, number: int) -> dict[str, Tensor]:
        return self._conditions[number]

    def condition_of(self, encoded: Encoded) -> dict[str, Tensor]:
        """The network's inputs for an encoded prompt, with the gradients that it has."""
        return self._backbone.condition(encoded.conditioning(), self._shape, self._guidance)

    def put(self, number: int, made: dict[str, Tensor]) -> None:
        self._conditions[number] = {k: v.detach() if isinstance(v, Tensor) else v for k, v in made.items()}


def training_points(
    backbone: Backbone,
    prompts: Prompts,
    uncond: int,
    number: int,
    neutral: int,
    sampling: Sampling,
    seed: int,
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Points on the network's trajectories of a prompt, level by level.

    Returns:
        per noise level x ``[n, c, h, w]``, sigma ``[n]``, and the predictions for the prompt and for the
        neutral prompt, like x.
    """
    numbers, out = [number] * sampling.batch, []
    other = prompts.batch([neutral] * sampling.batch)
    for _, sigma, x, found in trajectories(backbone, prompts, numbers, uncond, sampling, seed, lambda: None):
        if found:
            level = torch.full((len(x),), sigma, device=x.device)
            with torch.no_grad():
                out.append((x, level, found["prompt"], other.predict(x, level)))
    return out


def _reach(backbone: Backbone, variable: Variable, points: list[tuple[Tensor, ...]]) -> float:
    """Mean reach of a trained condition over the noise levels."""
    found, condition = [], variable.condition()
    for x, sigma, wanted, neutral in points:
        whole = {
            k: v.expand(len(x), *v.shape[1:]) if isinstance(v, Tensor) else v for k, v in condition.items()
        }
        found.append(reach(backbone.predict(x, sigma, whole), wanted, neutral))
    return sum(found) / len(found)


@torch.no_grad()
def finished(
    backbone: Backbone, prompts: Prompts, number: int, uncond: int, sampling: Sampling, seed: int
) -> Tensor:
    """Pictures of a prompt in the network's current state, latents ``[sampling.batch, c, h, w]``."""
    *_, last = trajectories(
        backbone, prompts, [number] * sampling.batch, uncond, sampling, seed, lambda: None
    )
    return last[2].cpu()
