"""What is left of a concept in the predictions, along the schedule and for every way to write it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..attacks.prepared import Prepared
from ..attacks.reach import PROMPTS, Reach
from .prompts import Probe
from .scene import Scene, chunks, on_axis

KNOWN = 0.5  #: reach of other words for the concept on the unerased model, from which they count
GAP = 0.3  #: length of ``p(c) - p(g)`` of a sentence, in units of the plain prompt's, from which it counts


@dataclass(frozen=True)
class Way:
    """What one way to write a concept reaches.

    Attributes:
        probe: the way.
        reach: mean over the noise levels and noises: 1 is the old prediction, 0 that of the counterpart.
        known: whether the unerased model draws the concept this way. Others say nothing.
    """

    probe: Probe
    reach: float
    known: bool


@dataclass(frozen=True)
class Curve:
    """Lengths along the schedule, means over the noises.

    Attributes:
        sigma: noise levels, from high to low.
        before, after: ``||p(c) - p(g)||`` of the unerased and of the erased model at the same latents, with g
            the prompt without the concept.
        left: the part of the latter that points where the former does.
    """

    sigma: list[float] = field(default_factory=list)
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    left: list[float] = field(default_factory=list)


class Asked:
    """Probes at the latents of their references' own trajectories, a few at a time.

    Args:
        made: prompts whose conditioning is made by hand, see
            :class:`~trace_core.evaluate.attacks.prepared.Prepared`.
        phase: name of the phase in the progress.
    """

    def __init__(self, scene: Scene, probes: Sequence[Probe], made=None, phase: str = "predictions"):
        self.scene, repeats = scene, scene.effort.repeats
        self.probes = list(probes)
        rows = [p for p in self.probes for _ in range(repeats)]
        self.clip = Prepared(scene.clip, made) if made else scene.clip
        parts = chunks(len(rows), min(PROMPTS, max(scene.config.batch, 1)))
        passes = 3 + any(p.rewritten for p in self.probes)
        tick = scene.ticker(phase, len(parts) * (scene.effort.levels + 1) * passes)
        self.rows, self.parts, self.reaches = rows, parts, []
        for number, part in enumerate(parts):
            prompts, neutral = ([getattr(rows[i], k) for i in part] for k in ("reference", "counterpart"))
            self.reaches.append(
                Reach(
                    scene.model,
                    self.clip,
                    prompts,
                    neutral,
                    scene.config,
                    scene.seed + 7 + number,
                    scene.effort.levels,
                    tick,
                )
            )

    def predictions(self, model, prompts: Sequence[str], clip=None) -> list[Tensor]:
        """Predictions ``[rows, c, h, w]`` of a model at every level; a prompt for each row."""
        found = [
            list(reach.predictions(model, [prompts[i] for i in part], clip or self.clip))
            for reach, part in zip(self.reaches, self.parts)
        ]
        return [torch.cat(level) for level in zip(*found)]

    def points(self) -> list[tuple[float, Tensor, Tensor]]:
        """Noise level, p0(reference) and p0(counterpart) ``[rows, c, h, w]`` of every level."""
        levels = zip(*(reach.points for reach in self.reaches))
        return [
            (float(level[0][1][0]), torch.cat([p[2] for p in level]), torch.cat([p[3] for p in level]))
            for level in levels
        ]

    def erased(self, clip=None) -> list[Tensor]:
        """Predictions of the erased model for the probes; outside its window the unerased model's."""
        prompts = [p.prompt for p in self.rows]
        found = self.predictions(self.scene.whole, prompts, clip)
        return [
            f if self.scene.inside(sigma) else reference
            for f, (sigma, reference, _) in zip(found, self.points())
        ]

    def each(self, predictions: Sequence[Tensor]) -> Tensor:
        """Reach of every row, the mean over the levels, ``[rows]``."""
        found = [
            1 - _length(p - c) / _length(g - c).clamp_min(1e-12)
            for p, (_, c, g) in zip(predictions, self.points())
        ]
        return torch.stack(found).mean(0)

    def of(self, name: str, values: Tensor) -> Tensor:
        """The values of a probe's rows."""
        return values[[i for i, probe in enumerate(self.rows) if probe.name == name]]


def ways(asked: Asked) -> list[Way]:
    """Every probe's reach, and whether it counts."""
    reach = asked.each(asked.erased())
    lengths = torch.stack([_length(c - g) for _, c, g in asked.points()]).mean(0)
    plain = asked.of(asked.probes[0].name, lengths).mean()
    before = None
    if any(p.rewritten for p in asked.probes):
        before = asked.each(asked.predictions(asked.scene.model, [p.prompt for p in asked.rows]))
    found = []
    for probe in asked.probes:
        if probe.rewritten:
            known = asked.of(probe.name, before).mean().item() >= KNOWN
        else:
            known = (asked.of(probe.name, lengths).mean() >= GAP * plain).item()
        found.append(Way(probe, asked.of(probe.name, reach).mean().item(), known))
    return found


def curve(asked: Asked) -> tuple[Curve, float]:
    """The curve of probes whose counterpart is the neutral prompt, and what a negative prompt does.

    The second is how far guidance away from the concept leads towards it: ``p'(g) - p'(c)`` along
    ``p0(c) - p0(g)``, the mean over the levels. It is -1 on the unerased model, and 0 where nothing is left.
    """
    erased = asked.erased()
    neutral = asked.predictions(asked.scene.whole, [p.counterpart for p in asked.rows])
    found, towards = Curve(), []
    for own, other, (sigma, c, g) in zip(erased, neutral, asked.points()):
        other = other if asked.scene.inside(sigma) else g
        length, share = _length(c - g), on_axis(own - other, torch.zeros_like(own), c - g)
        found.sigma.append(sigma)
        found.before.append(length.mean().item())
        found.after.append(_length(own - other).mean().item())
        found.left.append((share * length).mean().item())
        towards.append(-share.mean().item())
    return found, sum(towards) / len(towards)


def _length(x: Tensor) -> Tensor:
    """Norm of every row, ``[n]``."""
    return x.flatten(1).norm(dim=1)
