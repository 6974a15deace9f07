"""Adversarial prompts in a finetune: text rows that are trained against the student.

Gradients go to the rows that the text encoder gives, because the encoder itself is a closed box here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.base import POOLED
from .prompts import ConditionBatch

ROWS, VECTOR = "c_crossattn", "y"  #: ComfyUI's names of the text rows and of the pooled vector


def text_of(condition: Mapping, backbone: Backbone) -> dict[str, Tensor]:
    """The text of a condition, float32: rows ``[n, m, d]``, and the pooled vector ``[n, p]`` if there is one.

    Columns behind the pooled vector (SDXL's sizes) are left out.
    """
    pooled = backbone.width(POOLED)
    text = {ROWS: condition[ROWS]} | ({VECTOR: condition[VECTOR][:, :pooled]} if pooled else {})
    return {k: v.detach().float().clone() for k, v in text.items()}


def with_text(condition: Mapping, text: Mapping[str, Tensor]) -> dict:
    """A condition with another text of the same shapes; the rest stays."""
    out = dict(condition)
    for name, value in text.items():
        old = condition[name]
        rest = old[:, value.shape[1] :] if name == VECTOR else old[:, :0]
        out[name] = torch.cat([value.to(old.dtype), rest], dim=1)
    return out


class Adversary:
    """What an objective trains against, besides its points. A subclass overrides what it needs.

    Attributes:
        steps: finished steps on adversarial rows.
        seconds: wall-clock seconds that they took.
    """

    def __init__(self, trainer, adapters):
        self.trainer, self.adapters = trainer, adapters
        self.steps, self.seconds, self._began = 0, 0.0, 0.0

    def refreshed(self) -> None:
        """Called when the concept's trajectories have been sampled anew."""

    def prepare(self, drawn: list, numbers: list[int]) -> tuple[list, list[int]]:
        """Points and prompts of a step, as :meth:`Trainer.batch` draws them, with what is added now."""
        return drawn, numbers

    def conditions(self, numbers: Sequence[int]) -> ConditionBatch:
        """The conditions that the student is trained on, for prompts by number."""
        return self.trainer.prompts.batch(numbers)

    def correct(self) -> None:
        """Change the gradients of the adapters before they are clipped."""

    def state(self) -> list[Tensor]:
        """What a resumed run needs, besides the seed and the step; a copy on the CPU."""
        return []

    def restore(self, state: Sequence[Tensor]) -> None:
        """Restore a :meth:`state`."""

    def __enter__(self):
        self._began = time.monotonic()

    def __exit__(self, *error):
        self.seconds += time.monotonic() - self._began

    def report(self) -> dict:
        """The price: steps on adversarial rows, and their seconds."""
        return {"adversarial_steps": self.steps, "adversarial_seconds": round(self.seconds, 2)}


class Token:
    """The trained embedding of one token, in units of the empty prompt's root mean square.

    The token takes the place of a prompt's last row. The pooled vector, if there is one, is changed by a
    trained difference that starts at zero.
    """

    def __init__(self, backbone: Backbone, empty: Mapping, generator: torch.Generator):
        """
        Args:
            empty: the condition of the empty prompt.
            generator: of the random start.
        """
        text = text_of(empty, backbone)
        self.scale = {k: v.square().mean().sqrt() for k, v in text.items()}
        row = torch.randn(1, 1, text[ROWS].shape[-1], generator=generator).to(text[ROWS].device)
        self.values = {ROWS: row} | ({VECTOR: torch.zeros_like(text[VECTOR])} if VECTOR in text else {})
        for value in self.values.values():
            value.requires_grad_()
        self._backbone = backbone

    def into(self, batch: ConditionBatch) -> ConditionBatch:
        """The same prompts with this token; gradients reach :attr:`values`."""
        parts = []
        for places, condition in batch.parts:
            text = text_of(condition, self._backbone)
            token = (self.scale[ROWS] * self.values[ROWS]).expand(len(text[ROWS]), -1, -1)
            made = {ROWS: torch.cat([text[ROWS][:, :-1], token], dim=1)}
            if VECTOR in text:
                made[VECTOR] = text[VECTOR] + self.scale[VECTOR] * self.values[VECTOR]
            parts.append((places, with_text(condition, made)))
        return ConditionBatch(self._backbone, parts)

    def descend(self, loss: Tensor, rate: float) -> None:
        """One step against the gradient's sign: ``v - rate sign(dL/dv)`` (arXiv 1412.6572)."""
        found = torch.autograd.grad(loss, list(self.values.values()), allow_unused=True)
        with torch.no_grad():
            for value, gradient in zip(self.values.values(), found):
                if gradient is not None:
                    value -= rate * gradient.sign()

    def state(self) -> list[Tensor]:
        return [v.detach().cpu().clone() for v in self.values.values()]

    def restore(self, state: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for value, saved in zip(self.values.values(), state, strict=True):
                value.copy_(saved)
