"""Pictures of the concepts and of what must stay, before and after the erasure, with the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...backbones.sampling import FirstStep
from ...closed_form.effects import PROMPT
from ...text.concepts import Concept, check_disjoint, same
from ...text.kinds import guess_kind
from ...text.synonyms import everyday
from ...text.templates import fill
from . import names
from .pictures import best_named, evaluations, evidence
from .prompts import pair_of, templates_of
from .scene import Scene
from .thresholds import MOVED, SHOWN

FIRST_SEEDS = 2  #: noises of the first step by which kept things are chosen


@dataclass(frozen=True)
class Drawn:
    """Pictures of one thing.

    Attributes:
        name: the thing.
        prompts: a prompt for each picture.
        before, after: latents ``[n, c, h, w]``.
        shown_before, shown_after: what :func:`~trace_core.evaluate.verify.pictures.evidence` says, ``[n]``.
        moves: squared distance of each picture's latents, in units of the variance of all latents before.
            Unrelated pictures have about 2.
        near: the concept whose near neighbour it is; empty for others.
        names: other names of its kind that were to choose from; empty if they were too few.
        chosen: whether its own name predicts each picture after best, bool ``[n]``; None if nobody asked. Of
            kept things only the pictures that seem lost are asked for.
    """

    name: str
    prompts: tuple[str, ...]
    before: Tensor
    after: Tensor
    shown_before: Tensor
    shown_after: Tensor
    moves: Tensor
    near: str = ""
    names: tuple[str, ...] = ()
    chosen: Tensor | None = None

    @property
    def usable(self) -> int:
        """Pictures in which the unerased model sees the thing before the erasure."""
        return int((self.shown_before > SHOWN).sum())

    @property
    def still(self) -> int:
        """Those of the usable pictures that show it afterwards as well.

        They have not become others, or its name fits them best.
        """
        same = (self.shown_after > SHOWN) & (self.moves <= MOVED)
        same = same if self.chosen is None else same | self.chosen
        return int(((self.shown_before > SHOWN) & same).sum())

    @property
    def drawn(self) -> float:
        """Share of the pictures after the erasure that show the thing."""
        seen = self.shown_after > SHOWN if self.chosen is None else self.chosen
        return int(seen.sum()) / len(self.prompts)

    @property
    def moved(self) -> float:
        """Mean of the moves."""
        return self.moves.mean().item()


def concept_pictures(
    scene: Scene, concept: Concept, kind: str, rivals: Sequence[str], others: Sequence[str]
) -> Drawn:
    """Pictures of a concept before and after.

    Args:
        rivals: things that a picture may show instead, beside nothing and what takes the concept's place.
        others: other names of its kind, see :func:`~trace_core.evaluate.verify.names.of_concept`.
    """
    templates = templates_of(kind, scene.own, scene.effort.samples)
    pairs = [pair_of(concept, t, kind) for t in templates]
    columns = [[counterpart for _, _, counterpart, _ in pairs]]
    if not concept.parts:
        columns += [[fill(t, rival) for t in templates] for rival in ("", *rivals)]
    prompts = [prompt for prompt, *_ in pairs]
    what = f"concept '{concept.target}'"
    found = _drawn(scene, concept.target, prompts, columns, what)
    if not others:
        return found
    tick = scene.ticker(f"best name for {what}", evaluations(scene, len(prompts), len(others)))
    columns = [[fill(t, name) for t in templates] for name in others]
    return replace(found, names=tuple(others), chosen=best_named(scene, found.after, prompts, columns, tick))


def _drawn(scene: Scene, name: str, prompts, columns, what: str, near: str = "") -> Drawn:
    before = scene.draw(scene.model, prompts, f"{what} before")
    after = scene.draw(scene.erased, prompts, f"{what} after")
    shown = recognised(scene, torch.cat([before, after]), [*prompts] * 2, [c * 2 for c in columns], what)
    moves = (after - before).square().flatten(1).mean(1) / before.var().clamp_min(1e-12)
    return Drawn(name, tuple(prompts), before, after, *shown.split(len(prompts)), moves, near)


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


def kept_things(
    scene: Scene, concepts: Sequence[Concept], keep: Sequence[str], near: names.Near
) -> list[Kept]:
    """What is drawn to see what stays: neighbours, what the erasure moves most, and a sample of the rest.

    A half is what moves most, and a quarter each are neighbours and the sample. Of neighbours and of the
    default list, things that contain a concept and its synonyms are left out.

    Args:
        near: see :func:`~trace_core.evaluate.verify.names.nearest`.

    Raises:
        ConceptError: if a concept is in the keep list.
    """
    check_disjoint(concepts, keep)
    near = _nearest_first(scene, concepts, near)
    others = kept_names(scene, concepts, keep)
    wanted = scene.effort.kept
    chosen = {k.name: k for k in near[: -(-wanted // 4)]}
    known = {k.name: k for k in near}
    pool = [known.get(n) or Kept(n, guess_kind(n)) for n in others if n not in chosen]
    order = _by_move(scene, pool)
    for thing in order[: -(-wanted // 2)]:
        chosen[thing.name] = thing
    rest = [thing for thing in pool if thing.name not in chosen]
    left = max(0, wanted - len(chosen))
    step = max(1.0, len(rest) / max(1, left))
    for i in range(min(left, len(rest))):
        chosen[rest[int(i * step)].name] = rest[int(i * step)]
    return list(chosen.values())[:wanted]


def kept_names(scene: Scene, concepts: Sequence[Concept], keep: Sequence[str]) -> list[str]:
    """The keep list, or the model's own, or everyday things, without what asks for a concept."""
    listed = scene.own.keep_list(concepts) if scene.own else everyday(concepts)
    return list(dict.fromkeys(keep)) or [n for n in listed if not names.erased(n, concepts)]


