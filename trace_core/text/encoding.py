"""Prompts to the rows that the model reads, with token ids, row groups and alignment.

Rows come from ``clip.encode_from_tokens``, in batches where a batch gives the same rows. They are the rows
that ComfyUI feeds the model (clip skip, layer norm, padding), at weight 1.0. Alignment compares token ids,
never words.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

import torch
from torch import Tensor

from ..errors import ConceptError
from .batching import BATCH_ROWS, BatchEncoder, Encoded, rows_of
from .towers import Tower, input_embeddings, row_ids, spellings, token_ids, towers_of

BOS, BEFORE, SUBJECT, AFTER, FIRST_EOT, PAD = range(6)
REMEMBERED = 256 << 20  #: bytes of cached rows per encoder: 1,100 prompts of SD1.5, 60 of FLUX
GROUPS = ("bos", "before", "subject", "after", "first_eot", "pad")


@dataclass(frozen=True)
class TextRows:
    """One encoded prompt.

    Attributes:
        embeddings: ``[n, d]`` float32 on the CPU, the rows of the conditioning.
        ids: ``[n]`` token ids of the towers that made the rows.
        groups: ``[n]`` group of each row, an index into :data:`GROUPS`.
        pooled: ``[p]`` pooled vector, or None if the model has none.
        lengths: rows of each tower; empty if there is one.
    """

    embeddings: Tensor
    ids: tuple[int, ...]
    groups: tuple[int, ...]
    pooled: Tensor | None
    lengths: tuple[int, ...] = ()

    def by_tower(self) -> list[TextRows]:
        """The rows of each tower."""
        if len(self.lengths) < 2:
            return [self]
        ends = list(accumulate(self.lengths))
        parts = [slice(end - length, end) for end, length in zip(ends, self.lengths)]
        return [TextRows(self.embeddings[p], self.ids[p], self.groups[p], self.pooled) for p in parts]

    @property
    def bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(t.numel() * t.element_size() for t in (self.embeddings, self.pooled) if t is not None)

    def rows(self, group: int) -> list[int]:
        """Row numbers of a group, ascending."""
        return [i for i, g in enumerate(self.groups) if g == group]


def escape(prompt: str) -> str:
    """Escape parentheses so that ComfyUI does not read them as weights. Escaped ones stay as they are."""
    return re.sub(r"\\?([()])", r"\\\1", prompt)


class TextEncoder:
    """Encode prompts with a ComfyUI CLIP object and cache their rows.

    Args:
        read: what the model's layers read of the rows, ``[n, d]`` -> ``[n, width]``
            (:meth:`~trace_core.backbones.Backbone.read_rows`); None: the rows.

    Attributes:
        limit: bytes of cached rows, :data:`REMEMBERED` by default. The least recently used prompt with a
            subject is dropped first. Neutral prompts recur with every concept and are dropped only when no
            other is left.
        unaligned: subjects that were not found in a prompt's tokens. All words of such a prompt count as the
            subject.
    """

    def __init__(self, clip, limit: int | None = None, read: Callable[[Tensor], Tensor] | None = None):
        self.clip = clip
        self.limit = REMEMBERED if limit is None else limit
        self.unaligned: dict[str, None] = {}
        self.towers = towers_of(clip)
        self._read = read or (lambda rows: rows)
        self._cache: OrderedDict[tuple[str, str], TextRows] = OrderedDict()  # least recently used first
        self._bytes = 0
        self._batch = BatchEncoder(clip)

    @property
    def bidirectional(self) -> bool:
        """Whether rows depend on later words too, so that rows before the concept change with it."""
        return not all(tower.causal for tower in self.towers)

    def content_ids(self, text: str) -> list[int]:
        """Ids of a text without start, end and padding, of the tower that reads most.

        Raises:
            ConceptError: if no token is left, or the text does not fit into one prompt.
        """
        tower = self.towers[-1]
        ids = token_ids(self.clip, escape(text), tower.name)
        first, stop = tower.content(ids)
        return ids[first:stop]

    def input_means(self, texts: Sequence[str]) -> Tensor | None:
        """Mean input embedding of each text's tokens, ``[n, d]``; zero for a text without tokens.

        No layer runs. None if the tower that reads most shows no input embeddings.

        Raises:
            ConceptError: as :meth:`content_ids`.
        """
        ids = [self.content_ids(text) for text in texts]
        rows = input_embeddings(self.clip, self.towers[-1], [i for part in ids for i in part])
        if rows is None:
            return None
        return torch.stack([part.sum(0) / max(len(part), 1) for part in rows.split([len(i) for i in ids])])

    def finds(self, prompt: str, subject: str) -> bool:
        """Whether :meth:`encode` can mark the subject in a prompt. Nothing is encoded."""
        try:
            ids = [token_ids(self.clip, escape(prompt), tower.name) for tower in self.towers]
            self._all_groups(ids, prompt, subject)
        except ConceptError:
            return False
        return True

    def encode(self, prompt: str, subject: str = "") -> TextRows:
        """Rows of a prompt. ``subject``, if given, is located by its token ids and marked as a group.

        Raises:
            ConceptError: if the subject has no tokens, cannot be found in the prompt, or the prompt is too
                long.
        """
        return next(self.encode_all([(prompt, subject)]))

    def encode_all(self, prompts: Iterable[tuple[str, str]]) -> Iterator[TextRows]:
        """Rows of prompts with subjects as :meth:`encode` gives them, in order, encoded in batches.

        Raises:
            ConceptError: as :meth:`encode`, for the first faulty prompt.
        """
        prompts = iter(prompts)
        count = max(1, BATCH_ROWS // rows_of(self.clip.tokenize("")))
        while part := list(islice(prompts, count)):
            found = {key: self._cache[key] for key in part if key in self._cache}
            for key in found:
                self._cache.move_to_end(key)
            missing = [key for key in dict.fromkeys(part) if key not in found]
            for key, rows in zip(missing, self._encode(missing)):
                found[key] = rows
                self._remember(key, rows)
            yield from (found[key] for key in part)

    def _remember(self, key: tuple[str, str], rows: TextRows) -> None:
        self._cache[key] = rows
        self._bytes += rows.bytes
        while self._bytes > self.limit and len(self._cache) > 1:
            old = [known for known in self._cache if known != key]  # the new entry stays, however large
            self._bytes -= self._cache.pop(next((known for known in old if known[1]), old[0])).bytes

    def _encode(self, keys: Sequence[tuple[str, str]]) -> list[TextRows]:
        """Encode prompts with their subjects, each prompt once."""
        prompts = list(dict.fromkeys(prompt for prompt, _ in keys))
        ids = {p: [token_ids(self.clip, escape(p), tower.name) for tower in self.towers] for p in prompts}
        groups = {key: self._all_groups(ids[key[0]], *key) for key in keys}
        encoded = dict(zip(prompts, self._batch([self.clip.tokenize(escape(prompt)) for prompt in prompts])))
        plain = {prompt: self._float_rows(prompt, encoded[prompt]) for prompt in prompts}
        return [self._rows(key[0], ids[key[0]], groups[key], *plain[key[0]]) for key in keys]

    def _rows(
        self, prompt: str, ids: list[list[int]], groups: list[list[int]], rows: Tensor, pooled: Tensor | None
    ) -> TextRows:
        """Rows with the ids and groups that belong to them.

        Raises:
            ConceptError: if the number of rows and tokens differ.
        """
        if len(ids) == 1:
            kept = [row_ids(self.towers[0], ids[0], len(rows), prompt)]
        else:
            kept = [tuple(i) for i in ids]
            if sum(map(len, kept)) != len(rows):
                raise ConceptError(
                    f"'{prompt}' gives {len(rows)} rows for {sum(map(len, kept))} tokens; this CLIP is not "
                    "supported"
                )
        lengths = tuple(map(len, kept))
        parts = [tuple(g[len(g) - n :]) for g, n in zip(groups, lengths)]
        read = self._read(rows)
        return TextRows(read, sum(kept, ()), sum(parts, ()), pooled, lengths if len(lengths) > 1 else ())

    def _float_rows(self, prompt: str, encoded: Encoded) -> tuple[Tensor, Tensor | None]:
        """Copies of a prompt's rows and pooled vector as float32 on the CPU.

        Raises:
            ConceptError: if a value is NaN.
        """
        rows, pooled = encoded.rows, encoded.pooled
        if not (torch.isfinite(rows).all() and (pooled is None or torch.isfinite(pooled).all())):
            raise ConceptError(
                f"the text encoder returns NaN for '{prompt}'; load it in float32 or another precision"
            )
        return tuple(None if t is None else t.detach().float().cpu().clone() for t in (rows, pooled))

    def _all_groups(self, ids: list[list[int]], prompt: str, subject: str) -> list[list[int]]:
        """Groups of each tower's tokens."""
        return [self._groups(tower, own, prompt, subject) for tower, own in zip(self.towers, ids)]

    def _groups(self, tower: Tower, ids: list[int], prompt: str, subject: str) -> list[int]:
        first, stop = tower.content(ids)
        at, length = self._locate(tower, ids[first:stop], prompt, subject)
        groups = []
        for i in range(len(ids)):
            if i < first:
                groups.append(BOS)
            elif stop <= i < stop + len(tower.end):
                groups.append(FIRST_EOT)
            elif i >= stop:
                groups.append(PAD)
            elif at is None or i < first + at:
                groups.append(BEFORE)
            else:
                groups.append(SUBJECT if i < first + at + length else AFTER)
        return groups

    def _locate(self, tower: Tower, content: list[int], prompt: str, subject: str) -> tuple[int | None, int]:
        """Position and length of the subject's ids in a prompt's content ids (its last occurrence)."""
        if not subject:
            return None, 0
        wanted = spellings(self.clip, tower, subject, escape)
        if not wanted[0]:
            raise ConceptError(
                f"the tokenizer drops '{subject}' entirely; write the concept in words that it knows"
            )
        for ids in wanted:
            length = len(ids) if tower.chat else len(wanted[0])
            for at in range(len(content) - length, -1, -1):
                if ids and content[at : at + len(ids)] == ids:
                    return at, length
        if tower.chat and content:
            self.unaligned[subject] = None
            return 0, len(content)
        raise ConceptError(
            f"the tokens of '{subject}' cannot be found in '{prompt}'; remove punctuation from the concept"
        )


