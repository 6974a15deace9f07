"""The text rows of every adapter and of the keep set as sums, and eq. 7 solved with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...backbones import Backbone
from ...backbones.base import CONTEXT, POOLED
from ...closed_form import solvers
from ...closed_form.gram import Gram, add_symmetric, mirror
from ...closed_form.policies import POLICIES, keep_prompts, row_weights
from ...errors import ConceptError
from ...text.concepts import Concept, with_default_anchor
from ...text.encoding import BOS, GROUPS, TextEncoder, TextRows
from ...text.kinds import guess_kind
from ...text.prompts import prompt_pairs
from ...text.templates import TEMPLATES
from ..erasure import ErasureLora
from .config import Adapter, FusionConfig, Progress, timed


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
    """All layers that read the same text (rows of tokens, or the pooled vector), and what eq. 7 needs to know
    of it.

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
        self.layers = [
            layer for layer in backbone.layers(name) if any(layer.module in a.lora.modules for a in adapters)
        ]
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
        """Take in ``S_i`` ``[d, d]`` of all the adapter's concepts, whose weights sum to ``weight``;
        ``starts``: trace of start rows.
        """
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
        with timed(clock, "solve"):
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

    def measure(
        self,
        backbone: Backbone,
        adapters: Sequence[Adapter],
        lora: ErasureLora,
        progress: Progress,
        clock: dict,
    ) -> None:
        """What the fused erasure, and the plain sum beside it, do on every adapter's rows and on the keep
        rows.

        ``||(dW* - dW_i) C_i||^2 = <dW*^T dW*, S_i> - 2 <up_i^T dW*, down_i S_i> + <up_i^T up_i, down_i S_i
        down_i^T>``, summed over the
        layers: the first matrix is the same for all adapters.
        """
        with timed(clock, "measure"):
            places = [self.slices(a) for a in adapters]
            cross, size = (
                torch.zeros(2, len(adapters), dtype=torch.float64),
                torch.zeros(len(adapters), dtype=torch.float64),
            )
            squares = torch.zeros(2, self.width, self.width, dtype=torch.float64)
            weights = torch.zeros(self.width, self.width)
            for number, (layer, weight) in enumerate(backbone.weights(self.layers)):
                progress("measure", number, len(self.layers))
                module, mine = (
                    layer.module,
                    [i for i, a in enumerate(adapters) if layer.module in a.lora.modules],
                )
                factors = [adapters[i].lora.modules[module] for i in mine]
                products = [self.products[i][places[i][module]] for i in mine]
                owners = torch.tensor([i for i, p in zip(mine, products) for _ in range(len(p))])
                ups, stacked = torch.cat([up for up, _ in factors], 1).double(), torch.cat(products)
                for kind, change in enumerate(
                    (_dense([lora.modules[module]], self.width), _dense(factors, self.width))
                ):
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
                self.figures[name] = {
                    "residual": left,
                    "keep_change": _ratio((squares[kind] * kept).sum().item(), whole),
                }


def hold(rows: Tensor, fixed: Tensor, response: Tensor, factor: Tensor) -> Tensor:
    """The rows ``[n, d]`` of least cost under G with ``rows fixed = response``: ``+ (response - rows f) (f^T
    G^-1 f)^-1 f^T G^-1``.

    Args:
        fixed: f ``[d]``.
        response: ``[n, 1]``.
        factor: Cholesky factor of G.
    """
    whitened = torch.cholesky_solve(fixed[:, None], factor)
    return rows + (response - rows @ fixed[:, None]) @ whitened.T / (fixed @ whitened)


def _dense(factors: Sequence[tuple[Tensor, Tensor]], width: int) -> Tensor:
    """``sum up down`` ``[out, width]`` float64."""
    return (
        torch.cat([up for up, _ in factors], 1).double()
        @ torch.cat([down for _, down in factors])[:, :width].double()
    )


def _ratio(top: float, bottom: float) -> float:
    """Of two squared norms; rounding can leave the first below zero."""
    return math.sqrt(max(top, 0.0) / bottom) if bottom > 0 else 0.0


