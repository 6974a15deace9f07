"""Many erasures in one: MACE's closed-form fusion, for every layer that reads text, with one factorisation.

MACE (arXiv 2403.06135, eq. 7) looks for the weights W* that do on the prompts of every concept what its own adapter dW_i
does there, and on the keep set what the model did before::

    min  sum_i ||(W* - W - dW_i) C_i||^2 + beta ||(W* - W) P||^2 + lambda ||W* - W||^2
    W* - W = sum_i dW_i S_i G^-1,      S_i = C_i C_i^T,   G = sum_i S_i + beta P P^T + lambda I

C_i are the weighted text rows of concept i's prompts, so S_i and G are the same for every layer that reads the same rows: one
Cholesky factorisation serves the network. And with ``dW_i = up_i down_i`` the answer has low rank as it stands:
``up_i`` stays, ``down_i`` becomes ``down_i S_i G^-1``. Every concept keeps ranks of its own in the result, which can be graded
or taken out again (:class:`~trace_core.lora.Part`).

The same answer follows one adapter at a time. Each dW_i' shall be dW_i on its own rows and silent on the others' (the
integration regulariser of weight mu; algorithms' 5.1) and on the keep set::

    min  ||(dW_i' - dW_i) C_i||^2 + mu sum_{j != i} ||dW_i' C_j||^2 + beta ||dW_i' P||^2 + lambda ||dW_i'||^2
    dW_i' = dW_i S_i (S_i + mu sum_{j != i} S_j + beta P P^T + lambda I)^-1

For ``mu = 1`` the bracket is G for every i, so the dW_i' add up to MACE's fusion exactly. Other mu cost a factorisation each.

The start token is the same row in every prompt, so the adapters ask for different things there and no weight of its own would do:
by default its response is held at what eq. 7 gives for this row alone, the mean of the adapters' own by their weights, the keep
set counting as 0. It is the limit of an infinite weight on that row. A closed form, which leaves the start token as it is, stays
exact there; one adapter alone without a keep set stays itself; and the start token's few giant numbers keep out of G.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from .backbones import Backbone, backbone_for
from .backbones.base import CONTEXT, POOLED
from .closed_form import solvers
from .closed_form.gram import Gram, add_symmetric, mirror
from .closed_form.policies import POLICIES, keep_prompts, row_weights
from .concepts import EVERYDAY, TEMPLATES, Concept, check_disjoint, guess_kind, prompt_pairs, same, settled
from .errors import ConceptError, LoraError, TraceError
from .gating import base_mismatch, check_fits
from .lora import MAX_STRENGTH, ErasureLora, Part, base_metadata, grades
from .text import BOS, GROUPS, TextEncoder, TextRows

MODES = ("fuse", "sum")
STARTS = ("held", "row")
WEIGHTINGS = ("group", "row")

#: ``progress(phase, done, total)``; raise from it to cancel
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FusionConfig:
    """Options of the fusion."""

    mode: str = field(default="fuse", metadata={"help": "fuse: eq. 7; sum: put side by side, as several LoRA loaders would"})
    integration: float = field(default=1.0, metadata={"help": "mu: how silent an adapter shall be on the others' rows; 1 is MACE"})
    keep_weight: float = field(default=0.1, metadata={"help": "beta: weight of an entry of the keep set against a concept"})
    alpha: float = field(default=1e-3, metadata={"help": "lambda, relative to the trace of the Gram matrix"})
    weighting: str = field(default="group", metadata={"help": "group: token groups count alike; row: rows do, as in MACE's sums"})
    start: str = field(default="held", metadata={"help": "start token: held at the mean response, or a row like any other (MACE)"})
    max_rank: int | None = field(default=None, metadata={"help": "upper bound of a layer's rank; the parts become one"})
    contexts: Mapping[str, Sequence[str]] = field(
        default_factory=dict, metadata={"help": "more templates by kind of concept; {} is the concept's place"}
    )

    def __post_init__(self):
        for name, known in (("mode", MODES), ("weighting", WEIGHTINGS), ("start", STARTS)):
            if getattr(self, name) not in known:
                raise TraceError(f"{name} '{getattr(self, name)}' is unknown; use one of {', '.join(known)}")
        if not 0 <= self.integration <= 1e6:
            raise TraceError(f"integration is {self.integration}; it must lie between 0 and a million, 1 is MACE's fusion")
        if not 0 <= self.keep_weight <= 1e6:
            raise TraceError(f"keep_weight is {self.keep_weight}; it must lie between 0 (no keep set) and a million")
        if not 0 < self.alpha < math.inf:
            raise TraceError(f"alpha is {self.alpha}; it must be positive and finite")
        if self.max_rank is not None and self.max_rank < 1:
            raise TraceError(f"max_rank is {self.max_rank}; it must be 1 or more, or left out")


@dataclass
class FusionResult:
    """The fused erasure, and what was measured on the way."""

    lora: ErasureLora
    report: dict


@dataclass
class Adapter:
    """One of the erasures that are fused, as it enters: strengths undone, so that they can be set again afterwards.

    A file of several parts is one adapter: what shall stay is its response on all of its concepts' rows.
    """

    name: str
    lora: ErasureLora
    parts: list[Part]
    strengths: dict[str, float]  #: of the parts that were graded, to be set again

    @property
    def concepts(self) -> list[tuple[Concept, str]]:
        """Every concept with its kind."""
        found = {c.target: (c, p.kind) for p in self.parts for c in p.concepts}
        return list(found.values())


def fuse(model, clip, loras: Sequence[ErasureLora], keep: Sequence[str] = (), config: FusionConfig | None = None,
         strengths: Mapping[str, float] | None = None, progress: Progress | None = None,
         names: Sequence[str] | None = None) -> FusionResult:  # fmt: skip
    """Fuse erasures of one base model, each of which says in its metadata what it erases.

    Args:
        model: ComfyUI ModelPatcher they were made for; it is read, never written.
        clip: the ComfyUI CLIP that belongs to it.
        loras: one or more. One that was fused before enters as a whole, and its parts stay parts.
        keep: what must not change; empty means what the erasures themselves kept, less what is now erased.
        config: options.
        strengths: ``{target: strength}`` of parts in the result, as in :meth:`~trace_core.lora.ErasureLora.graded`.
        progress: called as ``progress(phase, done, total)``; an exception raised in it cancels.
        names: what errors and the report call the erasures.

    Raises:
        LoraError: naming the erasure: it does not say what it erases, it does not fit the model, or bases or windows differ.
        ConceptError, ModelError, TraceError: before anything is changed.
    """
    config, begin = config or FusionConfig(), time.perf_counter()
    progress, clock = progress or (lambda *_: None), {}
    adapters = enter(model, loras, names)
    concepts = list({c.target: c for a in adapters for c, _ in a.concepts}.values())
    grades([p for a in adapters for p in a.parts], strengths or {})
    check_disjoint(concepts, keep)
    backbone = backbone_for(model)
    kept = list(keep) or _own_keep(adapters, concepts)  # of weight 0, it is still measured
    streams = [part for s in (CONTEXT, POOLED) if (part := Stream(backbone, s, adapters, config)).layers]
    if streams:
        collect(streams, TextEncoder(clip), adapters, kept, config, progress, clock)
    if config.mode == "fuse":
        for stream in streams:
            stream.solve(progress, clock)
    lora, lost = assemble(adapters, streams, config, clock)
    for stream in streams:
        stream.measure(backbone, adapters, lora, progress, clock)
    lora.metadata.update(_metadata(backbone, adapters, concepts, kept, config))
    lora._set_parts(_parts_of(adapters, lora) if config.max_rank is None else [_one_part(concepts, lora)])
    again = {t: s for a in adapters for t, s in a.strengths.items()} | dict(strengths or {})
    lora = lora.graded(again) if again else lora
    clock["all"] = time.perf_counter() - begin
    report = {
        "method": config.mode,
        "parameters": asdict(config),
        "concepts": [asdict(c) for c in concepts],
        "keep": kept,
        "strengths": again,
        "seconds": {k: round(v, 4) for k, v in clock.items()},
        **_figures(adapters, streams, lora),
        "truncation": lost,
    }
    report["warnings"] = _warnings(model, adapters, report, streams)
    return FusionResult(lora, report)


# ------------------------------------------------------------------------------------------- what comes in


def parse_strengths(text: str, source: str = "strengths") -> dict[str, float]:
    """Parse ``concept = number`` lines; ``#`` starts a comment.

    Raises:
        LoraError: naming ``source`` and the line.
    """
    out = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.split("#", 1)[0].strip()
        if not line:
            continue
        name, _, value = (part.strip() for part in line.rpartition("="))
        try:
            strength = float(value)
        except ValueError:
            strength = math.nan
        if not name or not abs(strength) <= MAX_STRENGTH:
            raise LoraError(f"{source}, line {number}: '{line[:60]}' is not CONCEPT = NUMBER from -10 to 10, such as `cat = 0.5`")
        if any(same(name, other) for other in out):
            raise LoraError(f"{source}, line {number}: '{name[:60]}' is given twice; remove one")
        out[name] = strength
    return out


def enter(model, loras: Sequence[ErasureLora], names: Sequence[str] | None = None) -> list[Adapter]:
    """Check that the erasures can be fused, before anything is computed.

    Raises:
        LoraError: naming the erasure and what to do.
    """
    loras = list(loras)
    if not loras:
        raise LoraError("nothing to fuse; name at least one erasure")
    names = list(names) if names else [f"LoRA {i}" for i in range(1, len(loras) + 1)]
    check_compatible(loras, names)
    fitting: set[tuple] = set()
    for name, lora in zip(names, loras):
        form = tuple((m, up.shape[0], down.shape[1]) for m, (up, down) in sorted(lora.modules.items()))
        try:
            if form not in fitting:  # most are of one form, and reading the model's shapes takes a while
                check_fits(model, lora)
        except LoraError as error:
            raise LoraError(f"{name}: {error}") from error
        fitting.add(form)
    adapters = []
    for name, lora in zip(names, loras):
        parts = lora.parts()
        graded = {t: p.strength for p in parts if p.strength != 1.0 for t in p.targets}
        lora = lora.graded(dict.fromkeys(graded, 1.0)) if graded else lora
        adapters.append(Adapter(name, lora, lora.parts(), graded))
    return adapters


def check_compatible(loras: Sequence[ErasureLora], names: Sequence[str]) -> None:
    """Whether erasures can be fused at all, without a model.

    Raises:
        LoraError: naming the first that cannot, and what to do.
    """
    for name, lora in zip(names, loras):
        if not lora.modules:
            raise LoraError(f"{name} changes nothing; leave it out")
        if not all(part.concepts for part in lora.parts()):
            raise LoraError(
                f"{name} does not say what it erases, so nobody knows on which prompts it must act; only erasures of TRACE can be "
                "fused: apply it beside the fused file, with a LoRA loader of its own"
            )
        if lora.window != loras[0].window:
            raise LoraError(
                f"{name} is for the window {lora.window}, {names[0]} for {loras[0].window}; one file has one window: fuse those "
                "that agree, and apply the files one by one"
            )
    bases = {name: base for name, lora in zip(names, loras) if isinstance(base := lora.info().get("trace.base"), dict)}
    for name, base in bases.items():
        first, other = next(iter(bases.items()))
        if base.get("kind") != other.get("kind"):
            raise LoraError(f"{name} is for {base.get('kind')} models, {first} for {other.get('kind')}; fuse those of one family")
        if base.get("hash") != other.get("hash"):
            raise LoraError(
                f"{name} was made on another base ({base.get('hash')}) than {first} ({other.get('hash')}); make all on one base"
            )


def _own_keep(adapters: Sequence[Adapter], concepts: Sequence[Concept]) -> list[str]:
    """What the erasures kept, less what is erased now; everyday things, if they do not say."""
    lists = [a.lora.info().get("trace.keep") for a in adapters]
    found = dict.fromkeys(k for kept in lists if isinstance(kept, list) for k in kept if isinstance(k, str) and k.strip())
    return [k for k in found or EVERYDAY if not any(same(k, c.target) for c in concepts)]


# ------------------------------------------------------------------------------------------- the sums


class Packed:
    """Symmetric matrices by number, their upper triangles only: half the memory of a square."""

    LIMIT = 1 << 30  #: bytes of all; beyond it, they are rounded to float32

    def __init__(self, width: int, count: int):
        """``width`` is d, ``count`` how many there will be."""
        first, second = torch.triu_indices(width, width)
        self.width, self._flat, self._diagonal = width, first * width + second, first == second
        self._dtype = torch.float64 if 8 * count * len(first) <= self.LIMIT else torch.float32
        self._kept: list[Tensor] = []

    def add(self, matrix: Tensor) -> None:
        self._kept.append(matrix.flatten()[self._flat].to(self._dtype))

    def __getitem__(self, number: int) -> Tensor:
        """``[d, d]`` float64."""
        full = torch.zeros(self.width, self.width, dtype=torch.float64)
        full.view(-1)[self._flat] = self._kept[number].double()
        return full + full.triu(1).T

    def weigh(self, matrix: Tensor) -> list[float]:
        """``<matrix, S>`` of every S, for a symmetric ``[d, d]`` float64."""
        doubled = matrix.flatten()[self._flat] * 2
        doubled[self._diagonal] /= 2
        return [torch.dot(doubled, kept.double()).item() for kept in self._kept]


class Stream:
    """All layers that read the same text (rows of tokens, or the pooled vector), and what eq. 7 needs to know of it.

    Attributes:
        layers: those of the model that at least one adapter changes.
        products: for each adapter ``down_i S_i``, of all the layers on top of each other, ``[n, d]`` float64.
        solved: the same of ``down_i S_i G_i^-1``, once it is solved.
        gram: ``sum_i S_i`` ``[d, d]``; start rows are not in it where they are held.
        keep: ``P P^T``.
        fixed: the start token's row ``[d]``, where it is held.
        figures: what :meth:`measure` found.
    """

    def __init__(self, backbone: Backbone, name: str, adapters: Sequence[Adapter], config: FusionConfig):
        self.name, self.width, self.config = name, backbone.width(name), config
        self.layers = [layer for layer in backbone.layers(name) if any(layer.module in a.lora.modules for a in adapters)]
        self.products: list[Tensor] = []
        self.solved: list[Tensor] = []
        self.figures: dict = {}
        if not self.layers:
            return
        self.gram = torch.zeros(self.width, self.width, dtype=torch.float64)
        self.keep, self.own = Gram(self.width), Packed(self.width, len(adapters))
        self.fixed: Tensor | None = None
        self._weights: list[float] = []  # of every adapter, and below of the keep set: 1 is a concept
        self._keep_weight = 0.0
        self._held: list[Tensor] = []  # down_i f, [n, 1]
        self._starts = 0.0  # trace of the start rows that are in the sums

    def slices(self, adapter: Adapter) -> dict[str, slice]:
        """Where an adapter's layers stand in :attr:`products` and :attr:`solved`."""
        out, at = {}, 0
        for layer in self.layers:
            if layer.module in adapter.lora.modules:
                rank = adapter.lora.modules[layer.module][1].shape[0]
                out[layer.module] = slice(at, at + rank)
                at += rank
        return out

    def stacked(self, adapter: Adapter) -> Tensor:
        """``down_i`` of all the layers on top of each other, text columns only, ``[n, d]`` float64."""
        found = [adapter.lora.modules[m][1][:, : self.width] for m in self.slices(adapter)]
        return torch.cat(found).double() if found else torch.zeros(0, self.width, dtype=torch.float64)

    def add_adapter(self, adapter: Adapter, own: Tensor, weight: float, starts: float) -> None:
        """Take in ``S_i`` ``[d, d]`` of all the adapter's concepts, whose weights sum to ``weight``; ``starts``: trace of start rows."""
        stacked = self.stacked(adapter)
        self.gram += own
        self.own.add(own)
        self.products.append(stacked @ own)
        if self.fixed is not None:
            self._held.append(stacked @ self.fixed[:, None])
        self._weights.append(weight)
        self._starts += starts

    def add_keep(self, rows: Tensor, weights: Tensor, starts: float, share: float) -> None:
        """Add a keep prompt's rows ``[n, d]``."""
        self.keep.add(rows, weights)
        self._starts += self.config.keep_weight * starts
        self._keep_weight += share

    def solve(self, progress: Progress, clock: dict) -> None:
        """``down_i S_i G_i^-1`` of every adapter, the start token's response held."""
        with _timed(clock, "solve"):
            mu, beta = self.config.integration, self.config.keep_weight
            gram = self.gram + beta * self.keep.value()
            G = solvers.regularise(gram, self.config.alpha, None, gram.diagonal().sum().item() - self._starts)
            factor = solvers.cholesky(G)
            everyone = sum(self._weights)
            for number, (product, weight) in enumerate(zip(self.products, self._weights)):
                progress("fuse", number, len(self.products))
                if mu != 1 and len(self.products) > 1:
                    factor = solvers.cholesky(G + (mu - 1) * (self.gram - self.own[number]))
                solved = torch.cholesky_solve(product.T, factor).T
                if self.fixed is not None:
                    share = weight / (weight + mu * (everyone - weight) + beta * self._keep_weight)
                    solved = hold(solved, self.fixed, share * self._held[number], factor)
                self.solved.append(solved)

    def measure(self, backbone: Backbone, adapters: Sequence[Adapter], lora: ErasureLora, progress: Progress, clock: dict) -> None:
        """What the fused erasure, and the plain sum beside it, do on every adapter's rows and on the keep rows.

        ``||(dW* - dW_i) C_i||^2 = <dW*^T dW*, S_i> - 2 <up_i^T dW*, down_i S_i> + <up_i^T up_i, down_i S_i down_i^T>``, summed over the
        layers: the first matrix is the same for all adapters.
        """
        with _timed(clock, "measure"):
            places = [self.slices(a) for a in adapters]
            cross, size = torch.zeros(2, len(adapters), dtype=torch.float64), torch.zeros(len(adapters), dtype=torch.float64)
            squares = torch.zeros(2, self.width, self.width, dtype=torch.float64)
            weights = torch.zeros(self.width, self.width)
            for number, (layer, weight) in enumerate(backbone.weights(self.layers)):
                progress("measure", number, len(self.layers))
                module, mine = layer.module, [i for i, a in enumerate(adapters) if layer.module in a.lora.modules]
                factors = [adapters[i].lora.modules[module] for i in mine]
                products = [self.products[i][places[i][module]] for i in mine]
                owners = torch.tensor([i for i, p in zip(mine, products) for _ in range(len(p))])
                ups, stacked = torch.cat([up for up, _ in factors], 1).double(), torch.cat(products)
                for kind, change in enumerate((_dense([lora.modules[module]], self.width), _dense(factors, self.width))):
                    add_symmetric(squares[kind], change)
                    cross[kind].index_add_(0, owners, (ups.T @ change).mul_(stacked).sum(dim=1))
                for i, (up, down), product in zip(mine, factors, products):
                    up = up.double()
                    size[i] += ((up.T @ up) * (product @ down[:, : self.width].double().T)).sum()
                add_symmetric(weights, weight[:, : self.width].float().cpu())
            squares, weights = [mirror(s) for s in squares], mirror(weights).double()
            kept, size = self.keep.value(), size.tolist()
            whole = (weights * kept).sum().item()
            for kind, name in enumerate(("fused", "sum")):
                response = self.own.weigh(squares[kind])
                left = [_ratio(r - 2 * c + s, s) for r, c, s in zip(response, cross[kind].tolist(), size)]
                self.figures[name] = {"residual": left, "keep_change": _ratio((squares[kind] * kept).sum().item(), whole)}


