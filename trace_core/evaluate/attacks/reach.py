"""Reach: how near an attacked model comes to the unerased one, without a judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ...backbones import backbone_for
from ...backbones.sampling import SamplerConfig
from ...finetune.prompts import Prompts, grouped
from ...finetune.trajectory import Sampling, trajectories
from ...text.batching import encode

PROMPTS = 10  #: prompts of the concept that reach is measured on, one trajectory each


def reach(attacked: Tensor, concept: Tensor, neutral: Tensor) -> float:
    """``1 - ||p'(c*) - p0(c)|| / ||p0(g) - p0(c)||`` at one noise level.

    Args:
        attacked: p'(c*), predictions of the erased model with the attacked condition, ``[n, c, h, w]``.
        concept, neutral: p0(c) and p0(g), predictions of the unerased model at the same latents.

    Returns:
        1 if the attacked model predicts as the unerased one does for the concept, 0 if it is as far from that
        as the neutral prompt is, and below 0 if it is farther.
    """
    return 1 - ((attacked - concept).norm() / (neutral - concept).norm().clamp_min(1e-12)).item()


class Reach:
    """Mean :func:`reach` over the noise levels of the unerased model's own trajectories of the concept.

    Every level counts the same. The trajectories are sampled once.

    Args:
        model, clip: the unerased ComfyUI model and its text encoder.
        prompts, neutral: prompts of the concept, and the same without it. The first :data:`PROMPTS` are used.
        seed: seed of the trajectories.
        steps: noise levels of a trajectory; None: the sampling steps.
        tick: called before every model evaluation; an exception raised in it cancels.
    """

    def __init__(
        self,
        model,
        clip,
        prompts: Sequence[str],
        neutral: Sequence[str],
        config: SamplerConfig,
        seed: int,
        steps: int | None = None,
        tick: Callable[[], None] = lambda: None,
    ):
        self._clip, self._config, self._tick = clip, config, tick
        backbone = backbone_for(model)
        backbone.load()
        shape = backbone.latent_shape(config.width, config.height)
        texts = Prompts(backbone, clip, shape, config.guidance)
        with torch.no_grad():
            numbers = texts.indices([(p, "") for p in prompts[:PROMPTS]])
            others = texts.batch(texts.indices([(p, "") for p in neutral[:PROMPTS]]))
            sampling = Sampling(steps or config.steps, config.cfg, len(numbers), torch.float32)
            #: (x, sigma, p0(c), p0(g)) per level, on the CPU
            self.points: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
            uncond = texts.index("")
            for _, sigma, x, found in trajectories(backbone, texts, numbers, uncond, sampling, seed, tick):
                if found:
                    level = torch.full((len(x),), sigma, device=x.device)
                    point = (x, level, found["prompt"], others.predict(x, level))
                    self.points.append(tuple(t.cpu() for t in point))

    def predictions(self, model, prompts: Sequence[str], clip=None) -> Iterator[Tensor]:
        """Predictions ``[n, c, h, w]`` of a model at every level, on the CPU.

        Args:
            prompts: prompt i is read at the latents of the concept's prompt i.
            clip: the text encoder of these prompts; None: the own one. Weights such as ``(cat:1.5)`` are
                read.
        """
        clip, backbone = clip or self._clip, backbone_for(model)
        backbone.load()
        shape = backbone.latent_shape(self._config.width, self._config.height)
        with torch.no_grad():
            known = {
                p: backbone.condition(
                    encode(clip, clip.tokenize(p)).conditioning(), shape, self._config.guidance
                )
                for p in dict.fromkeys(prompts[:PROMPTS])
            }
            batch = grouped(backbone, [known[p] for p in prompts[:PROMPTS]])
            for x, sigma, _, _ in self.points:
                self._tick()
                yield batch.predict(x.to(backbone.device), sigma.to(backbone.device)).cpu()

    def __call__(self, model, prompts: Sequence[str], clip=None) -> float:
        """Mean reach of a model whose attacked prompt i stands for the concept's prompt i.

        Args:
            clip: see :meth:`predictions`.
        """
        attacked = self.predictions(model, prompts, clip)
        found = [reach(a, c, g) for a, (_, _, c, g) in zip(attacked, self.points)]
        return sum(found) / len(found)
