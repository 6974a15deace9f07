"""Sums over the text rows of every adapter and of the keep set, and the solution of eq. 7."""

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
from ...text.kinds import kinds_of_kept
from ...text.prompts import prompt_pairs
from ...text.templates import TEMPLATES
from ..erasure import ErasureLora
from .config import Adapter, FusionConfig, Progress, timed


class Packed:
    """Symmetric matrices by number, stored as upper triangles: half the memory."""

    LIMIT = 1 << 30  #: total bytes beyond which matrices are rounded to float32

    def __init__(self, width: int, count: int):
        """``width``: d; ``count``: expected number of matrices."""
        first, second = torch.triu_indices(width, width)
        self.width, self._flat, self._diagonal = width, first * width + second, first == second
        self._dtype = torch.float64 if 8 * count * len(first) <= self.LIMIT else torch.float32
        self._triangles: list[Tensor] = []

    def add(self, matrix: Tensor) -> None:
        self._triangles.append(matrix.flatten()[self._flat].to(self._dtype))

    def __getitem__(self, number: int) -> Tensor:
        """``[d, d]`` float64."""
        full = torch.zeros(self.width, self.width, dtype=torch.float64)
        full.view(-1)[self._flat] = self._triangles[number].double()
        return full + full.triu(1).T

    def weigh(self, matrix: Tensor) -> list[float]:
        """``<matrix, S>`` for every stored S and a symmetric ``[d, d]`` float64 matrix."""
        doubled = matrix.flatten()[self._flat] * 2
        doubled[self._diagonal] /= 2
        return [torch.dot(doubled, kept.double()).item() for kept in self._triangles]