def _nearest_first(scene: Scene, concepts: Sequence[Concept], near: names.Near) -> list[Kept]:
    """As many neighbours of every concept as the effort says, the nearest of each first."""
    kinds, found = {c.target: c.kind for c in concepts}, {}
    for rank in range(scene.effort.neighbours):
        for target, entries in near.items():
            if rank < len(entries):
                found.setdefault(entries[rank], Kept(entries[rank], kinds[target], target))
    return list(found.values())


def _by_move(scene: Scene, things: Sequence[Kept]) -> list[Kept]:
    """Things, those first whose first sampling step the erasure moves most.

    The move is measured in units of how far the first steps of all things lie from their mean.
    """
    prompts = [fill(PROMPT[thing.kind], thing.name) for thing in things]
    before, after = [], []
    for model, found in ((scene.model, before), (scene.erased, after)):
        first = FirstStep(model, scene.clip, FIRST_SEEDS)
        phase = "what the erasure moves " + ("before" if model is scene.model else "after")
        for number, prompt in enumerate(prompts):
            scene.progress(phase, number, len(prompts))
            found.append(first([prompt])[0])
    if not prompts:
        return []
    spread = (torch.stack(before) - torch.stack(before).mean(0)).square().mean().clamp_min(1e-12)
    moves = [((b - a).square().mean() / spread).item() for b, a in zip(before, after)]
    return [things[i] for i in sorted(range(len(things)), key=lambda i: -moves[i])]


def kept_pictures(
    scene: Scene, things: Sequence[Kept], concepts: Sequence[Concept], near: names.Near, listed: Sequence[str]
) -> list[Drawn]:
    """Pictures of the kept things, before and after. The rivals are the neutral prompt and the concepts.

    Of pictures that seem lost, the unerased model says which of many names fits them best. A picture that
    was composed anew may still show its thing.

    Args:
        near: see :func:`~trace_core.evaluate.verify.names.nearest`.
        listed: the keep list.
    """
    count = scene.effort.kept_samples
    prompts, neutral, rivals, used = [], [], [[], []], []
    plain = [c for c in concepts if not c.parts]  # a combination's parts may be drawn
    for number, thing in enumerate(things):
        templates = templates_of(thing.kind, scene.own, count, plain)
        used += templates
        prompts += [fill(t, thing.name) for t in templates]
        neutral += [fill(t, "") for t in templates]
        concept = next((c for c in plain if c.target == thing.near), None)
        concept = concept or (plain[number % len(plain)] if plain else None)
        like = concept is not None and concept.kind == thing.kind
        for column, word in zip(rivals, (concept.target, concept.anchor) if like else ("", "")):
            column += [fill(t, "" if same(word, thing.name) else word) for t in templates]
    whole = _drawn(scene, "", prompts, [neutral, *rivals], "kept things")
    kinds = [(t.name, t.kind) for t in things]
    others = [names.of_kept(t.name, t.kind, concepts, near, kinds, listed) for t in things]
    chosen = _asked_again(scene, whole, used, [n for n in others for _ in range(count)])
    out = []
    for number, thing in enumerate(things):
        at = slice(number * count, (number + 1) * count)
        parts = (whole.before[at], whole.after[at], whole.shown_before[at], whole.shown_after[at])
        parts += (whole.moves[at], thing.near, tuple(others[number]), chosen[at])
        out.append(Drawn(thing.name, tuple(prompts[at]), *parts))
    return out


def _asked_again(
    scene: Scene, whole: Drawn, templates: Sequence[str], others: Sequence[Sequence[str]]
) -> Tensor:
    """Of pictures that seem lost, whether their own names fit them best, bool ``[n]``; of others False.

    Args:
        templates: of each picture.
        others: names of other things for each picture; none where there are too few.
    """
    chosen = torch.zeros(len(templates), dtype=torch.bool)
    doubtful = ((whole.shown_after <= SHOWN) | (whole.moves > MOVED)) & (whole.shown_before > SHOWN)
    at = [i for i in doubtful.nonzero().flatten().tolist() if others[i]]
    if not at:
        return chosen
    asked = [whole.prompts[i] for i in at]
    columns = [  # a thing with fewer names is asked for its own prompt instead, which changes nothing
        [fill(templates[i], others[i][k]) if k < len(others[i]) else whole.prompts[i] for i in at]
        for k in range(max(len(others[i]) for i in at))
    ]
    tick = scene.ticker("best name for kept things", evaluations(scene, len(at), len(columns)))
    chosen[at] = best_named(scene, whole.after[at], asked, columns, tick)
    return chosen
