"""A finetune on unrelated pictures on top of the erasure (arXiv 2410.08074)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...backbones import Backbone, backbone_for
from ...backbones.defaults import defaults_of
from ...backbones.sampling import sample
from ...finetune.adapters import Adapters, attached
from ...finetune.gradients import saved_apart, training_mode
from ...finetune.options import LEARNING_RATE
from ...finetune.prompts import Prompts
from ...lora.erasure import ErasureLora
from ...lora.gating import apply
from .case import Attack, Case, Outcome

STEPS = 100  #: Adam steps
RANK = 8  #: of the adapter
BATCH = 16  #: pictures per step
PICTURES = 4  #: pictures of every other class


def run(case: Case) -> Outcome:
    """Train a LoRA on all attention layers with the plain denoising loss, then draw the concept.

    The pictures are the unerased model's own of all *other* classes. The concept's pictures and names are in
    none of them. ``unerased``: the same training on the unerased model. ``loss``: mean of the first and of
    the last ten steps on the erased model. The learning rate is the library's for LoRAs on this model.
    """
    prompts, latents = unrelated(case)
    found = {}
    for name, lora in (("erased", case.lora), ("unerased", None)):
        adapter, losses = finetuned(case, lora, prompts, latents, f"revival, {name}")
        model = apply(case.model, ErasureLora.join(lora, adapter) if lora else adapter)
        found[name] = case.rate(model, case.prompts, f"revival, {name}, judge")
        if name == "erased":
            reached, first = case.reach(model), (sum(losses[:10]) / 10, sum(losses[-10:]) / 10)
    details = {"steps": case.scaled(STEPS), "rank": RANK, "pictures": len(prompts), "loss": first}
    return Outcome(found["erased"], found["unerased"], reached, details)


def unrelated(case: Case) -> tuple[list[str], Tensor]:
    """Prompts of the other classes and the unerased model's pictures of them, ``[n, c, h, w]``.

    The erasure's counterpart is among them, as any other class.
    """
    names = [c for c in case.classes if c != case.name]
    templates = [case.templates[i % case.samples] for i in range(PICTURES)]
    prompts = [t.format(name) for name in names for t in templates]
    seeds = [case.seed * 100003 + 70001 + i for i in range(len(prompts))]

    def report(done: int, total: int) -> None:
        case.progress("revival, pictures", done, total)

    report(0, len(prompts))
    return prompts, sample(case.model, case.clip, prompts, seeds, case.config, report)


def finetuned(
    case: Case, lora: ErasureLora | None, prompts: list[str], latents: Tensor, phase: str
) -> tuple[ErasureLora, list[float]]:
    """A LoRA on top of an erasure, by the denoising loss ``E ||p(x_sigma, sigma, c) - p*||^2``.

    p* is the prediction that leads from x_sigma to the picture. The noise levels are those of evenly drawn
    fractions of the schedule.

    Args:
        lora: the erasure, which stays as it is; None for the unerased model.

    Returns:
        The adapter alone, and the loss of every step.
    """
    backbone = backbone_for(case.model)
    backbone.load()
    shape = backbone.latent_shape(case.config.width, case.config.height)
    scale = dict(getattr(defaults_of(case.model), "finetune", {})).get("lr_scale", 1.0)
    with training_mode(backbone.engine):
        texts = Prompts(backbone, case.clip, shape, case.config.guidance)
        numbers = texts.indices([(p, "") for p in prompts])
        x0 = backbone.patcher.model.process_latent_in(latents.to(backbone.device))
        targets = backbone.lora_targets("attention")
        with attached(backbone, targets, RANK, lora, case.seed) as adapters:
            losses = _train(case, backbone, adapters, texts, numbers, x0, LEARNING_RATE * scale, phase)
            return ErasureLora.from_factors(adapters.factors()[0]), losses


def _train(
    case: Case,
    backbone: Backbone,
    adapters: Adapters,
    texts: Prompts,
    numbers: list[int],
    x0: Tensor,
    lr: float,
    phase: str,
) -> list[float]:
    optimiser = torch.optim.Adam(adapters.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(case.seed + 3)
    losses, steps = [], case.scaled(STEPS)
    for step in range(steps):
        case.progress(phase, step, steps)
        drawn = torch.randint(len(numbers), (BATCH,), generator=generator)
        percents = torch.rand(BATCH, generator=generator).tolist()
        noise = torch.randn(x0[drawn].shape, generator=generator).to(x0)
        sigma = torch.tensor([backbone.sigma_at(p) for p in percents], device=x0.device)
        x = backbone.model_sampling.noise_scaling(sigma.view(-1, 1, 1, 1), noise, x0[drawn])
        wanted = backbone.prediction_of(x, sigma, x0[drawn])
        with saved_apart(backbone.network):
            out = texts.batch([numbers[i] for i in drawn]).predict(x, sigma)
            error = (out - wanted).square().mean()
            optimiser.zero_grad()
            error.backward()
        optimiser.step()
        losses.append(error.item())
    return losses


ATTACK = Attack(
    "revival",
    "a LoRA trained on pictures of other classes, on top of the erasure",
    "revival of concepts, arXiv 2410.08074",
    run,
)