@dataclass(frozen=True)
class Pairs:
    """Aligned rows of an erased prompt and its counterpart.

    Attributes:
        erase: ``[n, d]`` rows of the prompt with the concept.
        want: ``[n, d]`` counterpart rows that should replace them.
        groups: ``[n]`` group of each erased row.
        partners: ``[n]`` row number of each ``want`` row in the counterpart.
    """

    erase: Tensor
    want: Tensor
    groups: tuple[int, ...]
    partners: tuple[int, ...]


def align(erase: TextRows, want: TextRows) -> Pairs:
    """Pair every row of ``erase`` with a row of ``want``, by token ids.

    The common beginning of both prompts is paired in order. So are the common ending, the end token and the
    pads. The tokens between (the concept, and in ``want`` its anchor or nothing) are paired from the last
    token backwards. If the anchor is shorter, its first row repeats. Without an anchor, the row after the
    common beginning is used. Pads beyond the length of the other prompt are paired with its last row.
    """
    if len(erase.lengths) > 1:
        return _joined([align(*pair) for pair in zip(erase.by_tower(), want.by_tower())], want.lengths)
    n = len(want.ids)
    start = _common_prefix(erase, want)
    tail = _common_suffix(erase, want, start)
    stop, other_stop = _content_end(erase) - tail, _content_end(want) - tail
    partner = []
    for i in range(len(erase.ids)):
        if i < start:
            partner.append(i)
        elif i < stop:
            partner.append(min(max(other_stop - (stop - i), start), n - 1))
        else:
            partner.append(min(other_stop + i - stop, n - 1))
    return Pairs(erase.embeddings, want.embeddings[partner], erase.groups, tuple(partner))