def collect(
    streams: Sequence[Stream],
    encoder: TextEncoder,
    adapters: Sequence[Adapter],
    keep: Sequence[str],
    config: FusionConfig,
    progress: Progress,
    clock: dict,
) -> None:
    """Encode every adapter's prompts, one adapter at a time, and the keep set's, and fold their rows into the
    streams' sums.

    A concept's weights sum to its own weight, and every entry of the keep set has weight 1, as in the closed
    form.

    Raises:
        ConceptError: if the rows do not fit the model.
    """
    for stream in streams:
        if stream.name == CONTEXT and config.start == "held":
            empty = encoder.encode("")
            stream.fixed = next(iter(empty.embeddings[empty.rows(BOS)].double()), None)
    total, done = sum(len(a.concepts) for a in adapters), 0
    for adapter in adapters:
        own, starts, weight = (
            {s.name: Gram(s.width) for s in streams},
            dict.fromkeys((CONTEXT, POOLED), 0.0),
            0.0,
        )
        for concept, kind in adapter.concepts:
            progress("encode concepts", done, total)
            pairs = prompt_pairs(with_default_anchor(concept, keep), _templates(concept, kind, config))
            with timed(clock, "rows"):
                prompts = list(encoder.encode_all((prompt, subject) for prompt, subject, *_ in pairs))
            with timed(clock, "sums"):
                for stream in streams:
                    found = [_read(rows, stream, config, concept.weight / len(prompts)) for rows in prompts]
                    own[stream.name].add(
                        torch.cat([rows for rows, *_ in found]), torch.cat([w for _, w, _ in found])
                    )
                    starts[stream.name] += sum(start for *_, start in found)
            done, weight = done + 1, weight + concept.weight
        with timed(clock, "sums"):
            for stream in streams:
                stream.add_adapter(adapter, own[stream.name].value(), weight, starts[stream.name])
    prompts = _keep_prompts(keep, config, [c for a in adapters for c, _ in a.concepts])
    kept = encoder.encode_all(prompts)
    for number in range(len(prompts)):
        if number % 16 == 0:
            progress("encode keep set", number, len(prompts))
        with timed(clock, "rows"):
            rows = next(kept)
        share = len(keep) / len(prompts)
        with timed(clock, "sums"):
            for stream in streams:
                stream.add_keep(*_read(rows, stream, config, share), share)


def _templates(concept: Concept, kind: str, config: FusionConfig) -> list[str]:
    kind, _ = concept.kind_and_why(kind)
    return [*TEMPLATES[kind], *config.contexts.get(kind, ())]


def _keep_prompts(
    keep: Sequence[str], config: FusionConfig, concepts: Sequence[Concept]
) -> list[tuple[str, str]]:
    """Some templates for every entry, others for the next, and the parts of combinations apart, as the
    closed form does.
    """
    if not keep:
        return []
    return keep_prompts(
        POLICIES["projection"], keep, [guess_kind(k) for k in keep], config.contexts, concepts, contrast=False
    )


def _read(rows: TextRows, stream: Stream, config: FusionConfig, share: float) -> tuple[Tensor, Tensor, float]:
    """What a stream reads of a prompt: rows ``[n, d]``, weights ``[n]`` that sum to ``share``, the start
    rows' part of the trace.
    """
    if stream.name == POOLED:
        if rows.pooled is None:
            raise ConceptError(
                "this CLIP returns no pooled vector, which the model needs; connect the CLIP of the same "
                "model"
            )
        return rows.pooled[None, : stream.width], torch.tensor([share], dtype=torch.float64), 0.0
    if rows.embeddings.shape[1] != stream.width:
        raise ConceptError(
            f"the text encoder gives rows of {rows.embeddings.shape[1]} numbers, the model reads "
            f"{stream.width}; connect the CLIP that belongs to this model"
        )
    groups = tuple(g for g in range(len(GROUPS)) if g != BOS or stream.fixed is None)
    weights = share * row_weights(rows.groups, groups, config.weighting)
    at = rows.rows(BOS)
    return rows.embeddings, weights, (weights[at] * rows.embeddings[at].double().square().sum(1)).sum().item()
