"""Hardening of ``trace``.

Level 1 trains only layers that do not read the text. So a hardened closed form stays hardened, and the
training repairs what it spoiled.

From level 2 on, the student also unlearns rows that bring the concept back. At every refresh, text rows are
trained until the current student predicts with them what the base model predicts with the concept. The
student then learns the substitute's prediction at these rows. It does so on its own trajectories with them,
and on the base model's trajectories of the concept with the concept's own prompts. Adversarial training in
this form is AdvUnlearn's (arXiv 2405.15234), on rows instead of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .adversarial import Adversary, text_of, with_text
from .gradients import saved_apart
from .objectives import Term
from .objectives.base import predicted, squared_error
from .trajectory import Points

RATE = 0.03  #: learning rate of the rows, in units of their root mean square
POINTS = 8  #: points on the base model's trajectories for one step of one prompt's rows
TRAJECTORIES = 8  #: the base model's trajectories of the concept
NOISE = 0.5  #: noise on the rows of a prompt without the concept, in units of their root mean square


@dataclass(frozen=True)
class Level:
    """How hard the student is trained.

    Attributes:
        scope: adapted layers, unless the user names others.
        rows: adversarial prompts; 0: no adversary.
        steps: steps on the rows at every refresh.
        share: points of the adversarial prompts, relative to the batch.
        pictures: points on the base model's trajectories of the concept, relative to the batch.
        longer: factor of the preset's steps.
        wider: factor of the preset's keep trajectories.
        refresh: optimiser steps between two refreshes; None: the preset's.
    """

    scope: str
    rows: int = 0
    steps: int = 0
    share: float = 0.0
    pictures: float = 0.0
    longer: int = 1
    wider: int = 1
    refresh: int | None = None


#: Adapters on the text's layers alone do not resist: on demo-sd all of RECE's rows were still recognised.
LEVELS = {
    1: Level("image"),
    2: Level("linear", 4, 8, 0.5, 0.25, refresh=10),
    3: Level("linear", 4, 8, 0.5, 0.25, longer=2, wider=2, refresh=15),
}

_ROWS = Term("robust", "robust", "prompt", "all", ("neutral",), predicted("neutral"))
_PICTURES = Term("pictures", "pictures", "prompt", "all", ("neutral",), predicted("neutral"))


class _Rows:
    """One adversarial prompt: its concept's prompt, and the trained rows."""

    def __init__(self, number: int, pair: tuple[int, int], condition: dict, text: dict[str, Tensor]):
        self.number, self.pair, self.condition, self.text = number, pair, condition, text
        self.scale = {k: v.square().mean().sqrt() for k, v in text.items()}

    def made(self, change: dict[str, Tensor] | None = None) -> dict:
        """The condition with the rows, and a change of them in units of their root mean square."""
        text = self.text
        if change:
            text = {k: v + self.scale[k] * change[k] for k, v in text.items()}
        return with_text(self.condition, text)


