"""Attacks on one's own erasure: how much of the concept comes back, and by what.

:data:`ATTACKS` has them by name. :func:`attack` runs some on one concept of one erasure.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ...backbones.sampling import SamplerConfig
from ...errors import TraceError
from ...lora.erasure import ErasureLora
from ..domains import Domain
from ..protocol import Progress
from . import (
    conditioning,
    img2img,
    latent,
    rece,
    revival,
    rows,
    stacking,
    token_inversion,
    token_search,
    words,
)
from .case import RECOGNISED, Attack, Case, Outcome

__all__ = ["ATTACKS", "RECOGNISED", "Attack", "Case", "Outcome", "attack", "names_of"]

_FILES = (
    rece,
    token_inversion,
    rows,
    token_search,
    words,
    conditioning,
    latent,
    img2img,
    revival,
    stacking,
)
ATTACKS: dict[str, Attack] = {file.ATTACK.name: file.ATTACK for file in _FILES}


def names_of(text: str | Sequence[str]) -> list[str]:
    """Names of attacks, from a list with commas or a sequence; ``all`` gives every attack.

    Raises:
        TraceError: naming the first unknown attack.
    """
    names = [n.strip() for n in text.split(",")] if isinstance(text, str) else list(text)
    names = [n for name in names for n in (ATTACKS if name == "all" else [name]) if n]
    unknown = next((n for n in names if n not in ATTACKS), None)
    if unknown or not names:
        raise TraceError(f"there is no attack '{unknown or text}'; use all, or some of {', '.join(ATTACKS)}")
    return list(dict.fromkeys(names))


def attack(
    model,
    lora: ErasureLora | None,
    clip,
    vae,
    domain: Domain,
    concept: str,
    names: str | Sequence[str] = "all",
    samples: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
    config: SamplerConfig | None = None,
    budget: float = 1.0,
) -> dict:
    """Attack an erasure, and judge what comes back. The model is read, never written.

    Args:
        model: the unerased ComfyUI ModelPatcher.
        lora: the erasure, applied over the whole schedule whatever its window; None attacks the unerased
            model, as a control.
        clip, vae: the ComfyUI objects that belong to the model.
        domain: the judge.
        concept: an object, synonym or style that the judge knows.
        names: attacks of :data:`ATTACKS`, or ``all``.
        samples: pictures per measurement.
        seed: seed of the pictures and of everything random; the same seed gives the same figures.
        progress: ``progress(phase, done, total)``; an exception raised in it cancels.
        config: how pictures are sampled; None: as the model is meant to be.
        budget: factor on the attacks' numbers of training steps.

    Returns:
        ``plain`` and ``unerased`` (``rate`` without an attack, of the erased model with its ``reach``, and of
        the unerased one), ``attacks``: for each name ``rate``, ``plain``, ``unerased``, ``reach``,
        ``seconds``, ``cpu_seconds`` and the details of :class:`~trace_core.evaluate.attacks.case.Outcome`;
        and the settings.

    Raises:
        ConceptError: if the judge does not know the concept.
        TraceError: if an attack is unknown, or a number is too small.
    """
    wanted = names_of(names)
    report = progress or (lambda *_: None)
    case = Case(model, lora, clip, vae, domain, concept, samples, seed, report, config, budget)
    plain = {"rate": case.plain, "reach": case.plain_reach}
    found = {name: _run(ATTACKS[name], case) for name in wanted}
    return {**case.setting, "plain": plain, "unerased": {"rate": case.unerased}, "attacks": found}


def _run(one: Attack, case: Case) -> dict:
    """An attack's outcome as it is reported."""
    began, busy = time.perf_counter(), time.process_time()
    outcome = one.run(case)
    return {
        "rate": outcome.rate,
        "plain": case.plain,
        "unerased": outcome.unerased,
        "reach": outcome.reach,
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(time.process_time() - busy, 2),
        **outcome.details,
    }
