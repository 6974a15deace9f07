"""Many prompts in one pass of ComfyUI's text towers.

``clip.encode_from_tokens`` encodes the chunks of one long prompt and concatenates their rows. Chunks do not
attend to each other, so the chunks of many prompts can share one call. The call returns the pooled vector of
the first chunk only. The pooled vectors of the others are read from the tower that computes them. Clip skip,
patches, hooks and the towers' own casts work as for one prompt.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

log = logging.getLogger(__name__)

BATCH_ROWS = 2048  #: rows of text per pass: 26 prompts of CLIP, 8 of T5
#: Largest relative difference between a prompt's rows in a batch and its rows alone. Float32 rounding stays
#: well below it. Towers whose rows depend on the batch (activations quantised by the batch maximum) exceed it
#: and get one prompt at a time.
AGREE = 1e-4


@dataclass(frozen=True)
class Encoded:
    """One prompt as a CLIP encodes it.

    Attributes:
        rows: ``[n, d]``.
        pooled: ``[p]``, or None.
        extra: what else the model's conditioning gets (attention mask), each of batch 1.
    """

    rows: Tensor
    pooled: Tensor | None
    extra: Mapping = field(default_factory=dict)

    def conditioning(self) -> dict:
        """As ``clip.encode_from_tokens`` with ``return_dict`` gives it."""
        pooled = None if self.pooled is None else self.pooled[None]
        return {"cond": self.rows[None], "pooled_output": pooled, **self.extra}


def encode(clip, tokens: Mapping) -> Encoded:
    """Encode one tokenised prompt."""
    rows, pooled, extra = _call(clip, tokens)
    return Encoded(rows[0], None if pooled is None else pooled[0], extra)


def _call(clip, tokens: Mapping) -> tuple[Tensor, Tensor | None, dict]:
    """Rows ``[1, n, d]``, pooled vector ``[1, p]``, and what else the model's conditioning gets."""
    known = inspect.signature(clip.encode_from_tokens).parameters
    if "return_dict" not in known:  # a wrapper of another pack
        return *clip.encode_from_tokens(tokens, return_pooled=True)[:2], {}
    found = dict(clip.encode_from_tokens(tokens, return_pooled=True, return_dict=True))
    found.pop("hooks", None)  # they act in ComfyUI's sampler alone
    return found.pop("cond"), found.pop("pooled_output"), found


