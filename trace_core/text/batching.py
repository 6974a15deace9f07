"""Many prompts in one pass of ComfyUI's text towers.

``clip.encode_from_tokens`` takes the chunks of one long prompt and lays their rows one after the other.
Chunks do not see each other, so those of many prompts can go through it together; what it drops is the pooled
vector of all but the first, which is taken from the tower that makes it. Clip skip, patches, hooks and the
towers' own casts are ComfyUI's, as for one prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

log = logging.getLogger(__name__)

BATCH_ROWS = 2048  #: rows of text in one pass: 26 prompts of CLIP, 8 of T5
#: Rows of a prompt among others may differ from its rows alone by this share, which rounding in float32 stays
#: well below. Towers whose rows depend on the batch (activations quantised by the largest of all) differ
#: more, and are given one prompt at a time.
AGREE = 1e-4

#: rows ``[n, d]`` and pooled vector ``[p]`` of one prompt, as the CLIP gives them
Encoded = tuple[Tensor, "Tensor | None"]


class BatchEncoder:
    """Encode tokenised prompts with a ComfyUI CLIP object, many at once where that gives the same rows.

    Whether it does is tried, not looked up: of the first batch one prompt is encoded alone as well. Objects
    that are not ComfyUI's, and wrappers that treat chunks otherwise, therefore get one prompt at a time.
    """

    def __init__(self, clip):
        self.clip = clip
        self._able: bool | None = None if hasattr(clip, "cond_stage_model") else False

    def __call__(self, tokens: Sequence[Mapping]) -> list[Encoded]:
        """Rows and pooled vectors of prompts, each as ``clip.tokenize`` gives it, in the order given."""
        if self._able is False:
            return [self._alone(t) for t in tokens]
        groups: dict[tuple, list[int]] = {}
        for number, found in enumerate(tokens):
            groups.setdefault(_shape(found) or (number,), []).append(number)
        out: dict[int, Encoded] = {}
        for numbers in groups.values():
            step = max(1, BATCH_ROWS // rows_of(tokens[numbers[0]]))
            for start in range(0, len(numbers), step):
                part = numbers[start : start + step]
                out |= zip(part, self._encode([tokens[n] for n in part]))
        return [out[n] for n in range(len(tokens))]

    def _encode(self, tokens: list[Mapping]) -> list[Encoded]:
        found = None
        if len(tokens) > 1 and self._able is not False:
            found = self._tried(tokens) if self._able is None else self._together(tokens)
        return found if found is not None else [self._alone(t) for t in tokens]

    def _tried(self, tokens: list[Mapping]) -> list[Encoded] | None:
        """The first batch: all of it, if its last prompt comes out as it does alone."""
        try:
            found = self._together(tokens)
            self._able = found is not None and _agree(found[-1], self._alone(tokens[-1]))
        except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            log.debug("several prompts at once: %s", error)
            self._able = False
        if not self._able:
            log.debug(
                "%s gives other rows for several prompts at once; they are encoded one at a time",
                type(self.clip).__name__,
            )
        return found if self._able else None

    def _together(self, tokens: list[Mapping]) -> list[Encoded] | None:
        """One pass for all, or None where it does not tell the prompts apart, or where memory does not do
        for it.
        """
        count, pooled_by_tower = len(tokens), []
        joined = {name: [t[name][0] for t in tokens] for name in tokens[0]}
        try:
            with _watched(self.clip.cond_stage_model, pooled_by_tower.append):
                rows, pooled = self.clip.encode_from_tokens(joined, return_pooled=True)[:2]
        except torch.OutOfMemoryError as error:
            log.debug("several prompts at once: %s", error)
            self._able = False
            return None
        if rows.ndim != 3 or rows.shape[0] != 1 or rows.shape[1] % count:
            return None
        each = rows.reshape(count, -1, rows.shape[-1])
        if pooled is None:
            return [(r, None) for r in each]
        vectors = next((v for v in pooled_by_tower if _begins_with(v, pooled, count)), None)
        return None if vectors is None else list(zip(each, vectors))

    def _alone(self, tokens: Mapping) -> Encoded:
        rows, pooled = self.clip.encode_from_tokens(tokens, return_pooled=True)[:2]
        return rows[0], None if pooled is None else pooled[0]


@dataclass(frozen=True)
class Given:
    """A CLIP of one prompt, whose rows are there already."""

    rows: Tensor
    pooled: Tensor | None

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens(self, tokens, return_pooled: bool = True) -> Encoded:
        return self.rows[None], None if self.pooled is None else self.pooled[None]


def rows_of(tokens: Mapping) -> int:
    """Rows of text that a prompt takes in its longest tower."""
    return max(sum(map(len, chunks)) for chunks in tokens.values())


def _shape(tokens: Mapping) -> tuple | None:
    """What prompts that go together share: the towers and their rows. None: weights, embeddings or several
    chunks, alone.
    """
    chunks = [c for found in tokens.values() for c in found]
    plain = len(chunks) == len(tokens) and all(
        isinstance(t[0], int) and t[1] == 1.0 for c in chunks for t in c
    )
    return tuple((name, len(found[0])) for name, found in tokens.items()) if plain else None


@contextmanager
def _watched(model, hear: Callable[[Tensor], None]) -> Iterator[None]:
    """Hand over the pooled vectors ``[n, p]`` of every tower's ``encode`` while a text encoder works."""
    towers = [
        m
        for m in model.modules()
        if callable(getattr(m, "encode", None)) and hasattr(m, "encode_token_weights")
    ]

    def listening(encode):
        def wrapped(*args, **kwargs):
            out = encode(*args, **kwargs)
            if isinstance(out[1], Tensor):
                hear(out[1])
            return out

        return wrapped

    own = [m.__dict__.get("encode") for m in towers]
    try:
        for tower in towers:
            tower.encode = listening(tower.encode)
        yield
    finally:
        for tower, before in zip(towers, own):
            if before is None:
                tower.__dict__.pop("encode", None)
            else:
                tower.encode = before


def _begins_with(vectors: Tensor, pooled: Tensor, count: int) -> bool:
    """Whether ``[count, p]`` vectors are those of which the pooled vector ``[1, p]`` is the first."""
    same = vectors.shape == (count, pooled.shape[-1]) and pooled.shape[0] == 1
    return same and torch.equal(vectors[:1].to(pooled), pooled)


def _agree(a: Encoded, b: Encoded) -> bool:
    """Whether two encodings of one prompt are the same up to rounding, row by row."""
    pairs = [(a[0], b[0]), *([(a[1][None], b[1][None])] if a[1] is not None and b[1] is not None else [])]
    if (a[1] is None) != (b[1] is None) or any(x.shape != y.shape for x, y in pairs):
        return False
    return all(
        bool(((x.float() - y.float()).norm(dim=-1) <= AGREE * y.float().norm(dim=-1) + 1e-6).all())
        for x, y in pairs
    )