class Hardened(Adversary):
    """Adversarial prompts of the current student, and the points where it learns them."""

    def __init__(self, trainer, adapters):
        super().__init__(trainer, adapters)
        self.level = LEVELS[trainer.config.robust]
        self.rows: list[_Rows] = []
        seed = trainer.config.seed
        pairs = trainer.draw_pairs(trainer.erase_pairs, TRAJECTORIES, seed * 7919 + 5)
        trainer.bank.sample(
            "pictures", pairs, ["concept", "neutral"], seed * 104729 + 5, adapters.use, "base", trainer.tick
        )
        for i in range(self.level.rows):
            c, g = pairs[i % len(pairs)]
            condition = trainer.prompts.condition(c)
            number = trainer.prompts.add(condition)
            self.rows.append(_Rows(number, (c, g), condition, text_of(condition, trainer.backbone)))

    # --------------------------------------------------------------------------------- the rows

    def refreshed(self) -> None:
        """Restart every second prompt's rows, train all of them, and sample the student's trajectories."""
        trainer = self.trainer
        turn = trainer.step // trainer.config.refresh
        generator = torch.Generator().manual_seed(trainer.config.seed * 49979687 + turn)
        with self:
            for i, rows in enumerate(self.rows):
                if (i + turn) % 2 == 0:
                    rows.text = self._start(rows, turn, generator)
                self._train(rows, generator)
                trainer.prompts.put(rows.number, rows.made())
        pairs = [(rows.number, rows.pair[1]) for rows in self.rows]
        trainer.bank.sample(
            "robust",
            pairs,
            ["neutral"],
            trainer.config.seed * 104729 + turn * 2 + 900001,
            self.adapters.use,
            "student",
            trainer.tick,
        )

    def _start(self, rows: _Rows, turn: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The concept's own rows, and in every second turn those of its neutral prompt with noise."""
        own = text_of(rows.condition, self.trainer.backbone)
        if turn % 4 < 2:
            return own
        neutral = text_of(self.trainer.prompts.condition(rows.pair[1]), self.trainer.backbone)
        if any(neutral[k].shape != v.shape for k, v in own.items()):
            neutral = own  # language models do not pad
        noise = {k: torch.randn(v.shape, generator=generator).to(v.device) for k, v in neutral.items()}
        return {k: v + NOISE * rows.scale[k] * noise[k] for k, v in neutral.items()}

    def _train(self, rows: _Rows, generator: torch.Generator) -> None:
        """Adam on the rows: ``min E ||p(x, rows) - p0(x, c)||^2`` on the base model's trajectories."""
        trainer, backbone = self.trainer, self.trainer.backbone
        points = trainer.bank.points["pictures"]
        points = points[(points.prompt == rows.pair[0]).nonzero()[:, 0]]
        change = {k: torch.zeros_like(v, requires_grad=True) for k, v in rows.text.items()}
        optimiser = torch.optim.Adam(change.values(), lr=RATE)
        self.adapters.use("student")
        for _ in range(self.level.steps):
            trainer.tick("adversarial rows", self.steps, self.steps + 1)
            drawn = points[torch.randint(len(points), (POINTS,), generator=generator)]
            x, sigma = drawn.x.to(backbone.device).float(), drawn.sigma.to(backbone.device)
            wanted = drawn.predictions["concept"].to(backbone.device).float()
            made = rows.made(change)
            batch = {
                k: v.expand(POINTS, *v.shape[1:]) if isinstance(v, Tensor) else v for k, v in made.items()
            }
            with saved_apart(backbone.network):
                error = squared_error(backbone.predict(x, sigma, batch), wanted, sigma).mean()
                found = torch.autograd.grad(error, list(change.values()), allow_unused=True)
            for value, gradient in zip(change.values(), found):
                value.grad = gradient
            optimiser.step()
            backbone.evaluations += 2 * POINTS
            self.steps += 1
        with torch.no_grad():
            rows.text = {k: (v + rows.scale[k] * change[k]).detach() for k, v in rows.text.items()}

    # --------------------------------------------------------------------------------- a step

    def prepare(self, drawn: list, numbers: list[int]) -> tuple[list, list[int]]:
        """Add the points of the adversarial prompts and of the concept's pictures."""
        trainer = self.trainer
        generator = torch.Generator().manual_seed(trainer.config.seed * 86028121 + trainer.step)
        for term, share in ((_ROWS, self.level.share), (_PICTURES, self.level.pictures)):
            count = round(trainer.config.batch * share)
            if count:
                points = self._drawn(term.role, count, generator)
                drawn, numbers = [*drawn, (term, points)], [*numbers, *points.prompt.tolist()]
        return drawn, numbers

    def _drawn(self, role: str, count: int, generator: torch.Generator) -> Points:
        points = self.trainer.bank.points[role]
        return points[torch.randint(len(points), (count,), generator=generator)]

    def state(self) -> list[Tensor]:
        return [v.cpu().clone() for rows in self.rows for v in rows.text.values()]

    def restore(self, state: Sequence[Tensor]) -> None:
        saved = iter(state)
        for rows in self.rows:
            rows.text = {k: next(saved).to(v.device) for k, v in rows.text.items()}