def _joined(pairs: Sequence[Pairs], lengths: Sequence[int]) -> Pairs:
    """The pairs of all towers. ``lengths``: the counterpart's rows by tower."""
    starts = [0, *accumulate(lengths)]
    return Pairs(
        torch.cat([p.erase for p in pairs]),
        torch.cat([p.want for p in pairs]),
        sum((p.groups for p in pairs), ()),
        tuple(start + i for p, start in zip(pairs, starts) for i in p.partners),
    )


def _content_end(rows: TextRows) -> int:
    """Row of the first end token, or the number of rows."""
    end = rows.rows(FIRST_EOT)
    return end[0] if end else len(rows.ids)


def _common_prefix(a: TextRows, b: TextRows) -> int:
    """Length of the common beginning, before the subject of either."""
    limit = min(r[0] for r in (a.rows(SUBJECT) or [_content_end(a)], b.rows(SUBJECT) or [_content_end(b)]))
    return next((i for i in range(limit) if a.ids[i] != b.ids[i]), limit)


def _common_suffix(a: TextRows, b: TextRows, prefix: int) -> int:
    """Length of the common ending of the content, behind both subjects and the common beginning."""
    ends = _content_end(a), _content_end(b)
    firsts = [(r.rows(SUBJECT) or [prefix - 1])[-1] + 1 for r in (a, b)]
    limit = min(end - first for end, first in zip(ends, firsts))
    return next((i for i in range(limit) if a.ids[ends[0] - 1 - i] != b.ids[ends[1] - 1 - i]), limit)