def hold(rows: Tensor, fixed: Tensor, response: Tensor, factor: Tensor) -> Tensor:
    """The rows ``[n, d]`` of least cost under G with ``rows fixed = response``: ``+ (response - rows f) (f^T G^-1 f)^-1 f^T G^-1``.

    Args:
        fixed: f ``[d]``.
        response: ``[n, 1]``.
        factor: Cholesky factor of G.
    """
    whitened = torch.cholesky_solve(fixed[:, None], factor)
    return rows + (response - rows @ fixed[:, None]) @ whitened.T / (fixed @ whitened)


def _dense(factors: Sequence[tuple[Tensor, Tensor]], width: int) -> Tensor:
    """``sum up down`` ``[out, width]`` float64."""
    return torch.cat([up for up, _ in factors], 1).double() @ torch.cat([down for _, down in factors])[:, :width].double()


def _ratio(top: float, bottom: float) -> float:
    """Of two squared norms; rounding can leave the first below zero."""
    return math.sqrt(max(top, 0.0) / bottom) if bottom > 0 else 0.0


@contextmanager
def _timed(clock: dict, phase: str):
    begin = time.perf_counter()
    yield
    clock[phase] = clock.get(phase, 0.0) + time.perf_counter() - begin


def collect(streams: Sequence[Stream], encoder: TextEncoder, adapters: Sequence[Adapter], keep: Sequence[str], config: FusionConfig,
            progress: Progress, clock: dict) -> None:  # fmt: skip
    """Encode every adapter's prompts, one adapter at a time, and the keep set's, and fold their rows into the streams' sums.

    A concept's weights sum to its own weight, and every entry of the keep set has weight 1, as in the closed form.

    Raises:
        ConceptError: if the rows do not fit the model.
    """
    for stream in streams:
        if stream.name == CONTEXT and config.start == "held":
            empty = encoder.encode("")
            stream.fixed = next(iter(empty.embeddings[empty.rows(BOS)].double()), None)
    total, done = sum(len(a.concepts) for a in adapters), 0
    for adapter in adapters:
        own, starts, weight = {s.name: Gram(s.width) for s in streams}, dict.fromkeys((CONTEXT, POOLED), 0.0), 0.0
        for concept, kind in adapter.concepts:
            progress("encode concepts", done, total)
            pairs = prompt_pairs(settled(concept, keep), _templates(concept, kind, config))
            with _timed(clock, "rows"):
                prompts = [encoder.encode(prompt, subject) for prompt, subject, *_ in pairs]
            with _timed(clock, "sums"):
                for stream in streams:
                    found = [_read(rows, stream, config, concept.weight / len(prompts)) for rows in prompts]
                    own[stream.name].add(torch.cat([rows for rows, *_ in found]), torch.cat([w for _, w, _ in found]))
                    starts[stream.name] += sum(start for *_, start in found)
            done, weight = done + 1, weight + concept.weight
        with _timed(clock, "sums"):
            for stream in streams:
                stream.add_adapter(adapter, own[stream.name].value(), weight, starts[stream.name])
    prompts = _keep_prompts(keep, config, [c for a in adapters for c, _ in a.concepts])
    for number, (prompt, entry) in enumerate(prompts):
        if number % 16 == 0:
            progress("encode keep set", number, len(prompts))
        with _timed(clock, "rows"):
            rows = encoder.encode(prompt, entry)
        share = len(keep) / len(prompts)
        with _timed(clock, "sums"):
            for stream in streams:
                stream.add_keep(*_read(rows, stream, config, share), share)


