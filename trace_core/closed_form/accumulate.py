"""Encode every prompt once, and add its rows to the sums of each text stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.base import CONTEXT, POOLED
from ..backbones.clips import check_width
from ..errors import ConceptError
from ..text.concepts import Concept
from ..text.encoding import BOS, GROUPS, TextEncoder, TextRows
from ..text.kinds import kinds_of_kept
from .config import ClosedFormConfig
from .contrast import contrast_words
from .policies import (
    KEEP_PEOPLE,
    Policy,
    erased_pairs,
    keep_prompts,
    keep_shares,
    keep_weights,
    neighbour_prompts,
    row_weights,
)
from .sums import RowSums

ALL_GROUPS = tuple(range(len(GROUPS)))

#: ``progress(phase, done, total)``; an exception raised in it cancels
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Accumulator:
    """Adds the prompts of one policy to sums.

    Attributes:
        substitutes: substitutes by target; other concepts move to their counterpart.
    """

    backbone: Backbone
    encoder: TextEncoder
    policy: Policy
    config: ClosedFormConfig
    substitutes: Mapping[str, str]

    def start(self, concepts: Sequence[Concept]) -> dict[str, RowSums]:
        """Empty sums for concepts with these strengths, by text stream."""
        strengths = {c.strength for c in concepts}
        sums = {
            stream: RowSums(width, self.policy.solver, strengths, bool(self.substitutes))
            for stream in (CONTEXT, POOLED)
            if (width := self.backbone.width(stream))
        }
        empty = self.encoder.encode("")
        # every prompt has the start token, which never carries a concept
        sums[CONTEXT].constrained = empty.embeddings[empty.rows(BOS)]
        sums[CONTEXT].empty = empty.embeddings[[i for i, g in enumerate(empty.groups) if g != BOS]]
        return sums

    def add_concept(self, sums: dict[str, RowSums], concept: Concept, words: Sequence[str] = ()) -> None:
        """Add the pairs of a concept's prompts and their counterparts.

        ``words``: words inside the concept's name that are kept separately.

        Raises:
            ConceptError: if the prompts and their counterparts have the same rows.
        """
        context, policy = sums[CONTEXT], self.policy
        before = context.count
        for (pairs, weights, erased, wanted), substitute in self._prompts(concept, words):
            check_width(pairs.erase, self.backbone.width(CONTEXT))
            rows, prompt = substitute or (None, None)
            if policy.solver == "rece":  # which erases all rows in the same place
                both = min(len(erased.embeddings), len(wanted.embeddings))
                context.whole.append((erased.embeddings[:both], wanted.embeddings[:both]))
            context.add_pairs(
                pairs.erase, pairs.want, weights, wanted.embeddings, pairs.partners, concept.strength, rows
            )
            if POOLED in sums:
                self._add_pooled(sums[POOLED], weights, erased, wanted, prompt, concept.strength)
            if policy.solver == "projection":
                # the counterpart stays; the papers' ridge regressions have no such term
                share = row_weights(wanted.groups, ALL_GROUPS, "group") * weights.sum()
                context.add_keep(wanted.embeddings, share, wanted.groups, repeated=True)
        if context.count == before:
            raise ConceptError(
                f"the text encoder gives the same rows for '{concept}' and its anchor; name another anchor"
            )

    def _add_pooled(
        self,
        sums: RowSums,
        weights: Tensor,
        erased: TextRows,
        wanted: TextRows,
        substitute: TextRows | None,
        strength: float,
    ) -> None:
        share = torch.tensor([weights.sum()], dtype=torch.float64)
        other = None if substitute is None else pooled_row(substitute, self.backbone)
        own, target = pooled_row(erased, self.backbone), pooled_row(wanted, self.backbone)
        sums.add_pairs(own, target, share, strength=strength, instead=other)
        if self.policy.solver == "projection":
            sums.add_keep(target, share)

    def _prompts(
        self, concept: Concept, words: Sequence[str]
    ) -> Iterator[tuple[tuple, tuple[Tensor, TextRows] | None]]:
        """:func:`erased_pairs`, each with the rows ``[n, d]`` and the prompt of the substitute, or None."""
        kind, contexts = self.config.kind_of(concept), self.config.contexts
        own_pairs = erased_pairs(self.policy, concept, kind, self.encoder, contexts, words)
        substitute = self.substitutes.get(concept.target)
        if not substitute:
            yield from ((pair, None) for pair in own_pairs)
            return
        substitute_pairs = erased_pairs(
            self.policy, replace(concept, anchor=substitute), kind, self.encoder, contexts
        )
        yield from (
            (pair, (rows.want, prompt)) for pair, (rows, _, _, prompt) in zip(own_pairs, substitute_pairs)
        )

    def add_keep_set(
        self,
        sums: dict[str, RowSums],
        concepts: Sequence[Concept],
        keep: Sequence[str],
        progress: Progress,
        near: Mapping[str, str] | None = None,
    ) -> None:
        """Add the keep rows: the keep list, words inside the concepts' names, and neighbours.

        ``near``: kept neighbours with their kinds. Each weighs as much as an entry of the keep list.
        """
        config = self.config
        words = contrast_words(concepts) if config.contrasts else {}
        kinds = kinds_of_kept(keep, map(config.kind_of, concepts))
        prompts = keep_prompts(
            self.policy, keep, kinds, config.contexts, concepts, config.contrasts, KEEP_PEOPLE
        )
        shares = keep_shares(self.policy, prompts, keep, kinds, words)
        added = neighbour_prompts(near or {}, config.contexts, self.encoder)
        shares += [self.policy.keep * len(near) / len(added) for _ in added]
        prompts += added
        for number, (rows, share) in enumerate(zip(self.encoder.encode_all(prompts), shares)):
            if number % 16 == 0:
                progress("encode keep set", number, len(prompts))
            share *= config.keep_weight
            sums[CONTEXT].add_keep(rows.embeddings, keep_weights(self.policy, rows) * share, rows.groups)
            if POOLED in sums:
                weight = torch.tensor([share], dtype=torch.float64)
                sums[POOLED].add_keep(pooled_row(rows, self.backbone), weight)

    def of_stream(self, sums: dict[str, RowSums]) -> dict[str, RowSums]:
        """The sums of the edited streams."""
        return sums if self.config.stream == "all" else {self.config.stream: sums[self.config.stream]}


def accumulate(
    backbone: Backbone,
    encoder: TextEncoder,
    policy: Policy,
    concepts: Sequence[Concept],
    keep: Sequence[str],
    config: ClosedFormConfig,
    progress: Progress,
    substitutes: Mapping[str, str] | None = None,
) -> dict[str, RowSums]:
    """The sums over all concepts and the keep set, by text stream.

    Raises:
        ConceptError: if a concept's prompts and counterparts have the same rows.
    """
    accumulator = Accumulator(backbone, encoder, policy, config, substitutes or {})
    sums = accumulator.start(concepts)
    words = contrast_words(concepts) if config.contrasts else {}
    for number, concept in enumerate(concepts):
        progress("encode concepts", number, len(concepts))
        accumulator.add_concept(sums, concept, words.get(concept.target, ()))
    accumulator.add_keep_set(sums, concepts, keep, progress)
    return accumulator.of_stream(sums)


def pooled_row(rows: TextRows, backbone: Backbone) -> Tensor:
    """The pooled vector as one row, cut to the width that the model reads.

    Raises:
        ConceptError: if the CLIP returns no pooled vector.
    """
    if rows.pooled is None:
        raise ConceptError(
            "this CLIP returns no pooled vector, which the model needs; connect the CLIP of the same model"
        )
    return rows.pooled[None, : backbone.width(POOLED)]
