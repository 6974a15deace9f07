"""Content that prompts imply without naming it, taken out of what the base model predicts for them.

A prompt c that implies the concept t ("a portrait of Anna, at a pirate party") draws it in some of its
pictures. The base model's prediction is then the mean over pictures with and without it, by probability:

    p0(c) = P p0(c, t) + (1 - P) n

p0(c, t) is the prediction for the prompt that also names the concept. n, the prediction without it, is the
target. P follows from a prompt s that does not imply the concept. Naming the concept there changes all
pictures, and in c only those that did not show it anyway:

    p0(c, t) - p0(c) = (1 - P) (p0(s, t) - p0(s))

Both equations are derived here. No published method steers prompts that do not name the concept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .adversarial import Adversary
from .hardening import LEVELS, Hardened
from .objectives import Objective, Term
from .options import FinetuneConfig
from .trajectory import Points

SHARE = 0.5  #: points of implying prompts in a step, relative to the batch
STEMS = 3  #: kept prompts that do not imply the concept
MOST = 0.9  #: largest P; the target goes with 1 / (1 - P)
LEAST = 0.2  #: P below this is noise, and the target is then the base model's own prediction
BATCH = 64  #: points at once


def share_of(named: Tensor, whole: Tensor) -> Tensor:
    """P of every sample: ``1 - <d, D> / <D, D>`` within 0 and :data:`MOST`, and 0 below :data:`LEAST`.

    Args:
        named: d, what naming the concept changes in the prediction for the prompt, ``[n, c, h, w]``.
        whole: D, the same for a prompt that does not imply the concept.

    Returns:
        ``[n, 1, 1, 1]``.
    """
    dims = (1, 2, 3)
    left = (named * whole).sum(dims, keepdim=True) / whole.square().sum(dims, keepdim=True).clamp_min(1e-12)
    found = (1 - left).clamp(0.0, MOST)
    return torch.where(found < LEAST, torch.zeros_like(found), found)


def without(predictions: Mapping[str, Tensor], eta: float) -> Tensor:
    """The prediction without the concept, ``n = p0(c) - P / (1 - P) (p0(c, t) - p0(c))``.

    ``neutral`` is p0(c, t), the prompt that names the concept, and ``whole`` is D.
    """
    named = predictions["neutral"] - predictions["concept"]
    share = share_of(named, predictions["whole"])
    return predictions["concept"] - share / (1 - share) * named


_TERM = Term("implied", "implied", "prompt", "all", ("concept", "neutral", "whole"), without)


class Implied(Adversary):
    """Points on the student's trajectories of prompts that may imply the concepts.

    Attributes:
        shares: sum of P, and number of points, of every prompt ``[2, prompts]`` float64.
    """

    def __init__(self, trainer, adapters):
        super().__init__(trainer, adapters)
        prompts, config = trainer.prompts, trainer.config
        targets = trainer.concepts
        self.pairs = [
            (prompts.index(p), prompts.index(f"{p}, {target}")) for target in targets for p in config.implied
        ]
        kept = [prompts.texts[n] for n, _ in trainer.draw_pairs(trainer.keep_pairs, STEMS, config.seed)]
        self.stems = [(prompts.index(s), prompts.index(f"{s}, {targets[0]}")) for s in kept]
        self.place = {prompts.index(p): i for i, p in enumerate(config.implied)}
        self.shares = torch.zeros(2, len(config.implied), dtype=torch.float64)

    def refreshed(self) -> None:
        """Sample the student's trajectories, with the base model's predictions."""
        trainer = self.trainer
        seed, turn = trainer.config.seed, trainer.step // trainer.config.refresh
        with self:
            trainer.bank.sample(
                "implied",
                trainer.draw_pairs(self.pairs, trainer.config.trajectories, seed * 7919 + 31 + turn),
                ["concept", "neutral"],
                seed * 104729 + turn * 2 + 700001,
                self.adapters.use,
                "student",
                trainer.tick,
            )
            points = trainer.bank.points["implied"]
            self.adapters.use("base")
            whole = self._whole(points)
            self.adapters.use("student")
        points = replace(points, predictions={**points.predictions, "whole": whole})
        trainer.bank.points["implied"] = points
        self._count(points)
        self.steps += 1

    @torch.no_grad()
    def _whole(self, points: Points) -> Tensor:
        """D of every point: of the prompts that do not imply the concept, the largest, ``[n, c, h, w]``."""
        trainer, parts = self.trainer, []
        for at in range(0, len(points), BATCH):
            trainer.tick("base model on implying prompts", at, len(points))
            x = points.x[at : at + BATCH].to(trainer.backbone.device).float()
            sigma = points.sigma[at : at + BATCH].to(x.device)
            found = torch.stack([self._changed(stem, x, sigma) for stem in self.stems])
            largest = found.square().sum((2, 3, 4)).argmax(0)
            parts.append(found[largest, torch.arange(len(x), device=x.device)].to(points.x.dtype).cpu())
        return torch.cat(parts)

    def _changed(self, stem: tuple[int, int], x: Tensor, sigma: Tensor) -> Tensor:
        """What naming the concept changes for a prompt, ``p0(s, t) - p0(s)``."""
        plain, named = (self.trainer.prompts.batch([n] * len(x)).predict(x, sigma) for n in stem)
        return named - plain

    def _count(self, points: Points) -> None:
        p = {k: v.float() for k, v in points.predictions.items()}
        found = share_of(p["neutral"] - p["concept"], p["whole"]).flatten().double()
        where = torch.tensor([self.place[number] for number in points.prompt.tolist()])
        self.shares[0].index_add_(0, where, found)
        self.shares[1].index_add_(0, where, torch.ones_like(found))

    def state(self) -> list[Tensor]:
        return [self.shares.clone()]

    def restore(self, state: Sequence[Tensor]) -> None:
        self.shares.copy_(state[0])

    def prepare(self, drawn: list, numbers: list[int]) -> tuple[list, list[int]]:
        """Add points of the implying prompts."""
        config, points = self.trainer.config, self.trainer.bank.points["implied"]
        generator = torch.Generator().manual_seed(config.seed * 86028121 + self.trainer.step + 17)
        count = max(1, round(config.batch * SHARE))
        chosen = points[torch.randint(len(points), (count,), generator=generator)]
        return [*drawn, (_TERM, chosen)], [*numbers, *chosen.prompt.tolist()]

    def report(self) -> dict:
        """``implied``: mean P by prompt, the most implying first."""
        total, count = self.shares
        means = {
            text: share / seen
            for text, share, seen in zip(self.trainer.config.implied, total.tolist(), count.tolist())
            if seen
        }
        return {"implied": dict(sorted(means.items(), key=lambda item: -item[1]))}


def adversary_of(config: FinetuneConfig, objective: Objective) -> type[Adversary]:
    """What is trained against, beside the objective's points."""
    if config.implied:
        return Implied
    if config.robust and LEVELS[config.robust].rows:
        return Hardened
    return objective.adversary or Adversary