def _templates(concept: Concept, kind: str, config: FusionConfig) -> list[str]:
    kind = concept.kind if kind == "auto" else kind
    return [*TEMPLATES[kind], *config.contexts.get(kind, ())]


def _keep_prompts(keep: Sequence[str], config: FusionConfig, concepts: Sequence[Concept]) -> list[tuple[str, str]]:
    """Some templates for every entry, others for the next, and the parts of combinations apart, as the closed form does."""
    if not keep:
        return []
    return keep_prompts(POLICIES["trace"], keep, [guess_kind(k) for k in keep], config.contexts, concepts)


def _read(rows: TextRows, stream: Stream, config: FusionConfig, share: float) -> tuple[Tensor, Tensor, float]:
    """What a stream reads of a prompt: rows ``[n, d]``, weights ``[n]`` that sum to ``share``, the start rows' part of the trace."""
    if stream.name == POOLED:
        if rows.pooled is None:
            raise ConceptError("this CLIP returns no pooled vector, which the model needs; connect the CLIP of the same model")
        return rows.pooled[None, : stream.width], torch.tensor([share], dtype=torch.float64), 0.0
    if rows.embeddings.shape[1] != stream.width:
        raise ConceptError(
            f"the text encoder gives rows of {rows.embeddings.shape[1]} numbers, the model reads {stream.width}; connect the CLIP "
            "that belongs to this model"
        )
    groups = tuple(g for g in range(len(GROUPS)) if g != BOS or stream.fixed is None)
    weights = share * row_weights(rows.groups, groups, config.weighting)
    at = rows.rows(BOS)
    return rows.embeddings, weights, (weights[at] * rows.embeddings[at].double().square().sum(1)).sum().item()


