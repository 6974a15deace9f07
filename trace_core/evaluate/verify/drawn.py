"""Pictures of the concepts and of what must stay, before and after the erasure, with the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...text.concepts import Concept, same
from ...text.kinds import guess_kind
from ...text.neighbours import neighbours
from ...text.prompts import asks_for
from ...text.synonyms import everyday, synonymous
from ...text.templates import fill
from .pictures import SHOWN, evaluations, evidence
from .prompts import pair_of, templates_of
from .scene import Scene


@dataclass(frozen=True)
class Drawn:
    """Pictures of one thing.

    Attributes:
        name: the thing.
        prompts: a prompt for each picture.
        before, after: latents ``[n, c, h, w]``.
        shown_before, shown_after: what :func:`~trace_core.evaluate.verify.pictures.evidence` says, ``[n]``.
        near: the concept whose near neighbour it is; empty for others.
    """

    name: str
    prompts: tuple[str, ...]
    before: Tensor
    after: Tensor
    shown_before: Tensor
    shown_after: Tensor
    near: str = ""

    @property
    def usable(self) -> int:
        """Pictures in which the unerased model sees the thing before the erasure."""
        return int((self.shown_before > SHOWN).sum())

    @property
    def still(self) -> int:
        """Those of the usable pictures that show it after the erasure as well."""
        return int(((self.shown_before > SHOWN) & (self.shown_after > SHOWN)).sum())

    @property
    def drawn(self) -> float:
        """Share of the pictures after the erasure that show the thing."""
        return int((self.shown_after > SHOWN).sum()) / len(self.prompts)

    @property
    def moved(self) -> float:
        """Mean squared distance of the latents, by their variance before the erasure."""
        change = (self.after - self.before).square().mean()
        return (change / self.before.var().clamp_min(1e-12)).item()


def concept_pictures(scene: Scene, concept: Concept, kind: str, rivals: Sequence[str]) -> Drawn:
    """Pictures of a concept before and after.

    Args:
        rivals: things that a picture may show instead, beside nothing and what takes the concept's place.
    """
    templates = templates_of(kind, scene.own, scene.effort.samples)
    pairs = [pair_of(concept, t, kind) for t in templates]
    columns = [[counterpart for _, _, counterpart, _ in pairs]]
    if not concept.parts:
        columns += [[fill(t, rival) for t in templates] for rival in ("", *rivals)]
    prompts = [prompt for prompt, *_ in pairs]
    return _drawn(scene, concept.target, prompts, columns, f"concept '{concept.target}'")


def _drawn(scene: Scene, name: str, prompts, columns, what: str, near: str = "") -> Drawn:
    before = scene.draw(scene.model, prompts, f"{what} before")
    after = scene.draw(scene.erased, prompts, f"{what} after")
    shown = recognised(scene, torch.cat([before, after]), [*prompts] * 2, [c * 2 for c in columns], what)
    halves = shown.split(len(prompts))
    return Drawn(name, tuple(prompts), before, after, *halves, near)


def recognised(scene: Scene, latents: Tensor, asked, rivals, what: str) -> Tensor:
    """:func:`~trace_core.evaluate.verify.pictures.evidence` with a phase of its own."""
    tick = scene.ticker(f"what {what} shows", evaluations(scene, len(latents), len(rivals)))
    return evidence(scene, latents, asked, rivals, tick)


@dataclass(frozen=True)
class Kept:
    """A thing that must stay.

    Attributes:
        kind: kind of its prompts.
        near: the concept whose near neighbour it is; empty for others.
    """

    name: str
    kind: str
    near: str = ""


def kept_things(scene: Scene, concepts: Sequence[Concept], keep: Sequence[str]) -> list[Kept]:
    """What is drawn to see what stays: the nearest neighbours first, then a sample of the keep list.

    Things that contain a concept, and its synonyms, are left out.
    """
    vocabulary = scene.own.vocabulary if scene.own else None
    near, _ = neighbours(concepts, scene.encoder, scene.effort.neighbours, vocabulary=vocabulary)
    kinds = {c.target: c.kind for c in concepts}
    listed = list(keep) or (scene.own.keep_list(concepts) if scene.own else everyday(concepts))
    found: dict[str, Kept] = {}
    longest = max(map(len, near.values()), default=0)
    for rank in range(longest):  # the nearest of each concept first
        for target, names in near.items():
            if rank < len(names) and not _erased(names[rank], concepts):
                found.setdefault(names[rank], Kept(names[rank], kinds[target], target))
    close = list(found.values())[: max(1, scene.effort.kept // 2)]
    others = [n for n in listed if not _erased(n, concepts) and all(not same(n, k.name) for k in close)]
    wanted = scene.effort.kept - len(close)
    step = max(1.0, len(others) / max(1, wanted))
    chosen = [others[int(i * step)] for i in range(min(wanted, len(others)))]
    return [*close, *(Kept(name, guess_kind(name)) for name in chosen)]


def _erased(name: str, concepts: Sequence[Concept]) -> bool:
    return any(synonymous(name, c.target) or (not c.parts and asks_for(name, c)) for c in concepts)


def kept_pictures(scene: Scene, things: Sequence[Kept], concepts: Sequence[Concept]) -> list[Drawn]:
    """Pictures of the kept things, before and after. The rivals are the neutral prompt and the concepts."""
    count = scene.effort.kept_samples
    prompts, neutral, rivals = [], [], [[], []]
    plain = [c for c in concepts if not c.parts]
    for number, thing in enumerate(things):
        templates = templates_of(thing.kind, scene.own, count)
        prompts += [fill(t, thing.name) for t in templates]
        neutral += [fill(t, "") for t in templates]
        concept = next((c for c in plain if c.target == thing.near), None)
        concept = concept or (plain[number % len(plain)] if plain else None)
        alike = concept is not None and concept.kind == thing.kind
        for column, word in zip(rivals, (concept.target, concept.anchor) if alike else ("", "")):
            column += [fill(t, "" if same(word, thing.name) else word) for t in templates]
    whole = _drawn(scene, "", prompts, [neutral, *rivals], "kept things")
    out = []
    for number, thing in enumerate(things):
        at = slice(number * count, (number + 1) * count)
        parts = (whole.before[at], whole.after[at], whole.shown_before[at], whole.shown_after[at])
        out.append(Drawn(thing.name, tuple(prompts[at]), *parts, thing.near))
    return out
