"""Closed-form erasure of a list of concepts from a ComfyUI model: rows -> Gram -> one solve -> LoRA."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor

from ..backbones import Backbone, backbone_for
from ..backbones.base import CONTEXT, POOLED
from ..concepts import EVERYDAY, KINDS, Concept, check_disjoint, guess_kind, same, settled
from ..errors import ConceptError, TraceError
from ..lora import ErasureLora, base_metadata
from ..text import BOS, TextEncoder
from . import solvers
from .contrast import contrast_words
from .edit import ContextEdit
from .effects import effect_warnings, side_effects, spelling_of, weight_warnings
from .gram import Cross, Gram, add_symmetric, mirror
from .policies import COMBINED, POLICIES, Policy, erased_pairs, keep_prompts, keep_shares, keep_weights, row_weights
from .spill import spill

ALL_GROUPS = tuple(range(6))
SAME = 1e-5  #: rows that differ by less than this share are one row, encoded at different places of a batch

#: ``progress(phase, done, total)``; raise from it to cancel
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ClosedFormConfig:
    """Options of the closed form."""

    policy: str = field(default="trace", metadata={"help": "pairing policy: " + ", ".join(POLICIES)})
    strength: float = field(default=1.0, metadata={"help": "1 erases, 0 changes nothing, above 1 overshoots"})
    eta: float | None = field(
        default=None, metadata={"help": "overshoot: steer to g - eta (c - g), not to the neutral g (projection; by kind)"}
    )
    kind: str = field(default="auto", metadata={"help": "kind of concept: auto, " + ", ".join(KINDS)})
    energy: float = field(default=0.97, metadata={"help": "share of the concept's energy to project out (projection)"})
    alpha: float | None = field(default=None, metadata={"help": "regulariser, relative to the keep set (policy's own)"})
    keep_weight: float = field(default=1.0, metadata={"help": "weight of the keep set against the concepts"})
    max_rank: int | None = field(default=None, metadata={"help": "upper bound of the rank of the edit"})
    stream: str = field(default="all", metadata={"help": "what of the text is edited: all, or pooled, the pooled vector alone"})
    contrast: bool = field(default=True, metadata={"help": "words inside names (the van of Van Gogh) are kept by themselves"})
    contexts: Mapping[str, Sequence[str]] = field(
        default_factory=dict, metadata={"help": "more templates by kind of concept; {} is the concept's place"}
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


#: Overshoot where the concept is steered to the neutral prompt. That prompt still draws the concept by chance: one style
#: in five, one object in twenty. An anchor draws something else, and needs none.
NEUTRAL_ETA = {"object": 0.5, "style": 0.75, "person": 0.5, "explicit": 0.5}


def resolve_eta(config: ClosedFormConfig, concepts: Sequence[Concept]) -> float:
    """The overshoot to use: as asked, or by the kind of the concepts without an anchor (the smallest, if they differ)."""
    if config.eta is not None:
        return config.eta
    if POLICIES[config.policy].solver != "projection" or any(c.anchor for c in concepts):
        return 0.0
    return min(NEUTRAL_ETA[_kind(c, config)] for c in concepts)


def _kind(concept: Concept, config: ClosedFormConfig) -> str:
    return concept.kind if config.kind == "auto" else config.kind


@dataclass
class ClosedFormResult:
    """What an erasure gives: the LoRA, the edits it was made from, and what was measured on the way."""

    lora: ErasureLora
    edits: dict[str, ContextEdit]
    report: dict


class _Sums:
    """What a solver needs of one text stream, and the report: sums over pairs (c, g) of weight a, and over keep rows.

    Only the solver's own sums are accumulated: for ``ridge`` those of c and g, in which prompts that repeat cost little, for
    ``projection`` those of d = c - g, which keep their precision where c and g are close. Where the concepts' strengths s
    differ there are second sums, with s as a factor; where they are all the same it is :attr:`strength`, of the whole edit.
    """

    def __init__(self, width: int, solver: str, strengths: Iterable[float] = (1.0,)):
        values = set(strengths)
        self.strength = values.pop() if len(values) == 1 else 1.0
        self._differ = bool(values)
        self._graded = (Cross if solver == "ridge" else Gram)(width) if self._differ else None
        self._grades: list[Tensor] = []  # s of every row of rows
        self.keep = Gram(width)
        self.count = 0  #: pairs that differ
        self.rows: list[Tensor] = []  #: ``sqrt(a) d``, for the projection, while there are few; otherwise nothing
        self.fixed: Tensor | None = None  #: rows that must not change, [k, d]
        self._starts = 0.0
        self._ridge = solver == "ridge"
        if self._ridge:
            self._pairs = Cross(width)  # sum a g c^T, sum a c c^T, sum a g g^T
        else:
            self._difference = Gram(width)  # sum a d d^T of those not in rows

    def add_pairs(self, erase: Tensor, want: Tensor, weights: Tensor, source: Tensor | None = None,
                  partners: Sequence[int] = (), strength: float = 1.0) -> None:  # fmt: skip
        """Add rows c, g ``[n, d]`` of a concept, with weights a ``[n]``; pairs that do not differ (before it) are left out.

        Where the g are rows of a tensor that many prompts share, it is ``source``, and ``partners`` the n rows' numbers in
        it; it must stay as it is until the sums are read.
        """
        moved = (weights > 0) & ((erase - want).norm(dim=1) > SAME * erase.norm(dim=1))
        at = moved.nonzero()[:, 0].tolist()
        if not at:
            return
        self.count += len(at)
        if source is None:
            source, partners = want, range(len(want))
        partners = [partners[i] for i in at]
        at = slice(at[0], at[-1] + 1) if at[-1] - at[0] + 1 == len(at) else at  # a slice needs no copy
        erase, want, weights = erase[at], want[at], weights[at]
        if self._ridge:
            self._pairs.add(source, partners, erase, weights)
            if self._differ:
                self._graded.add(source, partners, erase, weights * strength)
            return
        self.rows.append((erase.double() - want.double()).mul_(weights.sqrt()[:, None]))
        self._grades.append(torch.full((len(erase),), strength, dtype=torch.float64))
        if self.count > solvers.DIRECT_LIMIT:
            for rows, grades in zip(self.rows, self._grades):
                self._difference.add(rows)
                if self._differ:
                    self._graded.add(rows, grades)
            self.rows, self._grades = [], []

    @property
    def erase(self) -> Gram:
        """``sum a c c^T``, for the ridge."""
        return self._pairs.right

    def add_keep(self, rows: Tensor, weights: Tensor, groups: Sequence[int] = (), held: bool = False) -> None:
        """Add keep rows ``[n, d]`` with weights ``[n]``; ``groups`` tells which are start tokens.

        ``held``: the same tensor may come again, and must not change.
        """
        (self.keep.add_held if held else self.keep.add)(rows, weights)
        starts = [i for i, group in enumerate(groups) if group == BOS]
        if starts:
            self._starts += (weights[starts] * rows[starts].double().square().sum(dim=1)).sum().item()

    @property
    def trace(self) -> float:
        """Trace of the keep matrix without its start-token rows, whose few giant numbers say nothing."""
        return self.keep.value().diagonal().sum().item() - self._starts

    @property
    def targets(self) -> Tensor:
        """``sum a s (g - c) c^T``, ``[d, d]``, for the ridge; s is 1 where strengths do not differ."""
        pairs = self._graded if self._differ else self._pairs
        return pairs.value() - pairs.right.value()

    @property
    def grades(self) -> Tensor | None:
        """s of every row of :attr:`rows`, ``[n]``, for the projection; None where strengths do not differ."""
        return torch.cat(self._grades) if self._differ else None

    @property
    def graded(self) -> Tensor | None:
        """``sum a s d d^T``, ``[d, d]``, of those not in rows; None where strengths do not differ."""
        return self._graded.value() if self._differ else None

    def difference(self) -> Tensor:
        """``sum a d d^T``, ``[d, d]``."""
        if self._ridge:
            cross = self._pairs.value()
            return self.erase.value() - cross - cross.T + self._pairs.left.value()
        if not self.rows:
            return self._difference.value()
        total = Gram(self._difference.width)
        for rows in self.rows:
            total.add(rows)
        return total.value()


def erase(model, clip, concepts: Sequence[Concept], keep: Sequence[str] = (), config: ClosedFormConfig | None = None,
          progress: Progress | None = None, seed: int = 0) -> ClosedFormResult:  # fmt: skip
    """Erase concepts from a model. The model is read, never written.

    Args:
        model: ComfyUI ModelPatcher; patches already on it count as part of its weights.
        clip: the ComfyUI CLIP that belongs to it.
        concepts: what to erase, from :func:`trace_core.concepts.parse_concepts`.
        keep: what must not change; empty means :data:`~trace_core.concepts.EVERYDAY`.
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
    backbone = backbone_for(model)
    encoder = TextEncoder(clip)
    spelling = spelling_of(backbone, encoder, concepts, config.stream)
    policy = POLICIES[config.policy]
    kept = list(keep) or [k for k in EVERYDAY if not any(same(k, c.target) for c in concepts)]
    concepts = [settled(c, kept) for c in concepts]
    plain, both = ([c for c in concepts if bool(c.parts) is combined] for combined in (False, True))
    groups = [(policy, plain), (COMBINED, both)] if policy.name == "trace" else [(policy, concepts)]
    config = replace(config, eta=resolve_eta(config, plain or both))
    edits, solved, sums, spilt = {}, {}, {}, {}
    for policy, part in ((policy, part) for policy, part in groups if part):
        found = collect(backbone, encoder, policy, part, kept, config, progress or (lambda *_: None))
        for stream, rows in found.items():
            edit, info = solve(policy, rows, config)
            before = solved.get(stream)
            solved[stream] = {**before, "combined": info, "rank": before["rank"] + info["rank"]} if before else info
            edits[stream] = edits[stream].then(edit) if stream in edits else edit
            sums.setdefault(stream, []).append(rows)
            if stream == CONTEXT:
                spilt |= {c.target: spill(edit, encoder, c, kept, config.contexts) for c in part if c.parts}
    lora, layers = export(backbone, edits, sums, eta=config.eta)
    inside = contrast_words(concepts) if config.contrast and policy.name == "trace" else {}
    told = {}
    if CONTEXT in edits and edits[CONTEXT].rank:
        told = side_effects(edits[CONTEXT], encoder, concepts, [_kind(c, config) for c in concepts], kept, config.eta or 0.0)
    report = {
        "method": policy.name,
        "solver": policy.solver if not plain else POLICIES[config.policy].solver,
        "parameters": asdict(config),
        "concepts": [asdict(c) for c in concepts],
        "keep": kept,
        "contrast": inside,
        "solved": solved,
        "layers": layers,
        "spill": spilt,
        "side_effects": told,
        "warnings": [*spelling, *weight_warnings(backbone, solved, layers, spilt), *effect_warnings(told, kept, inside)],
    }
    lora.metadata.update(base_metadata(backbone, concepts, kept, policy.name, asdict(config), seed))
    return ClosedFormResult(lora, edits, report)