class BatchEncoder:
    """Encode tokenised prompts with a ComfyUI CLIP object, in batches where a batch gives the same rows.

    The first batch tests this: one of its prompts is also encoded alone. CLIP objects that are not ComfyUI's,
    and wrappers that treat chunks differently, therefore get one prompt at a time.
    """

    def __init__(self, clip):
        self.clip = clip
        self._can_batch: bool | None = None if hasattr(clip, "cond_stage_model") else False

    def __call__(self, tokens: Sequence[Mapping]) -> list[Encoded]:
        """Rows and pooled vectors of prompts tokenised by ``clip.tokenize``, in the given order."""
        if self._can_batch is False:
            return [self._alone(t) for t in tokens]
        groups: dict[tuple, list[int]] = {}
        for number, prompt in enumerate(tokens):
            groups.setdefault(_shape(prompt) or (number,), []).append(number)
        encoded: dict[int, Encoded] = {}
        for numbers in groups.values():
            step = max(1, BATCH_ROWS // rows_of(tokens[numbers[0]]))
            for start in range(0, len(numbers), step):
                part = numbers[start : start + step]
                encoded |= zip(part, self._encode([tokens[n] for n in part]))
        return [encoded[n] for n in range(len(tokens))]

    def _encode(self, tokens: list[Mapping]) -> list[Encoded]:
        encoded = None
        if len(tokens) > 1 and self._can_batch is not False:
            encoded = self._try_batch(tokens) if self._can_batch is None else self._encode_batch(tokens)
        return encoded if encoded is not None else [self._alone(t) for t in tokens]

    def _try_batch(self, tokens: list[Mapping]) -> list[Encoded] | None:
        """Encode the first batch, and accept it only if its last prompt gives the same rows alone."""
        try:
            encoded = self._encode_batch(tokens)
            self._can_batch = encoded is not None and _agree(encoded[-1], self._alone(tokens[-1]))
        except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            log.debug("several prompts at once: %s", error)
            self._can_batch = False
        if not self._can_batch:
            log.debug(
                "%s gives other rows for several prompts at once; they are encoded one at a time",
                type(self.clip).__name__,
            )
        return encoded if self._can_batch else None

    def _encode_batch(self, tokens: list[Mapping]) -> list[Encoded] | None:
        """Encode all prompts in one pass. None if the rows cannot be separated or memory runs out."""
        count, pooled_by_tower = len(tokens), []
        joined = {name: [t[name][0] for t in tokens] for name in tokens[0]}
        try:
            with _capture_pooled(self.clip.cond_stage_model, pooled_by_tower.append):
                rows, pooled, extra = _call(self.clip, joined)
        except torch.OutOfMemoryError as error:
            log.debug("several prompts at once: %s", error)
            self._can_batch = False
            return None
        # what else an encoder gives belongs to all prompts together, so each is encoded alone
        if rows.ndim != 3 or rows.shape[0] != 1 or rows.shape[1] % count or extra:
            return None
        each = rows.reshape(count, -1, rows.shape[-1])
        if pooled is None:
            return [Encoded(r, None) for r in each]
        vectors = next((v for v in pooled_by_tower if _starts_with_pooled(v, pooled, count)), None)
        return None if vectors is None else [Encoded(*both) for both in zip(each, vectors)]

    def _alone(self, tokens: Mapping) -> Encoded:
        return encode(self.clip, tokens)


def rows_of(tokens: Mapping) -> int:
    """Number of text rows of a prompt in its longest tower."""
    return max(sum(map(len, chunks)) for chunks in tokens.values())


def _shape(tokens: Mapping) -> tuple | None:
    """The towers and row counts of a prompt; prompts with the same shape can share a pass.

    None for a prompt with weights, embeddings or several chunks, which is encoded alone.
    """
    chunks = [c for tower_chunks in tokens.values() for c in tower_chunks]
    plain = len(chunks) == len(tokens) and all(
        isinstance(t[0], int) and t[1] == 1.0 for c in chunks for t in c
    )
    return tuple((name, len(tower_chunks[0])) for name, tower_chunks in tokens.items()) if plain else None


@contextmanager
def _capture_pooled(model, receive: Callable[[Tensor], None]) -> Iterator[None]:
    """Pass on the pooled vectors ``[n, p]`` of each tower's ``encode`` while the encoder runs."""
    towers = [
        m
        for m in model.modules()
        if callable(getattr(m, "encode", None)) and hasattr(m, "encode_token_weights")
    ]

    def capturing(encode):
        def wrapped(*args, **kwargs):
            out = encode(*args, **kwargs)
            if isinstance(out[1], Tensor):
                receive(out[1])
            return out

        return wrapped

    originals = [m.__dict__.get("encode") for m in towers]
    try:
        for tower in towers:
            tower.encode = capturing(tower.encode)
        yield
    finally:
        for tower, before in zip(towers, originals):
            if before is None:
                tower.__dict__.pop("encode", None)
            else:
                tower.encode = before


def _starts_with_pooled(vectors: Tensor, pooled: Tensor, count: int) -> bool:
    """Whether ``vectors`` is ``[count, p]`` and its first row equals the pooled vector ``[1, p]``."""
    same = vectors.shape == (count, pooled.shape[-1]) and pooled.shape[0] == 1
    return same and torch.equal(vectors[:1].to(pooled), pooled)


def _agree(a: Encoded, b: Encoded) -> bool:
    """Whether two encodings of one prompt agree up to rounding, row by row."""
    if (a.pooled is None) != (b.pooled is None):
        return False
    pairs = [(a.rows, b.rows), *([] if a.pooled is None else [(a.pooled[None], b.pooled[None])])]
    if any(x.shape != y.shape for x, y in pairs):
        return False
    return all(
        bool(((x.float() - y.float()).norm(dim=-1) <= AGREE * y.float().norm(dim=-1) + 1e-6).all())
        for x, y in pairs
    )
