"""The papers' protocol, for a model with a judge: erased concept, everything else, synonyms, drift."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor

from ..backbones import backbone_for
from ..backbones.sampling import SamplerConfig, decode, sample
from ..errors import ConceptError, enough_memory
from ..text.concepts import Concept
from ..text.encoding import TextEncoder
from ..text.neighbours import nearest_of
from .domains import OBJECT, PERSON, TRAIT, Domain
from .metrics import drift, h_c, h_o, mean_probability, top1
from .traits import of_trait

#: ``progress(phase, done, total)`` in pictures; an exception raised in it cancels
Progress = Callable[[str, int, int], None]


SIMILAR = 5  #: nearest kept classes of each erased one that are measured apart


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

    @enough_memory("drawing", "take a smaller picture size or batch, or close other programs")
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
        """The base model's accuracy by class of every kind, before any erasure."""
        out = {}
        for head, classes in self.domain.heads.items():
            per_class = {}
            for index, name in enumerate(classes):
                _, pictures = self.base(name, self.domain.prompts(head, name, self.samples))
                per_class[name] = top1(self.domain.judge(pictures, head), index)
            out[head] = {"top1": fmean(per_class.values()), "per_class": per_class}
        return {"samples_per_class": self.samples, "seed": self.seed, "accuracy": out}

    def evaluate(self, model, concepts: Sequence[Concept]) -> dict:
        """Compare a model with ``concepts`` erased to the base model.

        Returns:
            ``acc_e, acc_s, acc_g, h_o, h_c`` as fractions of 1 (``acc_g`` and ``h_o`` None for styles),
            ``drift``, ``similar`` (see :meth:`_similar`), ``sharers`` (see :meth:`_sharers`),
            ``per_class`` and the settings of the measurement. Of a trait: see
            :func:`~trace_core.evaluate.traits.of_trait`.

        Raises:
            ConceptError: if the judge does not know a concept, kinds are mixed, or nothing stays.
        """
        head, erased = self._places(concepts)
        if head == TRAIT:
            return of_trait(self, model, erased[0]) | self._settings()
        classes = self.domain.heads[head]
        per_class, latents, base_latents, pictures, base_pictures = {}, [], [], [], []
        moved = {}
        for index, name in enumerate(classes):
            prompts = self.domain.prompts(head, name, self.samples if name in erased else self.others)
            z, x = self.pictures(model, prompts, name)
            per_class[name] = self._judged(x, head, index) | {"erased": name in erased}
            if name not in erased:
                base_z, base_x = self.base(name, prompts)
                latents.append(z)
                base_latents.append(base_z)
                pictures.append(x)
                base_pictures.append(base_x)
                moved[name] = (z - base_z).square().mean().item()
        synonyms = self._synonyms(model, erased, classes) if head == OBJECT else {}
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
            "sharers": self._sharers(erased, per_class) if head == PERSON else None,
            "per_class": per_class,
            "synonyms": synonyms,
            "head": head,
            "definition": "top-1 of the judge; prob is the mean probability of the class",
            **self._settings(),
        }

    def _settings(self) -> dict:
        return {
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

    @staticmethod
    def _sharers(erased: Sequence[str], per_class: Mapping[str, dict]) -> dict:
        """Accuracy of the kept people whose name shares a word with an erased one; None without any."""
        words = {word for name in erased for word in name.split()}
        found = [v["top1"] for name, v in per_class.items() if not v["erased"] and words & set(name.split())]
        return {"classes": len(found), "acc": fmean(found) if found else None}

    def _places(self, concepts: Sequence[Concept]) -> tuple[str, list[str]]:
        """The kind of all concepts, and their classes."""
        places = [self.domain.locate(c.target) for c in concepts]
        for concept, place in zip(concepts, places):
            if place is None:
                known = self.domain.known()
                names = ", ".join(known[:40]) + (f" and {len(known) - 40} more" if len(known) > 40 else "")
                raise ConceptError(f"the judge does not know '{concept.target}'; it can measure: {names}")
        heads = dict.fromkeys(head for head, _ in places)
        if len(heads) > 1:
            raise ConceptError(f"{' and '.join(heads)} have separate judges; evaluate them in two runs")
        if TRAIT in heads and len(places) > 1:
            raise ConceptError("traits are measured one at a time; evaluate them in two runs")
        head, erased = next(iter(heads)), [name for _, name in places]
        if head != TRAIT and not set(self.domain.heads[head]) - set(erased):
            raise ConceptError(
                f"every {head} that the judge knows is erased, so nothing is left to measure what stays; "
                "leave some out"
            )
        return head, erased

    def _judged(self, pictures: Tensor, head: str, index: int) -> dict:
        probabilities = self.domain.judge(pictures, head)
        return {"top1": top1(probabilities, index), "prob": mean_probability(probabilities, index)}

    def _synonyms(self, model, erased: Sequence[str], classes: Sequence[str]) -> dict:
        out = {}
        for name in erased:
            for word in self.domain.synonyms(name):
                prompts = self.domain.prompts(OBJECT, word, self.samples)
                _, pictures = self.pictures(model, prompts, word)
                out[word] = self._judged(pictures, OBJECT, classes.index(name))
        return out