def collect(backbone: Backbone, encoder: TextEncoder, policy: Policy, concepts: Sequence[Concept], keep: Sequence[str],
            config: ClosedFormConfig, progress: Progress) -> dict[str, _Sums]:  # fmt: skip
    """Encode every prompt once and fold its rows into the sums of each text stream.

    Raises:
        ConceptError: if a concept's prompts do not differ from their counterparts.
    """
    strengths = {c.strength for c in concepts}
    sums = {s: _Sums(w, policy.solver, strengths) for s in (CONTEXT, POOLED) if (w := backbone.width(s))}
    context = sums[CONTEXT]
    inside = contrast_words(concepts) if config.contrast and policy.name == "trace" else {}
    empty = encoder.encode("")
    context.fixed = empty.embeddings[empty.rows(BOS)]  # the start token is in every prompt and never carries a concept
    for number, concept in enumerate(concepts):
        progress("encode concepts", number, len(concepts))
        before = context.count
        for pairs, weights, erased, wanted in erased_pairs(
            policy, concept, _kind(concept, config), encoder, config.contexts, inside.get(concept.target, ())
        ):
            _check_width(pairs.erase, backbone)
            context.add_pairs(pairs.erase, pairs.want, weights, wanted.embeddings, pairs.partners, concept.strength)
            if POOLED in sums:
                share = torch.tensor([weights.sum()], dtype=torch.float64)
                sums[POOLED].add_pairs(_pooled(erased, backbone), _pooled(wanted, backbone), share, strength=concept.strength)
                if policy.solver == "projection":
                    sums[POOLED].add_keep(_pooled(wanted, backbone), share)
            if policy.solver == "projection":  # what the concept is steered to stays; the papers' ridge has no such term
                share = row_weights(wanted.groups, ALL_GROUPS, "group") * weights.sum()
                context.add_keep(wanted.embeddings, share, wanted.groups, held=True)
        if context.count == before:
            raise ConceptError(f"'{concept}' and its anchor give the text encoder the same rows; name another anchor")
    prompts = keep_prompts(policy, keep, [guess_kind(k) for k in keep], config.contexts, concepts, config.contrast)
    shares = keep_shares(policy, prompts, keep, inside)
    for number, (rows, share) in enumerate(zip(encoder.encode_all(prompts), shares)):
        if number % 16 == 0:
            progress("encode keep set", number, len(prompts))
        share *= config.keep_weight
        context.add_keep(rows.embeddings, keep_weights(policy, rows) * share, rows.groups)
        if POOLED in sums:
            sums[POOLED].add_keep(_pooled(rows, backbone), torch.tensor([share], dtype=torch.float64))
    return sums if config.stream == "all" else {config.stream: sums[config.stream]}