class Stream:
    """All layers that read the same text (token rows, or the pooled vector), with the sums of eq. 7.

    Attributes:
        layers: the model's layers that at least one adapter changes.
        products: ``down_i S_i`` of each adapter, stacked over the layers, ``[n, d]`` float64.
        solved: the same for ``down_i S_i G_i^-1``, after solving; of an erasure that is added to, nothing.
        gram: ``sum_i S_i`` ``[d, d]``, without start rows if they are held.
        keep: ``P P^T``.
        fixed: the start token's row ``[d]``, if it is held.
        figures: results of :meth:`measure`.
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
        self._weights: list[float] = []  # weight per adapter; below, of the keep set; a concept has 1
        self._keep_weight = 0.0
        self._held_responses: list[Tensor] = []  # down_i f, [n, 1]
        self._starts = 0.0  # trace of the start rows in the sums

    def slices(self, adapter: Adapter) -> dict[str, slice]:
        """Positions of an adapter's layers in :attr:`products` and :attr:`solved`."""
        out, at = {}, 0
        for layer in self.layers:
            if layer.module in adapter.lora.modules:
                rank = adapter.lora.modules[layer.module][1].shape[0]
                out[layer.module] = slice(at, at + rank)
                at += rank
        return out

    def stacked(self, adapter: Adapter) -> Tensor:
        """``down_i`` stacked over the layers, text columns only, ``[n, d]`` float64."""
        found = [adapter.lora.modules[m][1][:, : self.width] for m in self.slices(adapter)]
        return torch.cat(found).double() if found else torch.zeros(0, self.width, dtype=torch.float64)

    def add_adapter(self, adapter: Adapter, own: Tensor, weight: float, starts: float) -> None:
        """Add an adapter's ``S_i`` ``[d, d]`` over all its concepts.

        ``weight``: sum of the concepts' weights; ``starts``: trace of the start rows.
        """
        stacked = self.stacked(adapter)
        self.gram += own
        self.own.add(own)
        self.products.append(stacked @ own)
        if self.fixed is not None:
            self._held_responses.append(stacked @ self.fixed[:, None])
        self._weights.append(weight)
        self._starts += starts

    def add_keep(self, rows: Tensor, weights: Tensor, starts: float, share: float) -> None:
        """Add a keep prompt's rows ``[n, d]``."""
        self.keep.add(rows, weights)
        self._starts += self.config.keep_weight * starts
        self._keep_weight += share

    def solve(self, progress: Progress, clock: dict) -> None:
        """Compute ``down_i S_i G_i^-1`` of every adapter, with the start token's response held."""
        with timed(clock, "solve"):
            mu, beta = self.config.integration, self.config.keep_weight
            gram = self.gram + beta * self.keep.value()
            G = solvers.regularise(gram, self.config.alpha, None, gram.diagonal().sum().item() - self._starts)
            factor = solvers.cholesky(G)
            everyone = sum(self._weights)
            for number, (product, weight) in enumerate(zip(self.products, self._weights)):
                progress("fuse", number, len(self.products))
                if number == 0 and self.config.mode == "add":
                    self.solved.append(product[:0])
                    continue
                if mu != 1 and len(self.products) > 1:
                    factor = solvers.cholesky(G + (mu - 1) * (self.gram - self.own[number]))
                solved = torch.cholesky_solve(product.T, factor).T
                if self.fixed is not None:
                    share = weight / (weight + mu * (everyone - weight) + beta * self._keep_weight)
                    solved = hold(solved, self.fixed, share * self._held_responses[number], factor)
                self.solved.append(solved)

    def measure(
        self,
        backbone: Backbone,
        adapters: Sequence[Adapter],
        lora: ErasureLora,
        progress: Progress,
        clock: dict,
    ) -> None:
        """Measure the fused erasure and the plain sum on every adapter's rows and on the keep rows.

        ``||(dW* - dW_i) C_i||^2 = <dW*^T dW*, S_i> - 2 <up_i^T dW*, down_i S_i> + <up_i^T up_i, down_i S_i
        down_i^T>``, summed over the layers. The first matrix is the same for all adapters.
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
            keep_gram, size = self.keep.value(), size.tolist()
            total = (weights * keep_gram).sum().item()
            for kind, name in enumerate(("fused", "sum")):
                response = self.own.weigh(squares[kind])
                residuals = [
                    _ratio(r - 2 * c + s, s) for r, c, s in zip(response, cross[kind].tolist(), size)
                ]
                self.figures[name] = {
                    "residual": residuals,
                    "keep_change": _ratio((squares[kind] * keep_gram).sum().item(), total),
                }


def hold(rows: Tensor, fixed: Tensor, response: Tensor, factor: Tensor) -> Tensor:
    """The rows ``[n, d]`` of least cost under G with ``rows fixed = response``.

    ``rows + (response - rows f) (f^T G^-1 f)^-1 f^T G^-1``.

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
    """Square root of the ratio of two squared norms. Rounding can make the first negative."""
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
    """Encode the prompts of each adapter and of the keep set, and add their rows to the streams' sums.

    Adapters are encoded one at a time. A concept's weights sum to its own weight, and every entry of the keep
    set has weight 1, as in the closed form.

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
    prompts = _keep_prompts(keep, config, [pair for a in adapters for pair in a.concepts])
    keep_rows = encoder.encode_all(prompts)
    for number in range(len(prompts)):
        if number % 16 == 0:
            progress("encode keep set", number, len(prompts))
        with timed(clock, "rows"):
            rows = next(keep_rows)
        share = len(keep) / len(prompts)
        with timed(clock, "sums"):
            for stream in streams:
                stream.add_keep(*_read(rows, stream, config, share), share)


def _templates(concept: Concept, kind: str, config: FusionConfig) -> list[str]:
    kind, _ = concept.kind_and_why(kind)
    return [*TEMPLATES[kind], *config.contexts.get(kind, ())]


def _keep_prompts(
    keep: Sequence[str], config: FusionConfig, concepts: Sequence[tuple[Concept, str]]
) -> list[tuple[str, str]]:
    """Prompts of the keep set, including the separate parts of combinations, as in the closed form.

    ``concepts``: with the kinds that were chosen for them.
    """
    if not keep:
        return []
    kinds = kinds_of_kept(keep, (c.kind_and_why(kind)[0] for c, kind in concepts))
    erased = [c for c, _ in concepts]
    return keep_prompts(POLICIES["projection"], keep, kinds, config.contexts, erased, contrast=False)


def _read(rows: TextRows, stream: Stream, config: FusionConfig, share: float) -> tuple[Tensor, Tensor, float]:
    """A stream's rows ``[n, d]``, their weights ``[n]`` with sum ``share``, and the start rows' trace."""
    if stream.name == POOLED:
        if rows.pooled is None:
            raise ConceptError(
                "this CLIP returns no pooled vector, which the model needs; connect the CLIP of the same "
                "model"
            )
        return rows.pooled[None, : stream.width], torch.tensor([share], dtype=torch.float64), 0.0
    if rows.embeddings.shape[1] != stream.width:
        raise ConceptError(
            f"the text encoder gives rows of {rows.embeddings.shape[1]} numbers, but the model reads "
            f"{stream.width}; connect the CLIP that belongs to this model"
        )
    groups = tuple(g for g in range(len(GROUPS)) if g != BOS or stream.fixed is None)
    weights = share * row_weights(rows.groups, groups, config.weighting)
    at = rows.rows(BOS)
    return rows.embeddings, weights, (weights[at] * rows.embeddings[at].double().square().sum(1)).sum().item()