# ------------------------------------------------------------------------------------------- what comes out


def assemble(adapters: Sequence[Adapter], streams: Sequence[Stream], config: FusionConfig, clock: dict) -> tuple[ErasureLora, dict | None]:
    """The fused factors, part by part along the rank; layers that do not read the text's rows have theirs side by side.

    Returns:
        the erasure without metadata, and what :func:`_cut` lost, where a largest rank is asked for.
    """
    with _timed(clock, "export"):
        places = [(stream, [stream.slices(a) for a in adapters]) for stream in streams if stream.solved]
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        for module in dict.fromkeys(m for a in adapters for m in a.lora.modules):
            found = []
            for number, adapter in enumerate(adapters):
                if module not in adapter.lora.modules:
                    continue
                up, down = (f.cpu() for f in adapter.lora.modules[module])
                for stream, slices in places:
                    if module in slices[number]:
                        text = stream.solved[number][slices[number][module]]
                        up, down = balance(up.double(), torch.cat([text, down[:, stream.width :].double()], 1))
                found.append((up, down))
            factors[module] = torch.cat([up for up, _ in found], 1), torch.cat([down for _, down in found])
        if config.max_rank is None:
            return ErasureLora.from_factors(factors), None
        return _cut(factors, config.max_rank)


def _cut(factors: Mapping[str, tuple[Tensor, Tensor]], rank: int) -> tuple[ErasureLora, dict]:
    """Every layer's nearest edit of a rank, and the relative Frobenius errors of it."""
    small = {m: truncate(*pair, rank) for m, pair in factors.items()}
    losses = [loss for *_, loss in small.values()]
    lora = ErasureLora.from_factors({m: (up, down) for m, (up, down, _) in small.items()})
    return lora, {"max_rank": rank, "mean": sum(losses) / len(losses), "worst": max(losses)}


