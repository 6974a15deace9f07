"""What a picture shows, asked of the unerased model itself: a judge for models that have none.

A diffusion model is a classifier (Li et al., arXiv 2303.16203): of several prompts, the one that predicts a
picture's noise best is what it shows. Here noise is added to a finished picture, and the unerased model
predicts the picture for the concept's prompt and for other prompts.

* :func:`evidence`: how far a picture has gone from the other predictions to the concept's.
* :func:`best_named`: whether of many names the concept's predicts the picture best. A judge that chooses
  among classes asks the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ...backbones.sampling import noise_for
from ...finetune.prompts import Prompts
from .scene import Scene, chunks, on_axis

#: Guidance at which a network that embeds it is asked. Guided predictions lie farther from each other than
#: pictures do, so that no picture would reach them.
UNGUIDED = 1.0
NOISE = (0.15, 0.85)  #: the part of the schedule that is asked; its ends know all or nothing of a picture


def evidence(
    scene: Scene, latents: Tensor, asked: Sequence[str], rivals: Sequence[Sequence[str]], tick: Callable
) -> Tensor:
    """How much each picture shows what its prompt asks for, ``[n]``.

    It is the way from a rival's prediction to that of the asked prompt which the picture has gone, the mean
    over the noise levels, and the smallest over the rivals: 1 is as the model draws it, 0 as it draws the
    rival.

    Args:
        latents: finished pictures ``[n, c, h, w]`` as ComfyUI's sampler gives them.
        asked: a prompt for each picture.
        rivals: other prompts for each picture. Equal ones to the asked prompt do not count.
        tick: called before every model evaluation.
    """
    found = []
    for part, predictions in _parts(scene, latents, (asked, *rivals), tick):
        total = torch.zeros(len(rivals), len(part))
        for x0, (own, *others) in predictions:
            total += torch.stack([on_axis(x0, other, own).float().cpu() for other in others])
        same = torch.tensor([[asked[i] == column[i] for i in part] for column in rivals])
        found.append((total / scene.effort.levels).masked_fill(same, torch.inf).min(0).values)
    return torch.cat(found)


def best_named(
    scene: Scene, latents: Tensor, asked: Sequence[str], rivals: Sequence[Sequence[str]], tick: Callable
) -> Tensor:
    """Whether of all prompts each picture's own one predicts it best, bool ``[n]`` (Li et al., equation 6).

    The error is the mean of its logarithm over the noise levels, so that every level counts alike.

    Args: as of :func:`evidence`.
    """
    found = []
    for part, predictions in _parts(scene, latents, (asked, *rivals), tick):
        total = torch.zeros(1 + len(rivals), len(part))
        for x0, seen in predictions:
            errors = torch.stack([(one - x0).square().flatten(1).mean(1) for one in seen])
            total += errors.clamp_min(torch.finfo(errors.dtype).tiny).log().float().cpu()
        found.append(total.argmin(0) == 0)
    return torch.cat(found)


def _parts(scene: Scene, latents: Tensor, columns, tick: Callable) -> Iterator[tuple[list[int], Iterator]]:
    """Batches of the pictures: which they are, and the :func:`_predictions` of every noise level."""
    backbone = scene.backbone
    backbone.load()
    texts = Prompts(backbone, scene.clip, scene.shape, UNGUIDED)
    inner = backbone.patcher.model
    for part in chunks(len(latents), scene.config.batch):
        x0 = backbone.without_frames(
            inner.process_latent_in(backbone.with_frames(latents[part].to(backbone.device)))
        )
        prompts = [[column[i] for i in part] for column in columns]
        yield part, _predictions(scene, texts, x0, prompts, part, tick)


def _predictions(
    scene: Scene, texts: Prompts, x0: Tensor, columns, part: list[int], tick: Callable
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """For every noise level ``x0`` ``[n, c, h, w]`` in the network's space, and its prediction by column."""
    backbone, levels = scene.backbone, scene.effort.levels
    batches = [texts.batch(texts.indices([(p, "") for p in prompts])) for prompts in columns]
    for number in range(levels):
        share = number / max(1, levels - 1)
        level = backbone.sigma_at(NOISE[0] + (NOISE[1] - NOISE[0]) * share)
        seeds = [scene.seed * 1009 + 7919 * number + i for i in part]
        noise = noise_for(seeds, scene.shape).to(x0)
        sigma = torch.full((len(x0),), level, device=x0.device)
        x = backbone.model_sampling.noise_scaling(sigma[:1], noise, x0, False)
        seen = []
        for batch in batches:
            tick()
            with torch.no_grad():
                seen.append(backbone.denoised_of(x, sigma, batch.predict(x, sigma)))
        yield x0, seen


def evaluations(scene: Scene, count: int, rivals: int) -> int:
    """Model evaluations for this many pictures and rivals."""
    return len(chunks(count, scene.config.batch)) * scene.effort.levels * (1 + rivals)
