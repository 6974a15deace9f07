"""Text-free inversion of a picture (TINA, arXiv 2603.17828)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...backbones import Backbone, backbone_for
from ...finetune.prompts import Prompts
from ...finetune.trajectory import schedule
from .case import Attack, Case, Outcome

STEPS = 24  #: steps of the inversion and of the resampling
ITERATIONS = 4  #: of the fixed point per step (the released code has 25 steps of AdamW)
DAMPING = 0.7  #: share of the new value in an iteration

Predict = Callable[[Tensor, float], Tensor]  #: x0 of x ``[n, c, h, w]`` at a noise level


def direction(denoised: Predict, x: Tensor, sigma: float) -> Tensor:
    """``dx/dsigma = (x - x0) / sigma`` of the probability flow (Karras et al., arXiv 2206.00364, eq. 3)."""
    return (x - denoised(x, sigma)) / sigma


def inverted(denoised: Predict, x: Tensor, levels: list[float], iterations: int, tick: Callable) -> Tensor:
    """The latents from which Euler's method comes to x, by a damped fixed point per step.

    A step of Euler's method from z at sigma to y at sigma' is ``y = z + (sigma' - sigma) d(z, sigma)``, so z
    is the fixed point of ``z = y + (sigma - sigma') d(z, sigma)``.

    Args:
        x: finished latents ``[n, c, h, w]``.
        levels: noise levels from high to low, the last one above 0.
        tick: called before every iteration.
    """
    below = 0.0
    for sigma in reversed(levels):
        start = z = x
        for _ in range(iterations):
            tick()
            z = z + DAMPING * (start + (sigma - below) * direction(denoised, z, sigma) - z)
        x, below = z, sigma
    return x


def sampled(denoised: Predict, x: Tensor, levels: list[float], tick: Callable) -> Tensor:
    """Euler's method from x at the first of the levels down to 0."""
    for sigma, below in zip(levels, [*levels[1:], 0.0]):
        tick()
        x = x + (below - sigma) * direction(denoised, x, sigma)
    return x


def run(case: Case) -> Outcome:
    """Invert the unerased model's pictures of the concept with the empty prompt, and sample them again.

    Both ways use the erased model, the empty prompt and no guidance. A model whose predictions for the empty
    prompt are the unerased model's gives the pictures back by construction, whatever it does with the
    concept. So ``unerased`` is the rate to compare with. It is also that of a class of which an erasure knows
    nothing.
    ``error`` is the mean squared error of the latents (unit variance on the demo models).
    """
    found = {}
    for name, model in (("erased", case.erased), ("unerased", case.model)):
        latents = _round_trip(case, model, f"latent-inversion, {name}")
        error = (latents - case.base_latents).square().mean().item()
        found[name] = case.recognised(latents), error
    details = {
        "pictures": case.unerased,
        "error": found["erased"][1],
        "error_unerased": found["unerased"][1],
        "steps": STEPS,
        "iterations": case.scaled(ITERATIONS),
    }
    return Outcome(found["erased"][0], found["unerased"][0], None, details)


def _round_trip(case: Case, model, phase: str) -> Tensor:
    """The unerased pictures through the inversion and back, latents ``[n, c, h, w]`` on the CPU."""
    backbone = backbone_for(model)
    backbone.load()
    _, levels = schedule(backbone, STEPS)
    levels = levels[1:]  # the first two are the same
    iterations, done = case.scaled(ITERATIONS), 0
    total = len(levels) * (iterations + 1)

    def tick() -> None:
        nonlocal done
        case.progress(phase, done, total)
        done += 1

    with torch.no_grad():
        denoised = _without_text(backbone, case)
        inner = backbone.patcher.model
        x = inner.process_latent_in(case.base_latents.to(backbone.device))
        noise = inverted(denoised, x, levels, iterations, tick)
        return inner.process_latent_out(sampled(denoised, noise, levels, tick)).cpu()


def _without_text(backbone: Backbone, case: Case) -> Predict:
    """The model's x0 for the empty prompt."""
    shape = backbone.latent_shape(case.config.width, case.config.height)
    prompts = Prompts(backbone, case.clip, shape, case.config.guidance)
    batch = prompts.batch([prompts.index("")] * case.samples)

    def denoised(x: Tensor, sigma: float) -> Tensor:
        level = torch.full((len(x),), sigma, device=x.device)
        return backbone.denoised_of(x, level, batch.predict(x, level))

    return denoised


ATTACK = Attack(
    "latent-inversion",
    "pictures of the concept inverted and sampled again without text",
    "TINA, arXiv 2603.17828",
    run,
)
