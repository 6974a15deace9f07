"""Sample latents from a ComfyUI model in batches of prompts and seeds, with ComfyUI's own sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ModelError, TraceError
from ..text.batching import encode
from .base import engine_of
from .defaults import defaults_of
from .families import backbone_for
from .numerics import is_finite


@dataclass(frozen=True)
class SamplerConfig:
    """How pictures are sampled.

    Attributes:
        steps: sampling steps.
        cfg: classifier-free guidance; 1 switches it off.
        guidance: strength for a network that embeds it.
        sampler, scheduler: names as in ComfyUI's KSampler.
        width, height: pixels.
        batch: pictures sampled at once.
        negative: the negative prompt; ignored if cfg is 1.

    Raises:
        TraceError: if a number cannot be sampled with.
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

    def __post_init__(self):
        for name, least in (("steps", 1), ("batch", 1), ("width", 8), ("height", 8)):
            if getattr(self, name) < least:
                raise TraceError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("cfg", "guidance"):
            if not math.isfinite(getattr(self, name)):
                raise TraceError(f"{name} is {getattr(self, name)}; it must be a finite number, such as 3")

    @classmethod
    def for_model(cls, model, **changes) -> SamplerConfig:
        """The settings that the model is meant to be sampled with: its family's, or a demo model's own."""
        traits, own = backbone_for(model).traits, defaults_of(model)
        settings = {"cfg": traits.cfg, "sampler": traits.sampler, "scheduler": traits.scheduler}
        if own:
            settings |= own.sampling
        else:
            settings |= {"steps": traits.steps, "width": traits.size, "height": traits.size, "batch": 1}
        return cls(**{**settings, **changes})


def noise_for(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Standard normal noise ``[len(seeds), *shape]``.

    Each picture has its own generator, whatever the batch.
    """
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])


class Conditioner:
    """Prompts to ComfyUI conditioning of a whole batch. Each prompt is encoded once."""

    def __init__(self, clip):
        self.clip = clip
        self._cache: dict[str, dict] = {}

    def __call__(self, prompts: Sequence[str], **extra) -> list:
        encoded = [self._encode(p) for p in prompts]
        joined = {
            k: torch.cat([e[k] for e in encoded]) if isinstance(v, Tensor) else v
            for k, v in encoded[0].items()
        }
        return [[joined.pop("cond"), {**joined, **extra}]]

    def batches(self, prompts: Sequence[str], size: int) -> list[list[int]]:
        """Places of the prompts in batches of at most ``size`` prompts with the same number of rows."""
        by_rows: dict[int, list[int]] = {}
        for at, prompt in enumerate(prompts):
            by_rows.setdefault(self._encode(prompt)["cond"].shape[1], []).append(at)
        return [p[i : i + size] for p in by_rows.values() for i in range(0, len(p), size)]

    def _encode(self, prompt: str) -> dict:
        if prompt not in self._cache:
            self._cache[prompt] = encode(self.clip, self.clip.tokenize(prompt)).conditioning()
        return self._cache[prompt]


def sample(
    model,
    clip,
    prompts: Sequence[str],
    seeds: Sequence[int],
    config: SamplerConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
    step: Callable | None = None,
    latents: Tensor | None = None,
    denoise: float = 1.0,
) -> Tensor:
    """Latents ``[n, c, h, w]`` of prompt i with seed i. A picture does not depend on its batch.

    ``progress(done, total)`` is called per batch of pictures, and ``step`` per sampling step, like ComfyUI's
    callback. An exception from either cancels.

    Args:
        latents: pictures to start from, ``[n, c, h, w]``; None: empty ones.
        denoise: share of the schedule to sample, as in ComfyUI's KSampler. Below 1 a picture to start from
            shows through.

    Raises:
        TraceError: if the numbers of prompts and seeds differ.
        ModelError: if the model gives values that are no numbers.
    """
    if len(prompts) != len(seeds):
        raise TraceError(f"{len(prompts)} prompts and {len(seeds)} seeds; give equally many of both")
    config = config or SamplerConfig.for_model(model)
    conditioner, backbone = Conditioner(clip), backbone_for(model)
    shape = backbone.latent_shape(config.width, config.height)
    out: dict[int, Tensor] = {}
    for places in conditioner.batches(prompts, config.batch):
        noise = backbone.with_frames(noise_for([seeds[at] for at in places], shape))
        start = torch.zeros_like(noise) if latents is None else backbone.with_frames(latents[places])
        texts = [prompts[at] for at in places]
        made = _sample_batch(model, conditioner, texts, noise, config, step, start, denoise)
        if not is_finite(made):
            raise ModelError(
                f"the model draws NaN or infinite values for '{texts[0][:60]}'; load the model's fp32 or "
                "bf16 file, or remove the LoRA or the node that breaks it"
            )
        out |= zip(places, backbone.without_frames(made))
        if progress:
            progress(len(out), len(prompts))
    return torch.stack([out[at] for at in range(len(prompts))])


def check_vae(vae) -> None:
    """Refuse what is no VAE, before any picture is drawn.

    Raises:
        ModelError: naming what it is.
    """
    if not hasattr(vae, "decode"):
        what = "no VAE is connected" if vae is None else f"{type(vae).__name__} is not a VAE"
        raise ModelError(f"{what}; connect the VAE output of a loader")


def decode(vae, latents: Tensor) -> Tensor:
    """Pictures ``[n, 8h, 8w, 3]`` in 0..1 of latents ``[n, c, h, w]``, also by a VAE of videos."""
    video = getattr(vae, "latent_dim", 2) == 3
    pictures = vae.decode(latents.unsqueeze(2) if video else latents)
    return pictures[:, 0] if pictures.ndim == 5 else pictures


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
    step: Callable | None,
    start: Tensor,
    denoise: float,
) -> Tensor:
    guidance = {"guidance": config.guidance} if backbone_for(model).traits.embeds_guidance else {}
    positive = conditioner(prompts, **guidance)
    negative = conditioner([config.negative], **guidance)
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
            start,
            denoise=denoise,
            disable_pbar=True,
            seed=0,
            callback=step,
        )
