"""What a picture shows, asked of the unerased model itself: a judge for models that have none.

A diffusion model is a classifier (Li et al., arXiv 2303.16203): of several prompts, the one that predicts a
picture's noise best is what it shows. Here noise is added to a finished picture, and the unerased model
predicts the picture for the concept's prompt and for other prompts. A picture shows the concept if it has
gone far enough from each of the other predictions to the concept's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    backbone = scene.backbone
    backbone.load()
    texts = Prompts(backbone, scene.clip, scene.shape, UNGUIDED)
    inner = backbone.patcher.model
    found = []
    with torch.no_grad():
        for part in chunks(len(latents), scene.config.batch):
            x0 = backbone.without_frames(
                inner.process_latent_in(backbone.with_frames(latents[part].to(backbone.device)))
            )
            own = [asked[i] for i in part]
            others = [[column[i] for i in part] for column in rivals]
            found.append(_evidence(scene, texts, x0, own, others, part, tick))
    return torch.cat(found)


def _evidence(
    scene: Scene, texts: Prompts, x0: Tensor, own, others, part: list[int], tick: Callable
) -> Tensor:
    """:func:`evidence` of one batch, of pictures ``x0`` ``[n, c, h, w]`` in the network's space."""
    backbone, levels = scene.backbone, scene.effort.levels
    batches = [texts.batch(texts.indices([(p, "") for p in prompts])) for prompts in (own, *others)]
    total = torch.zeros(len(others), len(x0))
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
            seen.append(backbone.denoised_of(x, sigma, batch.predict(x, sigma)))
        for at, rival in enumerate(seen[1:]):
            total[at] += on_axis(x0, rival, seen[0]).float().cpu()
    total /= levels
    same = torch.tensor([[a == b for a, b in zip(own, column)] for column in others])
    return total.masked_fill(same, torch.inf).min(0).values


def evaluations(scene: Scene, count: int, rivals: int) -> int:
    """Model evaluations of :func:`evidence` for this many pictures."""
    return len(chunks(count, scene.config.batch)) * scene.effort.levels * (1 + rivals)
