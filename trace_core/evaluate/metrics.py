"""The measures, one formula per function. Accuracies are fractions of 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def h_o(acc_e: float, acc_s: float, acc_g: float) -> float:
    """MACE (arXiv 2403.06135), eq. 8: ``3 / (1/(1-Acc_e) + 1/Acc_s + 1/(1-Acc_g))``, 0 if a term vanishes."""
    return harmonic((1 - acc_e, acc_s, 1 - acc_g))


def h_c(acc_e: float, acc_s: float) -> float:
    """MACE (arXiv 2403.06135), section 4: ``2 / (1/(1-Acc_e) + 1/Acc_s)``, 0 if a term vanishes."""
    return harmonic((1 - acc_e, acc_s))


def harmonic(values: Sequence[float]) -> float:
    """Harmonic mean; 0 if a value is 0."""
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / v for v in values)


def top1(probabilities: Tensor, target: int) -> float:
    """Share of the rows of ``[n, classes]`` with the target as the largest entry."""
    return (probabilities.argmax(-1) == target).float().mean().item()


def mean_probability(probabilities: Tensor, target: int) -> float:
    """Mean probability of the target class, which MACE's released evaluation reports instead of top-1."""
    return probabilities[:, target].mean().item()


def drift(latents: Tensor, base_latents: Tensor, pictures: Tensor, base_pictures: Tensor) -> dict[str, float]:
    """Distance from the base model at the same prompts and seeds.

    Args:
        latents, base_latents: ``[n, c, h, w]``.
        pictures, base_pictures: ``[n, h, w, 3]`` in 0..1.

    Returns:
        ``latent_mse`` (latents have unit variance), ``psnr`` of the pictures in dB (100 if equal),
        ``samples``.
    """
    error = (pictures - base_pictures).square().mean().item()
    return {
        "latent_mse": (latents - base_latents).square().mean().item(),
        "psnr": min(100.0, -10 * math.log10(error)) if error > 0 else 100.0,
        "samples": len(latents),
    }
