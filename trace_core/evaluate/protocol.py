"""The papers' protocol, for a model with a judge: erased concept, everything else, synonyms, drift."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from ..backbones import backbone_for
from ..backbones.sampling import SamplerConfig, decode, sample
from ..errors import ConceptError
from ..text.concepts import Concept, same
from ..text.encoding import TextEncoder
from ..text.neighbours import nearest_of
from .metrics import drift, h_c, h_o, mean_probability, top1

#: ``progress(phase, done, total)`` in pictures; an exception raised in it cancels
Progress = Callable[[str, int, int], None]


SIMILAR = 5  #: nearest kept classes of each erased one that are measured apart


@dataclass(frozen=True)
class Domain:
    """The classes that a judge can distinguish.

    Attributes:
        objects: object class -> synonyms.
        styles: style classes.
        judge: ``judge(pictures, head) -> probabilities [n, classes]``, head ``object`` or ``style``.
    """

    objects: dict[str, Sequence[str]]
    styles: Sequence[str]
    judge: Callable[[Tensor, str], Tensor]

    def locate(self, concept: str) -> tuple[str, str] | None:
        """``(head, class)`` of a concept, or None if the judge does not know it.

        A synonym gives its class.
        """
        for name, synonyms in self.objects.items():
            if any(same(concept, word) for word in (name, *synonyms)):
                return "object", name
        return next((("style", s) for s in self.styles if same(concept, s)), None)


def object_prompts(noun: str, styles: Sequence[str], count: int) -> list[str]:
    """``a photo of a <noun>, <style>``, cycling through the styles."""
    return [f"a photo of a {noun}, {styles[i % len(styles)]}" for i in range(count)]


def style_prompts(style: str, objects: Sequence[str], count: int) -> list[str]:
    """``a photo of a <object>, <style>``, cycling through the objects."""
    return [f"a photo of a {objects[i % len(objects)]}, {style}" for i in range(count)]


class Evaluator:
    """Samples and judges pictures. The base model's pictures are sampled once and shared."""

    def __init__(
        self,
        model,
        clip,
        vae,
        domain: Domain,
        samples: int = 20,
        seed: int = 0,
        config: SamplerConfig | None = None,
        progress: Progress | None = None,
        others: int | None = None,
    ):
        """
        Args:
            samples: pictures of each erased class and synonym.
            others: pictures of every other class; by default as many.
        """
        self.model, self.clip, self.vae, self.domain = model, clip, vae, domain
        self.samples, self.seed = samples, seed
        self.others = samples if others is None else others
        self.config = config or SamplerConfig.for_model(model)
        self.progress = progress or (lambda *_: None)
        self._base: dict[str, tuple[Tensor, Tensor]] = {}

    def pictures(self, model, prompts: Sequence[str], phase: str) -> tuple[Tensor, Tensor]:
        """Latents and pictures. Prompt i of a list has the seed ``seed * 100003 + i``."""
        seeds = [self.seed * 100003 + i for i in range(len(prompts))]
        latents = sample(
            model, self.clip, prompts, seeds, self.config, lambda a, b: self.progress(phase, a, b)
        )
        return latents, decode(self.vae, latents)

    def base(self, name: str, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The base model's pictures of a prompt list, cached by name.

        A shorter list is a prefix of a longer one.
        """
        if name not in self._base or len(self._base[name][0]) < len(prompts):
            self._base[name] = self.pictures(self.model, prompts, f"base: {name}")
        latents, pictures = self._base[name]
        return latents[: len(prompts)], pictures[: len(prompts)]

    def unerased(self) -> dict:
        """The base model's accuracy by object class and style, before any erasure."""
        out = {}
        for head, classes in (("object", list(self.domain.objects)), ("style", list(self.domain.styles))):
            per_class = {}
            for index, name in enumerate(classes):
                _, pictures = self.base(name, self._prompts(head, name, self.samples))
                per_class[name] = top1(self.domain.judge(pictures, head), index)
            out[head] = {"top1": fmean(per_class.values()), "per_class": per_class}
        return {"samples_per_class": self.samples, "seed": self.seed, "accuracy": out}

    def evaluate(self, model, concepts: Sequence[Concept]) -> dict:
        """Compare a model with ``concepts`` erased to the base model.

        Returns:
            ``acc_e, acc_s, acc_g, h_o, h_c`` as fractions of 1 (``acc_g`` and ``h_o`` None for styles),
            ``drift``, ``similar`` (see :meth:`_similar`), ``per_class`` and the settings of the measurement.

        Raises:
            ConceptError: if the judge does not know a concept, or objects and styles are mixed.
        """
        places = [self._locate(c.target) for c in concepts]
        heads = {head for head, _ in places}
        if len(heads) > 1:
            raise ConceptError("objects and styles have separate judges; evaluate them in two runs")
        head = heads.pop()
        classes = list(self.domain.objects) if head == "object" else list(self.domain.styles)
        erased = [name for _, name in places]
        per_class, latents, base_latents, pictures, base_pictures = {}, [], [], [], []
        moved = {}
        for index, name in enumerate(classes):
            prompts = self._prompts(head, name, self.samples if name in erased else self.others)
            z, x = self.pictures(model, prompts, name)
            per_class[name] = self._judged(x, head, index) | {"erased": name in erased}
            if name not in erased:
                base_z, base_x = self.base(name, prompts)
                latents.append(z)
                base_latents.append(base_z)
                pictures.append(x)
                base_pictures.append(base_x)
                moved[name] = (z - base_z).square().mean().item()
        synonyms = self._synonyms(model, erased, classes) if head == "object" else {}
        acc_e = fmean(per_class[name]["top1"] for name in erased)
        acc_s = fmean(v["top1"] for v in per_class.values() if not v["erased"])
        acc_g = fmean(v["top1"] for v in synonyms.values()) if synonyms else None
        return {
            "acc_e": acc_e,
            "acc_s": acc_s,
            "acc_g": acc_g,
            "h_o": None if acc_g is None else h_o(acc_e, acc_s, acc_g),
            "h_c": h_c(acc_e, acc_s),
            "drift": drift(*(torch.cat(v) for v in (latents, base_latents, pictures, base_pictures))),
            "similar": self._similar(concepts, head, per_class, moved),
            "per_class": per_class,
            "synonyms": synonyms,
            "head": head,
            "definition": "top-1 of the judge; prob is the mean probability of the class",
            "samples_per_class": self.samples,
            "samples_per_other_class": self.others,
            "seed": self.seed,
            "sampler": f"{self.config.sampler}/{self.config.scheduler}, {self.config.steps} steps, cfg "
            f"{self.config.cfg}",
        }

    def _similar(
        self,
        concepts: Sequence[Concept],
        head: str,
        per_class: Mapping[str, dict],
        moved: Mapping[str, float],
    ) -> dict:
        """Accuracy and drift of the kept classes nearest to an erased one, and drift of the rest.

        Args:
            per_class: top-1 by class.
            moved: mean squared error of the latents by kept class.

        Returns:
            ``classes`` nearest first, ``acc``, ``latent_mse`` and ``others_latent_mse``; the last is None if
            every kept class is near.
        """
        encoder = TextEncoder(self.clip, read=backbone_for(self.model).read_rows)
        near = dict.fromkeys(
            entry
            for concept in concepts
            for entry, _ in nearest_of(concept.target, list(moved), head, encoder)[:SIMILAR]
        )
        others = [error for name, error in moved.items() if name not in near]
        return {
            "classes": list(near),
            "acc": fmean(per_class[name]["top1"] for name in near),
            "latent_mse": fmean(moved[name] for name in near),
            "others_latent_mse": fmean(others) if others else None,
        }

    def _locate(self, target: str) -> tuple[str, str]:
        place = self.domain.locate(target)
        if place is None:
            known = ", ".join([*self.domain.objects, *self.domain.styles])
            raise ConceptError(f"the judge does not know '{target}'; it can measure: {known}")
        return place

    def _prompts(self, head: str, name: str, count: int) -> list[str]:
        if head == "object":
            return object_prompts(name, self.domain.styles, count)
        return style_prompts(name, list(self.domain.objects), count)

    def _judged(self, pictures: Tensor, head: str, index: int) -> dict:
        probabilities = self.domain.judge(pictures, head)
        return {"top1": top1(probabilities, index), "prob": mean_probability(probabilities, index)}

    def _synonyms(self, model, erased: Sequence[str], classes: Sequence[str]) -> dict:
        out = {}
        for name in erased:
            for word in self.domain.objects[name]:
                prompts = object_prompts(word, self.domain.styles, self.samples)
                _, pictures = self.pictures(model, prompts, word)
                out[word] = self._judged(pictures, "object", classes.index(name))
        return out