def compress(lora: ErasureLora, rank: int) -> tuple[ErasureLora, dict]:
    """A file of lower rank, strengths baked in; its concepts become one part. With what was lost, as in the report."""
    concepts = list({c.target: c for part in lora.parts() for c in part.concepts}.values())
    out, lost = _cut(lora.modules, rank)
    out.metadata |= lora.metadata
    out._set_parts([_one_part(concepts, out)])
    return out, lost


def balance(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, both factors of every rank of about the same norm; by powers of two, so that ``up`` keeps its digits."""
    ratio = down.norm(dim=1) / up.norm(dim=0)
    power = torch.where((ratio > 0) & torch.isfinite(ratio), ratio, torch.ones_like(ratio)).log2().div(2).round()
    return up * torch.exp2(power), down * torch.exp2(-power)[:, None]


def truncate(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The nearest product of rank ``rank``, without the dense one: QR of both factors, SVD of what stands between.

    Returns:
        up ``[out, k]``, down ``[k, in]``, and the relative Frobenius error.
    """
    if down.shape[0] <= rank:
        return up, down, 0.0
    (left, first), (right, second) = torch.linalg.qr(up.double()), torch.linalg.qr(down.double().T)
    U, values, Vh = torch.linalg.svd(first @ second.T)
    roots = values[:rank].sqrt()
    lost = values[rank:].square().sum() / values.square().sum().clamp_min(1e-300)
    return left @ U[:, :rank] * roots, roots[:, None] * Vh[:rank] @ right.T, lost.sqrt().item()


def _parts_of(adapters: Sequence[Adapter], lora: ErasureLora) -> list[Part]:
    """Every adapter's parts, where they now stand."""
    out, at = [], dict.fromkeys(lora.modules, 0)
    for adapter in adapters:
        for part in adapter.parts:
            out.append(replace(part, slices={m: slice(at[m] + s.start, at[m] + s.stop) for m, s in part.slices.items()}))
        for module, (_, down) in adapter.lora.modules.items():
            at[module] += down.shape[0]
    return out


def _one_part(concepts: Sequence[Concept], lora: ErasureLora) -> Part:
    return Part(tuple(concepts), {m: slice(0, down.shape[0]) for m, (_, down) in lora.modules.items()})


def _metadata(backbone: Backbone, adapters: Sequence[Adapter], concepts, keep, config: FusionConfig) -> dict[str, str]:
    """As of any fresh erasure; base and window are those of what was fused."""
    options = {k: v for k, v in asdict(config).items() if k != "contexts"}
    options["methods"] = sorted({str(a.lora.info().get("trace.method", "")) for a in adapters})
    out = base_metadata(backbone, concepts, keep, config.mode, options, 0)
    for key in ("trace.base", "trace.window"):
        out |= next(({key: a.lora.metadata[key]} for a in adapters if key in a.lora.metadata), {})
    return out


def _figures(adapters: Sequence[Adapter], streams: Sequence[Stream], lora: ErasureLora) -> dict:
    """Layers by kind, ranks, and of every stream the residual and the change of the keep rows, fused and summed."""
    fused = {layer.module: stream.name for stream in streams for layer in stream.layers}
    kinds: dict[str, dict] = {}
    for module, (up, down) in lora.modules.items():
        kind = re.sub(r"\d+", "N", module.removeprefix("diffusion_model."))
        entry = kinds.setdefault(kind, {"layers": 0, "rank": 0, "how": fused.get(module, "side by side")})
        entry["layers"] += 1
        entry["rank"] = max(entry["rank"], down.shape[0])
    out: dict = {"layers": kinds, "rank": lora.rank, "parts": len(lora.parts()), "streams": {}}
    for stream in streams:
        out["streams"][stream.name] = {
            how: {"residual_mean": sum(f["residual"]) / len(f["residual"]), "residual_worst": max(f["residual"]),
                  "keep_change": f["keep_change"]} for how, f in stream.figures.items()}  # fmt: skip
    out["adapters"] = [
        {"name": adapter.name, "concepts": [c.target for c, _ in adapter.concepts],
         "residual": {s.name: {how: f["residual"][i] for how, f in s.figures.items()} for s in streams}}
        for i, adapter in enumerate(adapters)]  # fmt: skip
    return out


def _warnings(model, adapters: Sequence[Adapter], report: dict, streams: Sequence[Stream]) -> list[str]:
    """What a user should hear before sharing the result."""
    out = list(dict.fromkeys(filter(None, (base_mismatch(model, a.lora) for a in adapters))))
    named: dict[str, str] = {}
    for adapter in adapters:
        for concept, _ in adapter.concepts:
            twice = next((name for target, name in named.items() if same(target, concept.target)), None)
            if twice:
                out.append(f"'{concept.target}' is erased by {twice} and by {adapter.name}; on its prompts the result is their mean")
            named.setdefault(concept.target, adapter.name)
    beside = {kind: v for kind, v in report["layers"].items() if v["how"] == "side by side"}
    if beside and report["method"] == "fuse" and len(adapters) > 1:
        out.append(f"{sum(v['layers'] for v in beside.values())} layers do not read the text's rows and cannot be fused by them "
                   f"({', '.join(list(beside)[:4])}): there the erasures are added up")  # fmt: skip
    for stream in streams:
        if report["parameters"]["max_rank"] is None and report["rank"] > stream.width:
            out.append(f"rank {report['rank']} is more than the {stream.width} numbers of the {stream.name}: max_rank makes it smaller, "
                       "but its concepts can no longer be taken out one by one")  # fmt: skip
    return out