def solve(policy: Policy, part: _Sums, config: ClosedFormConfig) -> tuple[ContextEdit, dict]:
    """Run the policy's solver on one stream's sums."""
    alpha = policy.alpha if config.alpha is None else config.alpha
    absolute = policy.absolute if config.alpha is None else None
    G = solvers.regularise(part.keep.value(), alpha, absolute, part.trace)
    strength = config.strength * part.strength
    if policy.solver == "projection":
        options = (strength * (1 + (config.eta or 0.0)), config.energy, config.max_rank, part.fixed)
        if part.rows:
            return solvers.projection(torch.cat(part.rows), G, *options, part.grades)
        return solvers.projection_from_gram(part.difference(), G, *options, part.graded)
    return solvers.ridge(part.targets, None, G + part.erase.value(), strength, policy.tolerance, config.max_rank)


def export(backbone: Backbone, edits: dict[str, ContextEdit], sums: Mapping[str, _Sums | Sequence[_Sums]],
           measure: bool = True, eta: float = 0.0) -> tuple[ErasureLora, dict]:  # fmt: skip
    """Turn the edits into LoRA factors, layer by layer, and (unless told not to) measure what they do to each layer.

    Per layer: ``residual`` = ||W'D|| / ||W D|| over the weighted difference rows, of the edit without its overshoot ``eta``, ``keep_change`` = ||dW P|| / ||W P||
    over the keep rows, ``relative_norm`` = ||dW|| / ||W||.
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
    """What every layer's norms are read from: ``||W X||_F^2 = <W^T W, X X^T>``, and X X^T is the same for all layers.

    Returns:
        ``[5, d * d]`` float64, X X^T of (I + U V^T / (1 + eta)) D, D, U V^T P, P, U V^T. All are positive semidefinite, so nothing
        cancels in the inner product, and float32 does for W^T W.
    """
    parts = [parts] if isinstance(parts, _Sums) else parts
    V, D, P = edit.V, reduce(torch.add, (p.difference() for p in parts)), reduce(torch.add, (p.keep.value() for p in parts))
    left = (lambda x: x) if edit.is_plain else (lambda x: edit.U @ x)
    half = D + left(V.T @ D) / (1 + eta)
    forms = torch.empty(5, *D.shape, dtype=torch.float64)  # filled one by one: stacking them would hold them twice
    forms[0], forms[1], forms[3] = half + left((half @ V).T).T / (1 + eta), D, P
    forms[2] = left(left(V.T @ P @ V).T)
    forms[4] = left(left(V.T @ V).T)
    return forms.flatten(1)


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom > 0 else 0.0


def _pooled(rows, backbone: Backbone) -> Tensor:
    """The pooled vector as one row, cut to the width that the model reads."""
    if rows.pooled is None:
        raise ConceptError("this CLIP returns no pooled vector, which the model needs; connect the CLIP of the same model")
    return rows.pooled[None, : backbone.width(POOLED)]


def _check_width(rows: Tensor, backbone: Backbone) -> None:
    if rows.shape[1] != backbone.width(CONTEXT):
        raise ConceptError(
            f"the text encoder gives rows of {rows.shape[1]} numbers, the model reads {backbone.width(CONTEXT)}; "
            "connect the CLIP that belongs to this model"
        )
