"""RECE's rows and the inversion of all rows in one report: what ``evaluate --recover`` prints."""

from __future__ import annotations

from ...backbones.sampling import SamplerConfig
from ...lora.erasure import ErasureLora
from ...text.templates import fill
from ..domains import Domain
from ..protocol import Progress
from .case import RECOGNISED, Case
from .rece import RELATIVE_RIDGE, Rewritten, adversarial_maps
from .rows import inversion


def recoverability(
    model,
    lora: ErasureLora,
    clip,
    vae,
    domain: Domain,
    concept: str,
    samples: int = 20,
    seed: int = 0,
    steps: int = 100,
    every: int = 10,
    lr: float = 0.02,
    progress: Progress | None = None,
    config: SamplerConfig | None = None,
) -> dict:
    """Attack an erasure in both ways, and judge what comes back. The model is read, never written.

    :func:`trace_core.evaluate.attacks.attack` has more attacks.

    Args:
        model: the base ComfyUI ModelPatcher.
        lora: the erasure, applied over the whole schedule.
        domain: the judge.
        concept: an object, synonym or style that the judge knows.
        samples: pictures per measurement.
        seed: seed of the pictures and of the training noise.
        steps, every, lr: Adam steps of the inversion, steps per judgement, learning rate.
        progress: ``progress(phase, done, total)``; an exception raised in it cancels.

    Returns:
        ``plain`` (top-1 of the concept without an attack), ``adversarial_rows`` (top-1 with RECE's rows), and
        ``inversion``: ``curve`` of ``[step, top-1]``, and ``recovered_at``, the first step at which at least
        :data:`RECOGNISED` is recognised, or None. ``lambda`` is a share of the mean diagonal, see
        :data:`~trace_core.evaluate.attacks.rece.RELATIVE_RIDGE`.

    Raises:
        ConceptError: if the judge does not know the concept.
    """
    case = Case(model, lora, clip, vae, domain, concept, samples, seed, progress or (lambda *_: None), config)
    results = {"plain": case.plain}
    rewritten = Rewritten(clip, adversarial_maps(model, case.erased))
    results["adversarial_rows"] = case.rate(case.erased, case.prompts, "adversarial_rows", rewritten)
    prompt = fill(case.template, concept)
    curve = inversion(
        model, lora, clip, prompt, case.recognised, samples, seed, steps, every, lr, case.config, progress
    )
    setting = {"concept": concept, "samples": samples, "seed": seed}
    reached = next((step for step, share in curve if share >= RECOGNISED), None)
    results["inversion"] = {
        "curve": curve,
        "recovered_at": reached,
        "prompt": prompt,
        "steps": curve[-1][0],
        "lr": lr,
    }
    return {**results, **setting, "lambda": RELATIVE_RIDGE, "recognised_from": RECOGNISED}
