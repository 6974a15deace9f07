"""The closed form from prompts to a LoRA: sums, one solve, export. Concepts may be added later."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

from torch import Tensor

from ..backbones import backbone_for
from ..backbones.base import CONTEXT, POOLED
from ..backbones.clips import check_clip
from ..backbones.defaults import defaults_of
from ..backbones.other_patches import check_weights
from ..backbones.sampling import FirstStep
from ..errors import ConceptError, enough_memory
from ..lora.metadata import base_metadata
from ..lora.result import Erasure
from ..text.anchors import follow_anchors
from ..text.concepts import Concept, check_disjoint, kinds_of, same, with_default_anchor
from ..text.encoding import TextEncoder
from ..text.grammar import parse_concepts
from ..text.neighbours import added, neighbours
from ..text.spelling import alignment_warnings
from ..text.substitutes import substitutes
from ..text.synonyms import everyday
from .accumulate import Accumulator, Progress
from .collateral import collateral_change
from .config import ClosedFormConfig
from .contrast import contrast_words
from .edit import ContextEdit, LayerEdits
from .effects import (
    effect_warnings,
    negative_prompt_warnings,
    people_note,
    side_effects,
    spelling_of,
    weight_warnings,
)
from .exact import conflict_warnings, conflicts, exact_notes, exact_rows
from .export import export, gram
from .policies import COMBINED, POLICIES, Policy
from .solve import solve
from .sums import RowSums

LESS_MEMORY = "erase fewer concepts at once, shorten the keep list, or close other programs"


@dataclass(frozen=True)
class ClosedFormResult(Erasure):
    """An erasure with the edits of the text rows that it was exported from, by text stream."""

    edits: dict[str, ContextEdit | LayerEdits] = field(default_factory=dict)


@dataclass
class _Plan:
    """Decisions of one fit that precede the sums."""

    concepts: list[Concept]
    keep: list[str]
    notes: list[str]
    spelling: list[str]
    substitutes: dict[str, str]
    neighbours: dict[str, list[str]]
    near: dict[str, str]
    words: dict[str, list[str]]
    groups: list[tuple[Policy, list[Concept]]]


@dataclass
class _State:
    """Sums of the concepts added so far under one policy, and the inputs that they depend on."""

    signature: tuple
    concepts: list[tuple]
    sums: dict[str, RowSums]


class ClosedFormFitter:
    """Erases concepts in closed form. Further concepts can be added at any time.

    The fitter keeps the sums over the concepts' rows. A new concept costs only its own prompts, the keep set
    and one solve. The result equals that of all concepts at once.

    Args:
        model: ComfyUI ModelPatcher; patches already on it count as part of its weights. It is read, never
            written.
        clip: the ComfyUI CLIP that belongs to it.
        keep: concepts that must not change; empty: the model's own, or everyday things.
        config: options.
        progress: ``progress(phase, done, total)``; an exception raised in it cancels.
        seed: written to the metadata; the closed form draws nothing at random.

    Raises:
        ModelError: if the model or the CLIP is not supported.
    """

    def __init__(
        self,
        model,
        clip,
        keep: Sequence[str] = (),
        config: ClosedFormConfig | None = None,
        progress: Progress | None = None,
        seed: int = 0,
    ):
        self.model, self.clip, self.keep, self.seed = model, clip, list(keep), seed
        self.config = config or ClosedFormConfig()
        self._own = defaults_of(model)
        if self._own:
            contexts = {**self._own.contexts, **self.config.contexts}
            self.config = replace(self.config, contexts=contexts)
        self.progress = progress or (lambda *_: None)
        self.concepts: list[Concept] = []
        self.backbone = backbone_for(model)
        check_weights(model)
        check_clip(self.backbone, clip)
        self.encoder = TextEncoder(clip, read=self.backbone.read_rows)
        self._states: dict[str, _State] = {}

    def update(self, concepts: str | Sequence[Concept]) -> ClosedFormFitter:
        """Add concepts: text in the grammar, or a list of concepts.

        Raises:
            ConceptError: if a concept was added before, or is in the keep list.
        """
        new = parse_concepts(concepts) if isinstance(concepts, str) else list(concepts)
        for concept in new:
            if any(same(concept.target, c.target) for c in self.concepts):
                raise ConceptError(f"'{concept.target}' is erased already; leave it out")
        check_disjoint([*self.concepts, *new], self.keep)
        self.concepts += new
        return self

    def erasure(self) -> ClosedFormResult:
        """The erasure of all concepts so far.

        Raises:
            ConceptError, ModelError, TraceError: before anything is changed.
        """
        return self._fit(reuse=True)

    @enough_memory("the closed form", LESS_MEMORY)
    def _fit(self, reuse: bool) -> ClosedFormResult:
        """Fit all concepts. ``reuse``: keep the sums for the next fit, and work on a copy of them."""
        plan = self._plan()
        config = self.config.settled(plan.concepts)
        edits, solved, sums, collateral = {}, {}, {}, {}
        exact = {}
        plan.notes += self._notes(plan.concepts, config)
        if config.exact and self.keep:  # the defaults of a keep list are too many to be exact
            exact = exact_rows(
                self.encoder,
                self.keep,
                self.backbone.width(POOLED),
                [config.kind_of(c) for c in plan.concepts],
            )
        for policy, concepts in plan.groups:
            found = self._accumulate(policy, concepts, plan, config, reuse)
            for stream in found if exact and policy.solver == "projection" else ():
                found[stream].exact = exact[stream].directions()[0]
            self.progress("solve", 0, 1)
            for stream, rows in found.items():
                inner = partial(self._gram, stream)
                edit, info = solve(policy, rows, config, inner, config.kind_of(concepts[0]), self.seed)
                before = solved.get(stream)
                both = before and {**before, "combined": info, "rank": before["rank"] + info["rank"]}
                solved[stream] = both or info
                edits[stream] = edits[stream].then(edit) if stream in edits else edit
                sums.setdefault(stream, []).append(rows)
                if stream == CONTEXT and isinstance(edit, ContextEdit):
                    together = [c for c in concepts if c.parts]
                    collateral |= {
                        c.target: collateral_change(edit, self.encoder, c, plan.keep, config.contexts)
                        for c in together
                    }
        self.progress("export", 0, 1)
        lora, layers, certificates = export(self.backbone, edits, sums, True, config.eta, policy.values)
        for stream, edit in edits.items():  # the rank of edits by layer is known after the export
            solved[stream].setdefault("rank", edit.rank)
        report = self._report(plan, config, edits, solved, layers, collateral)
        report["certificates"] = certificates
        if exact:
            kinds = [config.kind_of(c) for c in plan.concepts]
            report["exact"] = conflicts(self.encoder, plan.concepts, kinds, exact[CONTEXT])
            report["warnings"] += conflict_warnings(report["exact"])
        name = plan.groups[-1][0].name
        lora.metadata.update(
            base_metadata(self.backbone, plan.concepts, plan.keep, name, asdict(config), self.seed)
        )
        if plan.substitutes:
            lora.metadata["trace.substitutes"] = json.dumps(plan.substitutes, ensure_ascii=False)
        if plan.neighbours:
            lora.metadata["trace.neighbours"] = json.dumps(plan.neighbours, ensure_ascii=False)
        return ClosedFormResult(lora, report, edits)

    def _notes(self, concepts: Sequence[Concept], config: ClosedFormConfig) -> list[str]:
        """What the report says of the options in words."""
        own = config.eta and self.config.eta is None
        notes = [people_note(config, len(concepts))] if own else []
        if config.exact:
            notes += exact_notes(self.keep, concepts)
        if config.robust:
            notes += [
                f"the erasure of '{c.target}' is not hardened, as those of all combinations"
                for c in concepts
                if c.parts
            ]
        return notes

    def _plan(self) -> _Plan:
        """Decide anchors, keep list, substitutes and policies for the concepts so far.

        Raises:
            ConceptError, ModelError: if there is nothing to erase, or a concept cannot be erased.
        """
        config, policy = self.config, POLICIES[self.config.policy]
        if not self.concepts:
            raise ConceptError("nothing to erase; name at least one concept")
        concepts, notes = follow_anchors(self.concepts)
        spelling = spelling_of(self.backbone, self.encoder, concepts, config.stream)
        keep = self.keep or (self._own.keep_list if self._own else everyday)(concepts)
        concepts = [with_default_anchor(c, keep, concepts) for c in concepts]
        plain, both = ([c for c in concepts if bool(c.parts) is combined] for combined in (False, True))
        own = policy.name == "projection"
        groups = [(policy, plain), (COMBINED, both)] if own else [(policy, concepts)]
        chosen = {}
        if own and config.eta is None:
            first_step = FirstStep(self.model, self.clip)
            chosen = substitutes(plain, keep, self.encoder, config.kind, first_step)
        words = contrast_words(concepts) if config.contrasts else {}
        vocabulary = self._own.vocabulary if self._own else None
        found, more = neighbours(concepts, self.encoder, config.near, config.kind, vocabulary)
        near = added(found, keep, {c.target: config.kind_of(c) for c in concepts})
        return _Plan(
            concepts, keep, [*notes, *more], spelling, chosen, found, near, words, [g for g in groups if g[1]]
        )

    def _accumulate(
        self, policy: Policy, concepts: list[Concept], plan: _Plan, config: ClosedFormConfig, reuse: bool
    ) -> dict[str, RowSums]:
        """The sums over these concepts and the keep set, by text stream. Only new concepts are encoded."""
        accumulator = Accumulator(self.backbone, self.encoder, policy, config, plan.substitutes)
        words = contrast_words(concepts) if config.contrasts else {}
        wanted = [(c, plan.substitutes.get(c.target), tuple(words.get(c.target, ()))) for c in concepts]
        signature = frozenset(c.strength for c in concepts), bool(plan.substitutes)
        state = self._states.pop(policy.solver, None)
        if state is None or state.signature != signature or state.concepts != wanted[: len(state.concepts)]:
            state = _State(signature, [], accumulator.start(concepts))
        for number in range(len(state.concepts), len(concepts)):
            self.progress("encode concepts", number, len(concepts))
            accumulator.add_concept(state.sums, concepts[number], wanted[number][2])
            state.concepts.append(wanted[number])
        if reuse:
            self._states[policy.solver] = state
        sums = copy.deepcopy(state.sums) if reuse else state.sums
        accumulator.add_keep_set(sums, concepts, plan.keep, self.progress, plan.near)
        return accumulator.of_stream(sums)

    def _gram(self, stream: str) -> Tensor:
        """``sum W^T W`` ``[d, d]`` float64 over the text columns of a stream's layers."""
        return sum(
            gram(weight[:, : layer.columns].float().cpu())
            for layer, weight in self.backbone.weights(self.backbone.layers(stream))
        )

    def _report(self, plan: _Plan, config, edits: dict, solved: dict, layers: dict, collateral: dict) -> dict:
        effects = {}
        if isinstance(edits.get(CONTEXT), ContextEdit) and edits[CONTEXT].rank:
            kinds = [config.kind_of(c) for c in plan.concepts]
            effects = side_effects(
                edits[CONTEXT], self.encoder, plan.concepts, kinds, plan.keep, config.eta, plan.substitutes
            )
        policy = plan.groups[-1][0]
        plain = any(not c.parts for c in plan.concepts)
        return {
            "model": self.backbone.traits.title,
            "method": policy.name,
            "solver": POLICIES[config.policy].solver if plain else policy.solver,
            "parameters": asdict(config),
            "concepts": [asdict(c) for c in plan.concepts],
            "kinds": kinds_of(plan.concepts, config.kind),
            "notes": plan.notes,
            "substitutes": plan.substitutes,
            "keep": plan.keep,
            "neighbours": plan.neighbours,
            "contrast": plan.words,
            "solved": solved,
            "layers": layers,
            "spill": collateral,
            "side_effects": effects,
            "warnings": [
                *plan.spelling,
                *alignment_warnings(self.encoder),
                *weight_warnings(self.backbone, solved, layers, collateral),
                *effect_warnings(effects, plan.keep, plan.words),
                *negative_prompt_warnings(self.config, plan.concepts),
            ],
        }


@enough_memory("the closed form", LESS_MEMORY)
def erase(
    model,
    clip,
    concepts: Sequence[Concept],
    keep: Sequence[str] = (),
    config: ClosedFormConfig | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> ClosedFormResult:
    """Erase concepts from a model in closed form, in one call.

    The arguments are those of :class:`ClosedFormFitter`.

    Raises:
        ConceptError, ModelError, TraceError: before anything is changed.
    """
    if not concepts:
        raise ConceptError("nothing to erase; name at least one concept")
    check_disjoint(list(concepts), keep)
    fitter = ClosedFormFitter(model, clip, keep, config, progress, seed)
    return fitter.update(list(concepts))._fit(reuse=False)
