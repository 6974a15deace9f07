"""Trained vectors in the place of tokens.

ComfyUI's text encoders take a vector of the tower's input width wherever a prompt's token list has a number.
Textual inversions work this way, for every tower.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from ...errors import ConceptError, ModelError
from ...finetune.adapters import aliased
from ...finetune.gradients import saved_apart

Chunk = list[tuple]  #: ComfyUI's tokens of one chunk: (number or vector, weight, ...)


def embeddings(clip) -> dict[str, Tensor]:
    """The input embeddings of every tower, ``{name in clip.tokenize: [vocabulary, width]}`` float32.

    Raises:
        ModelError: if a tower does not show them.
    """
    out = {}
    for name in clip.tokenize(""):
        model = getattr(clip, "cond_stage_model", None)
        tower = getattr(model, name, None) or getattr(model, f"clip_{name}", None)
        find = getattr(getattr(tower, "transformer", None), "get_input_embeddings", None)
        weight = getattr(find(), "weight", None) if find else None
        if weight is None:
            raise ModelError(
                f"the text tower '{name}' has no input embeddings; use the attack rows-inversion"
            )
        out[name] = weight.detach().float()
    return out


@contextmanager
def differentiable(clip) -> Iterator[None]:
    """Load a text encoder, and let gradients pass through it; its layers may write in place."""
    clip.load_model()
    with aliased(clip.cond_stage_model), saved_apart(clip.cond_stage_model):
        yield


def only_chunk(tokens: Mapping[str, Sequence[Chunk]], prompt: str) -> dict[str, Chunk]:
    """The tokens of a prompt that fits into one chunk of every tower.

    Raises:
        ConceptError: if it does not.
    """
    if any(len(chunks) != 1 for chunks in tokens.values()):
        raise ConceptError(
            f"'{prompt}' does not fit into one chunk of the text encoder; use a shorter prompt"
        )
    return {name: chunks[0] for name, chunks in tokens.items()}


def difference(ids: Sequence[int], others: Sequence[int]) -> tuple[int, int]:
    """First and last (exclusive) position of what a prompt's ids have and another prompt's do not.

    Padding at either end does not count.
    """
    (ids, before), (others, _) = _unpadded(list(ids)), _unpadded(list(others))
    limit = min(len(ids), len(others))
    start = next((i for i in range(limit) if ids[i] != others[i]), limit)
    limit -= start
    end = next((i for i in range(limit) if ids[-1 - i] != others[-1 - i]), limit)
    return before + start, before + len(ids) - end


def _unpadded(ids: list[int]) -> tuple[list[int], int]:
    """Ids without repetitions of the first and of the last one, and how many are missing in front."""
    first = next((i for i in range(1, len(ids)) if ids[i] != ids[0]), len(ids)) - 1
    last = next((i for i in range(1, len(ids) - first) if ids[-1 - i] != ids[-1]), len(ids) - first) - 1
    return ids[first : len(ids) - last], first


def replaced(chunk: Chunk, start: int, stop: int, vectors: Sequence[Tensor]) -> Chunk:
    """A chunk with vectors in the place of the tokens ``start:stop``, and of the same length if it is padded.

    Raises:
        ConceptError: if the padding does not have room for the vectors.
    """
    made = [*chunk[:start], *((v, 1.0, *chunk[-1][2:]) for v in vectors), *chunk[stop:]]
    ids = [t[0] for t in chunk]
    more, left = len(made) - len(chunk), len(ids) > 1 and ids[0] == ids[1]
    pads = next((i for i in range(1, len(ids)) if ids[-1 - i] != ids[-1]), len(ids)) - 1
    if left or (not pads and more <= 0):
        return made
    if more > pads:
        raise ConceptError(f"{len(vectors)} trained tokens do not fit into the prompt; use a shorter prompt")
    return made[: len(made) - more] if more > 0 else made + [chunk[-1]] * -more
