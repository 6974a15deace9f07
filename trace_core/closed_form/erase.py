"""Closed-form erasure of a list of concepts from a ComfyUI model: rows -> Gram -> one solve -> LoRA."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor

from ..backbones import Backbone, backbone_for
from ..backbones.base import CONTEXT, POOLED
from ..backbones.clips import check_clip, check_width
from ..backbones.other_patches import check_weights
from ..backbones.sampling import FirstStep
from ..errors import ConceptError, TraceError
from ..lora.erasure import ErasureLora, base_metadata
from ..text.anchors import followed
from ..text.concepts import KINDS, Concept, check_disjoint, guess_kind, kinds_of, settled
from ..text.encoding import BOS, TextEncoder, TextRows
from ..text.substitutes import substitutes
from ..text.synonyms import everyday
from . import solvers
from .collateral import spill
from .contrast import contrast_words
from .edit import ContextEdit
from .effects import effect_warnings, side_effects, spelling_of, weight_warnings
from .gram import add_symmetric, mirror
from .policies import (
    COMBINED,
    POLICIES,
    Policy,
    erased_pairs,
    keep_prompts,
    keep_shares,
    keep_weights,
    row_weights,
)
from .sums import _Sums

ALL_GROUPS = tuple(range(6))

#: ``progress(phase, done, total)``; raise from it to cancel
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ClosedFormConfig:
    """Options of the closed form."""

    policy: str = field(default="trace", metadata={"help": "pairing policy: " + ", ".join(POLICIES)})
    strength: float = field(default=1.0, metadata={"help": "1 erases, 0 changes nothing, above 1 overshoots"})
    eta: float | None = field(
        default=None,
        metadata={
            "help": "steer to g - eta (c - g), g the neutral prompt (projection; default: to another of its "
            "kind)"
        },
    )
    kind: str = field(default="auto", metadata={"help": "kind of concept: auto, " + ", ".join(KINDS)})
    energy: float = field(
        default=0.97, metadata={"help": "share of the concept's energy to project out (projection)"}
    )
    alpha: float | None = field(
        default=None, metadata={"help": "regulariser, relative to the keep set (policy's own)"}
    )
    keep_weight: float = field(default=1.0, metadata={"help": "weight of the keep set against the concepts"})
    max_rank: int | None = field(default=None, metadata={"help": "upper bound of the rank of the edit"})
    stream: str = field(
        default="all",
        metadata={"help": "what of the text is edited: all, or pooled, the pooled vector alone"},
    )
    contrast: bool = field(
        default=True, metadata={"help": "words inside names (the van of Van Gogh) are kept by themselves"}
    )
    contexts: Mapping[str, Sequence[str]] = field(
        default_factory=dict,
        metadata={"help": "more templates by kind of concept; {} is the concept's place"},
    )

    def __post_init__(self):
        if self.policy not in POLICIES:
            raise TraceError(f"policy '{self.policy}' is unknown; use one of {', '.join(POLICIES)}")
        if self.kind not in ("auto", *KINDS):
            raise TraceError(f"kind '{self.kind}' is unknown; use auto, {', '.join(KINDS)}")
        if self.stream not in ("all", POOLED):
            raise TraceError(f"stream '{self.stream}' is unknown; use all or {POOLED}")
        if not 0 < self.energy <= 1:
            raise TraceError(f"energy is {self.energy}; it must lie in (0, 1]")
        if not -10 <= self.strength <= 10:
            raise TraceError(f"strength is {self.strength}; it must lie between -10 and 10")
        if self.eta is not None and not 0 <= self.eta <= 5:
            raise TraceError(f"eta is {self.eta}; it must lie between 0 and 5")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise TraceError(f"alpha is {self.alpha}; it must be positive and finite")
        if not 0 < self.keep_weight < math.inf:
            raise TraceError(f"keep_weight is {self.keep_weight}; it must be positive and finite")
        if self.max_rank is not None and self.max_rank < 1:
            raise TraceError(f"max_rank is {self.max_rank}; it must be 1 or more, or left out")

    @property
    def contrasts(self) -> bool:
        """Whether words inside names are kept; the published policies stay as their papers have them."""
        return self.contrast and self.policy == "trace"


def _kind(concept: Concept, config: ClosedFormConfig) -> str:
    return concept.kind_and_why(config.kind)[0]


@dataclass
class ClosedFormResult:
    """What an erasure gives: the LoRA, the edits it was made from, and what was measured on the way."""

    lora: ErasureLora
    edits: dict[str, ContextEdit]
    report: dict


def erase(
    model,
    clip,
    concepts: Sequence[Concept],
    keep: Sequence[str] = (),
    config: ClosedFormConfig | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> ClosedFormResult:
    """Erase concepts from a model. The model is read, never written.

    Args:
        model: ComfyUI ModelPatcher; patches already on it count as part of its weights.
        clip: the ComfyUI CLIP that belongs to it.
        concepts: what to erase, from :func:`trace_core.text.concepts.parse_concepts`.
        keep: what must not change; empty means :data:`~trace_core.text.concepts.EVERYDAY`.
        config: options.
        progress: called as ``progress(phase, done, total)``; an exception raised in it cancels.
        seed: written to the metadata; the closed form itself draws nothing at random.

    Raises:
        ConceptError, ModelError, TraceError: before anything is changed.
    """
    config = config or ClosedFormConfig()
    concepts = list(concepts)
    if not concepts:
        raise ConceptError("nothing to erase; name at least one concept")
    check_disjoint(concepts, keep)
    concepts, notes = followed(concepts)
    backbone = backbone_for(model)
    check_weights(model)
    check_clip(backbone, clip)
    encoder = TextEncoder(clip)
    spelling = spelling_of(backbone, encoder, concepts, config.stream)
    policy = POLICIES[config.policy]
    kept = list(keep) or everyday(concepts)
    concepts = [settled(c, kept, concepts) for c in concepts]
    plain, both = ([c for c in concepts if bool(c.parts) is combined] for combined in (False, True))
    groups = [(policy, plain), (COMBINED, both)] if policy.name == "trace" else [(policy, concepts)]
    others = (
        substitutes(plain, kept, encoder, config.kind, FirstStep(model, clip))
        if policy.name == "trace" and config.eta is None
        else {}
    )
    config = replace(config, eta=config.eta or 0.0)
    edits, solved, sums, spilt = {}, {}, {}, {}
    progress = progress or (lambda *_: None)
    for policy, part in ((policy, part) for policy, part in groups if part):
        found = collect(backbone, encoder, policy, part, kept, config, progress, others)
        progress("solve", 0, 1)
        for stream, rows in found.items():
            edit, info = solve(policy, rows, config)
            before = solved.get(stream)
            solved[stream] = (
                {**before, "combined": info, "rank": before["rank"] + info["rank"]} if before else info
            )
            edits[stream] = edits[stream].then(edit) if stream in edits else edit
            sums.setdefault(stream, []).append(rows)
            if stream == CONTEXT:
                spilt |= {c.target: spill(edit, encoder, c, kept, config.contexts) for c in part if c.parts}
    progress("export", 0, 1)
    lora, layers = export(backbone, edits, sums, eta=config.eta)
    inside = contrast_words(concepts) if config.contrasts else {}
    told = {}
    if CONTEXT in edits and edits[CONTEXT].rank:
        told = side_effects(
            edits[CONTEXT],
            encoder,
            concepts,
            [_kind(c, config) for c in concepts],
            kept,
            config.eta or 0.0,
            others,
        )
    report = {
        "method": policy.name,
        "solver": policy.solver if not plain else POLICIES[config.policy].solver,
        "parameters": asdict(config),
        "concepts": [asdict(c) for c in concepts],
        "kinds": kinds_of(concepts, config.kind),
        "notes": notes,
        "substitutes": others,
        "keep": kept,
        "contrast": inside,
        "solved": solved,
        "layers": layers,
        "spill": spilt,
        "side_effects": told,
        "warnings": [
            *spelling,
            *weight_warnings(backbone, solved, layers, spilt),
            *effect_warnings(told, kept, inside),
            *as_negative_prompts(config, concepts),
        ],
    }
    lora.metadata.update(base_metadata(backbone, concepts, kept, policy.name, asdict(config), seed))
    if others:
        lora.metadata["trace.substitutes"] = json.dumps(others, ensure_ascii=False)
    return ClosedFormResult(lora, edits, report)


def as_negative_prompts(config: ClosedFormConfig, concepts: Sequence[Concept]) -> list[str]:
    """The warning of an overshoot: guidance away from the opposite of a concept draws the concept."""
    past = config.strength * max(c.strength for c in concepts) * (1 + (config.eta or 0.0))
    if POLICIES[config.policy].solver != "projection" or past <= 1:
        return []
    names = f"'{concepts[0].target}'" + (f" and {len(concepts) - 1} more" if len(concepts) > 1 else "")
    return [
        f"the edit steers past its aim, so {names} in a negative prompt may be drawn, not avoided; leave "
        "eta out and strength at 1"
    ]


def collect(
    backbone: Backbone,
    encoder: TextEncoder,
    policy: Policy,
    concepts: Sequence[Concept],
    keep: Sequence[str],
    config: ClosedFormConfig,
    progress: Progress,
    others: Mapping[str, str] | None = None,
) -> dict[str, _Sums]:
    """Encode every prompt once and fold its rows into the sums of each text stream.

    ``others``: what takes a concept's place, by target, where that is not its counterpart.

    Raises:
        ConceptError: if a concept's prompts do not differ from their counterparts.
    """
    strengths = {c.strength for c in concepts}
    others = others or {}
    sums = {
        s: _Sums(w, policy.solver, strengths, bool(others))
        for s in (CONTEXT, POOLED)
        if (w := backbone.width(s))
    }
    context = sums[CONTEXT]
    inside = contrast_words(concepts) if config.contrasts else {}
    empty = encoder.encode("")
    # the start token is in every prompt and never carries a concept
    context.fixed = empty.embeddings[empty.rows(BOS)]
    for number, concept in enumerate(concepts):
        progress("encode concepts", number, len(concepts))
        before = context.count
        given = policy, concept, config, encoder, others.get(concept.target), inside.get(concept.target, ())
        for (pairs, weights, erased, wanted), other in _with_others(*given):
            check_width(pairs.erase, backbone)
            instead, other = other or (None, None)
            context.add_pairs(
                pairs.erase, pairs.want, weights, wanted.embeddings, pairs.partners, concept.strength, instead
            )
            if POOLED in sums:
                share = torch.tensor([weights.sum()], dtype=torch.float64)
                sums[POOLED].add_pairs(
                    _pooled(erased, backbone),
                    _pooled(wanted, backbone),
                    share,
                    strength=concept.strength,
                    instead=None if other is None else _pooled(other, backbone),
                )
                if policy.solver == "projection":
                    sums[POOLED].add_keep(_pooled(wanted, backbone), share)
            # what the concept is steered to stays; the papers' ridge has no such term
            if policy.solver == "projection":
                share = row_weights(wanted.groups, ALL_GROUPS, "group") * weights.sum()
                context.add_keep(wanted.embeddings, share, wanted.groups, held=True)
        if context.count == before:
            raise ConceptError(
                f"'{concept}' and its anchor give the text encoder the same rows; name another anchor"
            )
    prompts = keep_prompts(
        policy, keep, [guess_kind(k) for k in keep], config.contexts, concepts, config.contrasts
    )
    shares = keep_shares(policy, prompts, keep, inside)
    for number, (rows, share) in enumerate(zip(encoder.encode_all(prompts), shares)):
        if number % 16 == 0:
            progress("encode keep set", number, len(prompts))
        share *= config.keep_weight
        context.add_keep(rows.embeddings, keep_weights(policy, rows) * share, rows.groups)
        if POOLED in sums:
            sums[POOLED].add_keep(_pooled(rows, backbone), torch.tensor([share], dtype=torch.float64))
    return sums if config.stream == "all" else {config.stream: sums[config.stream]}


def _with_others(
    policy: Policy,
    concept: Concept,
    config: ClosedFormConfig,
    encoder: TextEncoder,
    other: str | None,
    words: Sequence[str] = (),
) -> Iterator[tuple[tuple, tuple[Tensor, TextRows] | None]]:
    """:func:`erased_pairs`, each with the rows ``[n, d]`` and the prompt of what takes the concept's
    place, if anything does.
    """
    kind = _kind(concept, config)
    found = erased_pairs(policy, concept, kind, encoder, config.contexts, words)
    if not other:
        yield from ((pair, None) for pair in found)
        return
    instead = erased_pairs(policy, replace(concept, anchor=other), kind, encoder, config.contexts)
    yield from ((pair, (rows.want, prompt)) for pair, (rows, _, _, prompt) in zip(found, instead))


def solve(policy: Policy, part: _Sums, config: ClosedFormConfig) -> tuple[ContextEdit, dict]:
    """Run the policy's solver on one stream's sums."""
    alpha = policy.alpha if config.alpha is None else config.alpha
    absolute = policy.absolute if config.alpha is None else None
    G = solvers.regularise(part.keep.value(), alpha, absolute, part.trace)
    strength = config.strength * part.strength
    if policy.solver == "projection":
        options = (strength * (1 + (config.eta or 0.0)), config.energy, config.max_rank, part.fixed)
        if part.rows:
            return solvers.projection(torch.cat(part.rows), G, *options, part.grades, part.moves)
        return solvers.projection_from_gram(part.difference(), G, *options, part.graded)
    return solvers.ridge(
        part.targets, None, G + part.erase.value(), strength, policy.tolerance, config.max_rank
    )


def export(
    backbone: Backbone,
    edits: dict[str, ContextEdit],
    sums: Mapping[str, _Sums | Sequence[_Sums]],
    measure: bool = True,
    eta: float = 0.0,
) -> tuple[ErasureLora, dict]:
    """Turn the edits into LoRA factors, layer by layer, and (unless told not to) measure what they do to each
    layer.

    Per layer: ``residual`` = ||W'D|| / ||W D|| over the weighted difference rows, of the edit without its
    overshoot ``eta`` (where a substitute takes the concept's place, ||dW D + W M|| / ||W M||, M what was to
    move), ``keep_change`` = ||dW P|| / ||W P|| over the keep rows, ``relative_norm`` = ||dW|| / ||W||.
    """
    factors, measured = {}, {}
    forms = {s: _forms(edit, sums[s], eta) if measure else None for s, edit in edits.items() if edit.rank}
    for layer, weight in backbone.weights():
        if layer.stream not in forms:
            continue
        up, down = edits[layer.stream].factors(weight, layer.columns, torch.float16)
        factors |= ErasureLora.from_factors({layer.module: (up.cpu(), down.cpu())}).modules
        if measure:
            measured[layer.module] = _norms(weight[:, : layer.columns].float().cpu(), forms[layer.stream])
    return ErasureLora(factors), measured


def _norms(text: Tensor, forms: Tensor) -> dict[str, float]:
    """The report of one layer, from its text columns ``[out, d]`` float32 and the forms of :func:`_forms`."""
    inner = torch.zeros(text.shape[1], text.shape[1])
    add_symmetric(inner, text)
    norms = (forms @ mirror(inner).double().flatten()).clamp_min(0).sqrt().tolist()
    return {
        "residual": _ratio(norms[0], norms[1]),
        "keep_change": _ratio(norms[2], norms[3]),
        "relative_norm": _ratio(norms[4], text.norm().item()),
    }


def _forms(edit: ContextEdit, parts: _Sums | Sequence[_Sums], eta: float) -> Tensor:
    """What every layer's norms are read from: ``||W X||_F^2 = <W^T W, X X^T>``, and X X^T is the same for all
    layers.

    Returns:
        ``[5, d * d]`` float64, X X^T of M + U V^T D / (1 + eta), M, U V^T P, P, U V^T, where M is D or what
        moves in its place. All are positive semidefinite, so nothing cancels in the inner product, and
        float32 does for W^T W.
    """
    parts = [parts] if isinstance(parts, _Sums) else parts
    V, D, P = (
        edit.V,
        reduce(torch.add, (p.difference() for p in parts)),
        reduce(torch.add, (p.keep.value() for p in parts)),
    )
    M, across = (reduce(torch.add, sums) for sums in zip(*(p.moved() for p in parts)))  # M M^T, M D^T
    left = (lambda x: x) if edit.is_plain else (lambda x: edit.U @ x)
    half = across + left(V.T @ D) / (1 + eta)
    # filled one by one: stacking them would hold them twice
    forms = torch.empty(5, *D.shape, dtype=torch.float64)
    forms[0] = M + left(V.T @ across.T) / (1 + eta) + left((half @ V).T).T / (1 + eta)
    forms[1], forms[3] = M, P
    forms[2] = left(left(V.T @ P @ V).T)
    forms[4] = left(left(V.T @ V).T)
    return forms.flatten(1)


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom > 0 else 0.0


def _pooled(rows, backbone: Backbone) -> Tensor:
    """The pooled vector as one row, cut to the width that the model reads."""
    if rows.pooled is None:
        raise ConceptError(
            "this CLIP returns no pooled vector, which the model needs; connect the CLIP of the same model"
        )
    return rows.pooled[None, : backbone.width(POOLED)]
