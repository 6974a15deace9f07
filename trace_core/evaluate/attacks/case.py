"""What every attack reads: the two models, the concept's prompts, the judge, and two measures of success."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from ...backbones.sampling import SamplerConfig, decode, sample
from ...errors import ConceptError, LoraError, TraceError
from ...lora.erasure import ErasureLora
from ...lora.gating import apply
from ...text.concepts import same
from ...text.templates import fill
from ..domains import OBJECT, PERSON, TRAIT, Domain
from ..metrics import top1
from ..protocol import Progress
from .reach import Reach

RECOGNISED = 0.5  #: share of recognised pictures from which a concept counts as recovered


@dataclass(frozen=True)
class Outcome:
    """What an attack brought back.

    Attributes:
        rate: share of the attacked pictures that the judge recognises as the concept, 0..1; None if the
            attack does not apply to this model or concept.
        unerased: the same of the same attack on the unerased model; None where that has no meaning.
        reach: how near the attacked predictions come to the unerased model's, see
            :class:`~trace_core.evaluate.attacks.reach.Reach`; None where that has no meaning.
        details: what else an attack has to say.
    """

    rate: float | None
    unerased: float | None = None
    reach: float | None = None
    details: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class Attack:
    """An attack by name.

    Attributes:
        help: one sentence on what the attacker does.
        source: paper and equation, or whose practice it is.
        run: the attack on a :class:`Case`.
    """

    name: str
    help: str
    source: str
    run: Callable[[Case], Outcome]


@dataclass
class Case:
    """One concept of one erasure, under attack. The models are read, never written.

    Attributes:
        model: the unerased ComfyUI ModelPatcher.
        lora: the erasure, applied over the whole schedule; None attacks the unerased model, as a control.
        clip, vae: the ComfyUI objects that belong to the model.
        domain: the judge and its classes.
        concept: an object, synonym or style that the judge knows.
        samples: pictures per measurement.
        seed: seed of the pictures and of everything random.
        progress: ``progress(phase, done, total)``; an exception raised in it cancels.
        config: how pictures are sampled.
        budget: factor on the attacks' numbers of steps.

    Raises:
        ConceptError: if the judge does not know the concept.
        TraceError: if ``samples`` or ``budget`` is too small.
    """

    model: object
    lora: ErasureLora | None
    clip: object
    vae: object
    domain: Domain
    concept: str
    samples: int = 20
    seed: int = 0
    progress: Progress = lambda *_: None
    config: SamplerConfig | None = None
    budget: float = 1.0

    def __post_init__(self):
        place = self.domain.locate(self.concept)
        if place is None:
            raise ConceptError(f"the judge does not know '{self.concept}'")
        if place[0] == TRAIT:
            raise ConceptError(f"attacks need a concept that prompts name; '{self.concept}' is a trait")
        if self.samples < 1:
            raise TraceError(f"samples is {self.samples}; it must be at least 1")
        if not self.budget > 0:
            raise TraceError(f"the budget is {self.budget}; it is a factor above 0, such as 1")
        self.head, self.name = place
        self.config = self.config or SamplerConfig.for_model(self.model)

    # ------------------------------------------------------------------------------------------- prompts

    @property
    def classes(self) -> list[str]:
        """The judge's classes of the concept's kind."""
        return self.domain.heads[self.head]

    @property
    def templates(self) -> list[str]:
        """One template per picture; ``{}`` is the concept's place. They cycle through the other kind."""
        return self.domain.templates(self.head, self.samples)

    def prompts_of(self, words: str) -> list[str]:
        """The templates with other words in the concept's place; empty words leave it out."""
        return [fill(template, words) for template in self.templates]

    @cached_property
    def prompts(self) -> list[str]:
        """One prompt of the concept per picture."""
        return self.prompts_of(self.concept)

    @cached_property
    def neutral(self) -> list[str]:
        """The same prompts without the concept."""
        return self.prompts_of("")

    @property
    def template(self) -> str:
        """The one template of the attacks that train on one prompt."""
        return {OBJECT: "a photo of a {}", PERSON: "a portrait of {}"}.get(self.head, "a photo, {}")

    @cached_property
    def counterpart(self) -> str:
        """What the erasure draws instead of the concept, from its file; empty for the neutral prompt."""
        return counterpart_of(self.lora, self.concept) if self.lora else ""

    @cached_property
    def others(self) -> list[str]:
        """The other classes of the concept's kind without its counterpart, from the next one on."""
        place = self.classes.index(self.name)
        ring = [*self.classes[place + 1 :], *self.classes[:place]]
        return [c for c in ring if not same(c, self.counterpart)] or ring

    @property
    def seeds(self) -> list[int]:
        """Seeds of the pictures, those of :class:`~trace_core.evaluate.Evaluator`."""
        return [self.seed * 100003 + i for i in range(self.samples)]

    @property
    def setting(self) -> dict:
        """What the figures were measured with."""
        c = self.config
        return {
            "concept": self.concept,
            "class": self.name,
            "samples": self.samples,
            "seed": self.seed,
            "budget": self.budget,
            "recognised_from": RECOGNISED,
            "sampler": f"{c.sampler}/{c.scheduler}, {c.steps} steps, cfg {c.cfg}",
        }

    def scaled(self, steps: int) -> int:
        """A number of steps under the budget, at least 1."""
        return max(1, round(steps * self.budget))

    # ------------------------------------------------------------------------------------------- measures

    @cached_property
    def erased(self):
        """The model under attack."""
        return apply(self.model, self.lora) if self.lora else self.model

    def hits(self, latents: Tensor) -> Tensor:
        """Which pictures the judge recognises as the concept, ``[n]`` bool, of latents ``[n, c, h, w]``."""
        chances = self.domain.judge(decode(self.vae, latents), self.head)
        return chances.argmax(-1) == self.classes.index(self.name)

    def recognised(self, latents: Tensor) -> float:
        """Share of the pictures that the judge recognises as the concept."""
        chances = self.domain.judge(decode(self.vae, latents), self.head)
        return top1(chances, self.classes.index(self.name))

    def draw(self, model, prompts: Sequence[str], phase: str, clip=None, **options) -> Tensor:
        """Latents ``[n, c, h, w]`` of the prompts with :attr:`seeds`, by ComfyUI's sampler.

        Args:
            clip: another text encoder; None: the case's own.
            options: ``config``, ``seeds``, ``latents`` and ``denoise`` of
                :func:`~trace_core.backbones.sampling.sample`.
        """
        config = options.pop("config", self.config)
        seeds = options.pop("seeds", self.seeds[: len(prompts)])

        def report(done: int, total: int) -> None:
            self.progress(phase, done, total)

        report(0, len(prompts))
        return sample(model, clip or self.clip, prompts, seeds, config, report, **options)

    def rate(self, model, prompts: Sequence[str], phase: str, clip=None, **options) -> float:
        """Share of recognised pictures of the prompts, see :meth:`draw`."""
        return self.recognised(self.draw(model, prompts, phase, clip, **options))

    @cached_property
    def base_latents(self) -> Tensor:
        """The unerased model's pictures of the concept, ``[samples, c, h, w]``."""
        return self.draw(self.model, self.prompts, "unerased")

    @cached_property
    def unerased(self) -> float:
        """Rate of the unerased model, without an attack."""
        return self.recognised(self.base_latents)

    @cached_property
    def plain(self) -> float:
        """Rate of the erased model, without an attack."""
        return self.rate(self.erased, self.prompts, "plain") if self.lora else self.unerased

    @cached_property
    def _reach(self) -> Reach:
        return Reach(self.model, self.clip, self.prompts, self.neutral, self.config, self.seed + 7)

    def reach(self, model, prompts: Sequence[str] | None = None, clip=None) -> float:
        """Reach of a model with attacked prompts, one for each of :attr:`prompts`, and a text encoder."""
        return self._reach(model, self.prompts if prompts is None else prompts, clip)

    @cached_property
    def plain_reach(self) -> float:
        """Reach of the erased model without an attack."""
        return self.reach(self.erased)


def counterpart_of(lora: ErasureLora, concept: str) -> str:
    """What an erasure draws instead of a concept, from its file; empty for the neutral prompt."""
    found = _json(lora.metadata.get("trace.substitutes"))
    try:
        concepts = [c for part in lora.parts() for c in part.concepts]
    except LoraError:
        concepts = []
    anchors = {c.target: c.anchor for c in concepts if c.anchor} | found
    return next((other for target, other in anchors.items() if same(target, concept)), "")


def _json(text: str | None) -> dict:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
