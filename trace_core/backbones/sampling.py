"""Sample latents from a ComfyUI model in batches of prompts and seeds, with ComfyUI's own sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import TraceError
from .base import engine_of
from .defaults import defaults_of
from .families import backbone_for


@dataclass(frozen=True)
class SamplerConfig:
    """How pictures are sampled.

    Attributes:
        steps: sampling steps.
        cfg: classifier-free guidance; 1 switches it off, as FLUX needs.
        guidance: FLUX guidance embedding.
        sampler, scheduler: names as in ComfyUI's KSampler.
        width, height: pixels.
        batch: pictures sampled at once.
        negative: the negative prompt; ignored if cfg is 1.
    """

    steps: int = 12
    cfg: float = 3.0
    guidance: float = 3.0
    sampler: str = "dpmpp_2m"
    scheduler: str = "karras"
    width: int = 64
    height: int = 64
    batch: int = 64
    negative: str = ""

    @classmethod
    def for_model(cls, model, **changes) -> SamplerConfig:
        """Defaults of the model's family: CFG for SD, guidance embedding without CFG for FLUX."""
        if backbone_for(model).kind.startswith("flux"):
            changes = {"cfg": 1.0, "sampler": "euler", "scheduler": "simple", **changes}
        return cls(**changes)


def noise_for(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Standard normal noise ``[len(seeds), *shape]``.

    Each picture has its own generator, whatever the batch.
    """
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])


class Conditioner:
    """Prompts to ComfyUI conditioning of a whole batch. Each prompt is encoded once."""

    def __init__(self, clip):
        self.clip = clip
        self._cache: dict[str, tuple[Tensor, Tensor | None]] = {}

    def __call__(self, prompts: Sequence[str], **extra) -> list:
        encoded = [self._encode(p) for p in prompts]
        rows = max(e[0].shape[1] for e in encoded)
        if any(e[0].shape[1] != rows for e in encoded):
            raise TraceError(
                "prompts of different lengths in tokens cannot be sampled in one batch; shorten the longest"
            )
        pooled = None if encoded[0][1] is None else torch.cat([e[1] for e in encoded])
        return [[torch.cat([e[0] for e in encoded]), {"pooled_output": pooled, **extra}]]

    def _encode(self, prompt: str):
        if prompt not in self._cache:
            self._cache[prompt] = self.clip.encode_from_tokens(self.clip.tokenize(prompt), return_pooled=True)
        return self._cache[prompt]


def sample(
    model,
    clip,
    prompts: Sequence[str],
    seeds: Sequence[int],
    config: SamplerConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
    step: Callable | None = None,
) -> Tensor:
    """Latents ``[n, c, h/8, w/8]`` of prompt i with seed i. A picture does not depend on its batch.

    ``progress(done, total)`` is called per batch of pictures, and ``step`` per sampling step, like ComfyUI's
    callback. An exception from either cancels.

    Raises:
        TraceError: if the numbers of prompts and seeds differ.
    """
    if len(prompts) != len(seeds):
        raise TraceError(f"{len(prompts)} prompts and {len(seeds)} seeds; give equally many of both")
    config = config or SamplerConfig.for_model(model)
    conditioner = Conditioner(clip)
    fmt = model.model.latent_format
    shape = (fmt.latent_channels, config.height // 8, config.width // 8)
    out = []
    for start in range(0, len(prompts), config.batch):
        part = slice(start, start + config.batch)
        latents = _sample_batch(
            model, conditioner, prompts[part], noise_for(seeds[part], shape), config, step
        )
        out.append(latents)
        if progress:
            progress(min(start + config.batch, len(prompts)), len(prompts))
    return torch.cat(out)


class FirstStep:
    """A model's prediction after one step from pure noise, close to the mean of its pictures of a prompt.

    Args:
        model, clip: ComfyUI objects that belong together.
        seeds: number of noise seeds, the same for every prompt.
        size: pixels; a small picture is as informative about a style as a large one.
    """

    def __init__(self, model, clip, seeds: int = 8, size: int = 256):
        self.model, self.clip, self.seeds = model, clip, list(range(seeds))
        own = defaults_of(model)
        size = own.picture_size if own else size
        self.config = SamplerConfig.for_model(
            model, steps=1, cfg=1.0, sampler="euler", width=size, height=size, batch=seeds
        )

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """``[prompts, seeds, values]`` float32 on the CPU."""
        latents = [
            sample(self.model, self.clip, [p] * len(self.seeds), self.seeds, self.config) for p in prompts
        ]
        return torch.stack(latents).flatten(2).float().cpu()


# v0.3.64 cannot round patches to float8 with gradients enabled. The caller chooses inference mode.
@torch.no_grad()
def _sample_batch(
    model,
    conditioner: Conditioner,
    prompts: Sequence[str],
    noise: Tensor,
    config: SamplerConfig,
    step: Callable | None = None,
) -> Tensor:
    positive = conditioner(prompts, guidance=config.guidance)
    negative = conditioner([config.negative], guidance=config.guidance)
    empty = torch.zeros_like(noise)
    with torch.no_grad():  # loading applies patches to the weights, and fp8 rounding has no gradient
        return engine_of(model).sample.sample(
            model,
            noise,
            config.steps,
            config.cfg,
            config.sampler,
            config.scheduler,
            positive,
            negative,
            empty,
            denoise=1.0,
            disable_pbar=True,
            seed=0,
            callback=step,
        )
