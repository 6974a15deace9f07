"""What every side of a verification reads: both models, the text encoder, the settings, the progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ...backbones import Backbone, backbone_for
from ...backbones.defaults import ModelDefaults, defaults_of
from ...backbones.sampling import SamplerConfig, sample
from ...errors import TraceError
from ...lora.erasure import ErasureLora
from ...lora.gating import apply
from ...text.concepts import Concept
from ...text.encoding import TextEncoder
from ..attacks.case import counterpart_of
from ..protocol import Progress


@dataclass(frozen=True)
class Effort:
    """How much a verification measures.

    Attributes:
        samples: pictures of each concept, before and after.
        kept: kept things that are drawn, neighbours first.
        kept_samples: pictures of each kept thing, before and after.
        neighbours: near neighbours of each concept among the kept things.
        levels: noise levels at which predictions are compared.
        repeats: noises with which each way to write a concept is asked.
        attacks: whether to attack the erasure.

    Raises:
        TraceError: if a number is too small.
    """

    samples: int = 12
    kept: int = 12
    kept_samples: int = 3
    neighbours: int = 5
    levels: int = 8
    repeats: int = 2
    attacks: bool = True

    def __post_init__(self):
        for name in ("samples", "kept", "kept_samples", "levels", "repeats"):
            if getattr(self, name) < 1:
                raise TraceError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.neighbours < 0:
            raise TraceError(f"neighbours is {self.neighbours}; it must be at least 0")


@dataclass
class Scene:
    """Both models of a verification. They are read, never written.

    Attributes:
        model: the unerased ComfyUI ModelPatcher.
        clip: its text encoder.
        lora: the erasure.
        strength: strength of the erasure.
        config: how pictures are sampled.
        seed: seed of everything random.
        progress: ``progress(phase, done, total)``; an exception raised in it cancels.
    """

    model: object
    clip: object
    lora: ErasureLora
    strength: float
    config: SamplerConfig
    effort: Effort
    seed: int
    progress: Progress

    @cached_property
    def erased(self):
        """The model with the erasure in the file's own window."""
        return apply(self.model, self.lora, self.strength, None, None)

    @cached_property
    def whole(self):
        """The model with the erasure at every step, which predictions outside ComfyUI's sampler need."""
        whole = self.lora.window == (0.0, 1.0)
        return self.erased if whole else apply(self.model, self.lora, self.strength)

    @cached_property
    def backbone(self) -> Backbone:
        return backbone_for(self.model)

    @cached_property
    def encoder(self) -> TextEncoder:
        return TextEncoder(self.clip, read=self.backbone.read_rows)

    @cached_property
    def own(self) -> ModelDefaults | None:
        """Defaults that the model object carries."""
        return defaults_of(self.model)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``[c, h, w]`` of a latent."""
        return self.backbone.latent_shape(self.config.width, self.config.height)

    def steered(self, concept: Concept) -> Concept:
        """The concept with what takes its place, from the concept itself or from the file."""
        if concept.anchor:
            return concept
        return replace(concept, anchor=counterpart_of(self.lora, concept.target))

    def inside(self, sigma: float) -> bool:
        """Whether the erasure acts at a noise level."""
        start, end = self.lora.window
        sampling = self.backbone.model_sampling
        return sampling.percent_to_sigma(start) >= sigma >= sampling.percent_to_sigma(end)

    def draw(self, model, prompts: Sequence[str], phase: str) -> Tensor:
        """Latents ``[n, c, h, w]`` float32 on the CPU; prompt i has the seed ``seed * 100003 + i``."""
        steps = self.config.steps * -(-len(prompts) // self.config.batch)
        done = 0

        def step(*_) -> None:
            nonlocal done
            done += 1
            self.progress(phase, min(done, steps), steps)

        self.progress(phase, 0, steps)
        seeds = [self.seed * 100003 + i for i in range(len(prompts))]
        return sample(model, self.clip, prompts, seeds, self.config, step=step).cpu().float()

    def ticker(self, phase: str, total: int):
        """A function to call before every model evaluation of a phase."""
        done = 0

        def tick() -> None:
            nonlocal done
            self.progress(phase, min(done, total), total)
            done += 1

        return tick


def chunks(count: int, size: int) -> list[list[int]]:
    """Places ``0 .. count - 1`` in parts of at most ``size``."""
    size = max(1, size)
    return [list(range(i, min(i + size, count))) for i in range(0, count, size)]


def on_axis(value: Tensor, zero: Tensor, one: Tensor) -> Tensor:
    """Where values lie on the way from ``zero`` to ``one``, ``[n]``: 0 and 1 are the ends.

    Args:
        value, zero, one: ``[n, ...]``.
    """
    way, gone = (one - zero).flatten(1), (value - zero).flatten(1)
    return (way * gone).sum(1) / way.square().sum(1).clamp_min(torch.finfo(way.dtype).tiny)
