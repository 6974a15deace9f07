"""AEGIS (arXiv 2602.06771): erase against adversarial embeddings, and correct gradients that leave the model.

The target is built from an embedding c' with which the base model predicts what the student still knows. The
student learns it at an embedding c* that brings the concept back. The weights' distance from the base model
is a second loss, whose gradient counts only where the first one works against it.

The paper's body and code could not be read. These are our reading: c' is the empty prompt with one trained
token, and c* the concept's prompt with one. A token is a row of the text encoder's output. c* descends the
loss ``||p(c*) - p0(c)||^2``. The latents are the base model's, as in ESD. The step sizes, eta, and the sign
of omega's steps are ours too. Batches of 8 and 125 steps see as many latents as the paper's 1,000 epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...text.kinds import KINDS
from ..adversarial import Adversary, Token
from .base import Objective, Term

BETA = 0.05  #: step of an embedding, in units of the rows' root mean square
MU = 0.05  #: step of omega


def adversarial_target(predictions: Mapping[str, Tensor], eta: float) -> Tensor:
    """AEGIS's target ``p0(0) - eta (p0(c') - p0(0))``, c' the adversarial embedding."""
    return predictions["uncond"] - eta * (predictions["adversarial"] - predictions["uncond"])


def embedding_loss(prediction: Tensor, student: Tensor, concept: Tensor) -> Tensor:
    """What c' descends: ``||p0(c') - p(c)||^2 + ||p0(c') - p0(c)||^2``, a sum over the batch."""
    return (prediction - student).square().sum() + (prediction - concept).square().sum()


def retention(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``1/2 ||up down||_F^2``, half the squared distance from the base model's weights.

    Args:
        up: ``[out, r]``.
        down: ``[r, in]``.

    Returns:
        ``up down down^T`` and ``up^T up down``, shaped like up and down.
    """
    return up @ (down @ down.T), (up.T @ up) @ down


def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """The inner product of two lists of tensors."""
    return sum((x * y).sum() for x, y in zip(a, b)).item()


def correction(along: float, size: float, omega: float) -> float:
    """AEGIS's lambda: ``-omega <g_e, g_r> / ||g_r||^2`` if the gradients conflict, else 0.

    Args:
        along: ``<g_e, g_r>``.
        size: ``||g_r||^2``.
    """
    return -omega * along / size if along < 0 < size else 0.0


def next_omega(omega: float, along: float) -> float:
    """One sign step: omega rises by :data:`MU` at a conflict and falls otherwise, within 0..1."""
    return min(1.0, max(0.0, omega + (MU if along < 0 else -MU)))


class Aegis(Adversary):
    """Both embeddings, one sign step each in every training step, and the corrected gradient."""

    def __init__(self, trainer, adapters):
        super().__init__(trainer, adapters)
        generator = torch.Generator().manual_seed(trainer.config.seed * 32452843 + 1)
        ((_, empty),) = trainer.prompts.batch([trainer.uncond]).parts
        self.target, self.input = (Token(trainer.backbone, empty, generator) for _ in range(2))
        self.omega = 0.0

    def prepare(self, drawn: list, numbers: list[int]) -> tuple[list, list[int]]:
        """Add the prediction ``adversarial`` to the points, then step both embeddings."""
        with self:
            return [(term, self._stepped(points)) for term, points in drawn], numbers

    def _stepped(self, points):
        backbone, prompts, device = self.trainer.backbone, self.trainer.prompts, self.trainer.backbone.device
        x, sigma = points.x.to(device).float(), points.sigma.to(device)
        concept = points.predictions["concept"].to(device).float()
        own = prompts.batch(points.prompt)
        with torch.no_grad():
            student = own.predict(x, sigma)
        self.adapters.use("base")
        empty = prompts.batch([self.trainer.uncond] * len(points))
        adversarial = self.target.into(empty).predict(x, sigma)
        self.target.descend(embedding_loss(adversarial, student, concept), BETA)
        self.adapters.use("student")
        found = self.input.into(own).predict(x, sigma)
        self.input.descend((found - concept).square().sum(), BETA)
        backbone.evaluations += 4 * len(x)  # two backward passes
        self.steps += 2
        return replace(points, predictions={**points.predictions, "adversarial": adversarial.detach()})

    def conditions(self, numbers):
        """The concept's prompts with the token of c*."""
        with torch.no_grad():
            return self.input.into(super().conditions(numbers))

    def correct(self) -> None:
        """Take from the erasing gradient what leads away from the base model, by the share omega."""
        parameters = self.adapters.parameters()
        erase = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        retain = self.adapters.arranged([retention(up, down) for up, down in self.adapters.pairs()])
        along, size = inner(erase, retain), inner(retain, retain)
        factor = correction(along, size, self.omega)
        for p, gradient, other in zip(parameters, erase, retain):
            p.grad = gradient + factor * other
        self.omega = next_omega(self.omega, along)

    def state(self) -> list[Tensor]:
        return [*self.target.state(), *self.input.state(), torch.tensor([self.omega], dtype=torch.float64)]

    def restore(self, state: Sequence[Tensor]) -> None:
        half = (len(state) - 1) // 2
        self.target.restore(state[:half])
        self.input.restore(state[half:-1])
        self.omega = state[-1].item()


#: The paper trains the whole UNet; the nearest scope is every linear layer. Its rate 1e-5 belongs to whole
#: matrices. Of the rates tried on a LoRA, this one erases most at the same accuracy of the rest.
_PAPER = {
    "scope": "linear",
    "eta": 1.0,
    "window": (0.0, 1.0),
    "steps": 125,
    "batch": 8,
    "refresh": 25,
    "lr": 1.5e-4,
}

AEGIS = Objective(
    name="aegis",
    source="AEGIS (arXiv 2602.06771), target, embeddings and corrected gradient; step sizes and the places "
    "of both embeddings are our reading",
    student="base",
    adversary=Aegis,
    terms=(Term("erase", "erase", "prompt", "all", ("uncond", "adversarial"), adversarial_target),),
    also_needs=("concept",),
    kinds=dict.fromkeys(KINDS, _PAPER),
    transformer=dict.fromkeys(KINDS, {"lr": 2.5e-4}),
)
