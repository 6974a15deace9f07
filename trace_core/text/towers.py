"""The towers of a text encoder that make its rows, and what stands around the user's words in each.

A CLIP tower puts one start token before the words. T5 puts none. A language model puts a chat template around
them. The template is found by comparing prompts, so no template is named here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConceptError
from .batching import encode

CLIP = ("l", "g", "h")  #: names of CLIP towers in ``clip.tokenize``, in the order of preference
T5 = "t5xxl"
#: Two prompts that share no token at either end
PROBES = ("cat", "9 dogs")


@dataclass(frozen=True)
class Tower:
    """One tower's tokens.

    Attributes:
        name: key of ``clip.tokenize``.
        start: ids before the user's words.
        end: ids behind them.
        pad: id of padding.
        causal: whether a row depends on earlier tokens only.
        chat: whether the tower is a language model, which has other ids for a word at a text's start.
    """

    name: str
    start: tuple[int, ...]
    end: tuple[int, ...]
    pad: int
    causal: bool = True
    chat: bool = False

    def content(self, ids: Sequence[int]) -> tuple[int, int]:
        """First and last (exclusive) position of the user's words in a prompt's ids."""
        first = len(self.start)
        if not self.chat:
            return first, next((i for i in range(first, len(ids)) if ids[i] == self.end[0]), len(ids))
        stop = len(ids)
        while stop > first and ids[stop - 1] == self.pad and self.end[-1:] != (self.pad,):
            stop -= 1
        return first, max(first, stop - len(self.end))


def token_ids(clip, prompt: str, tower: str) -> list[int]:
    """A tower's ids of an escaped prompt, padding included.

    Raises:
        ConceptError: if the prompt does not fit into one chunk, or has a textual-inversion embedding.
    """
    chunks = clip.tokenize(prompt)[tower]
    if len(chunks) > 1:
        raise ConceptError(
            f"'{prompt[:57]}...' is {sum(len(c) for c in chunks)} tokens long and does not fit into one "
            f"prompt of {len(chunks[0])}; shorten the concept"
        )
    ids = [token[0] for token in chunks[0]]
    if not all(isinstance(i, int) for i in ids):
        raise ConceptError(f"'{prompt}' uses a textual-inversion embedding; erase a concept by its words")
    return ids


def input_embeddings(clip, tower: Tower, ids: Sequence[int]) -> Tensor | None:
    """A tower's embeddings of tokens before its first layer, ``[n, d]`` float32 on the CPU.

    None for a CLIP object that does not show them, such as another pack's.
    """
    name = f"clip_{tower.name}" if tower.name in CLIP else tower.name
    module = getattr(getattr(clip, "cond_stage_model", None), name, None)
    table = getattr(getattr(module, "transformer", None), "get_input_embeddings", lambda: None)()
    if table is None:
        return None
    with torch.no_grad():
        return table(torch.tensor(ids, device=table.weight.device)).float().cpu()


def towers_of(clip) -> tuple[Tower, ...]:
    """The towers whose rows the model reads, in the order of the rows.

    Raises:
        ConceptError: if the CLIP's towers are unknown.
    """
    tokens = clip.tokenize("")
    clips = [name for name in CLIP if name in tokens and _is_loaded(clip, f"clip_{name}")]
    has_t5 = T5 in tokens and _is_loaded(clip, T5)
    if not clips and not has_t5:
        return (_chat(clip, next(iter(tokens))),)
    if not (clips and has_t5):
        return (_t5(clip),) if has_t5 else (_clip(clip, clips[0]),)
    # FLUX, with CLIP-L alone, reads T5's rows; SD 3 reads those of both
    both = "g" in tokens and len(encode(clip, tokens).rows) > len(tokens[T5][0])
    return (_clip(clip, clips[0]), _t5(clip)) if both else (_t5(clip),)


def _is_loaded(clip, name: str) -> bool:
    """Whether a tower has weights. SD 3's encoder goes without those whose files are not given."""
    return getattr(getattr(clip, "cond_stage_model", None), name, True) is not None


def _pad_id(clip, tower: str) -> int:
    """Padding id of a tower's tokenizer, for prompts without padding (default *T5TokenizerOptions*)."""
    tokenizer = getattr(getattr(clip, "tokenizer", None), tower, None)
    pad = getattr(tokenizer, "pad_token", None)
    return pad if isinstance(pad, int) else 0


def _clip(clip, name: str) -> Tower:
    empty = token_ids(clip, "", name)
    return Tower(name, (empty[0],), (empty[1],), empty[-1])


def _t5(clip) -> Tower:
    empty = token_ids(clip, "", T5)
    return Tower(T5, (), (empty[0],), empty[1] if len(empty) > 1 else _pad_id(clip, T5), causal=False)


def _chat(clip, name: str) -> Tower:
    pad = _pad_id(clip, name)
    first, second = (_unpadded(token_ids(clip, probe, name), pad) for probe in PROBES)
    start = _common(first, second)
    end = _common(first[len(start) :][::-1], second[len(start) :][::-1])
    return Tower(name, tuple(start), tuple(end[::-1]), pad, chat=True)


def _unpadded(ids: list[int], pad: int) -> list[int]:
    while ids and ids[-1] == pad:
        ids = ids[:-1]
    return ids


def _common(a: Sequence[int], b: Sequence[int]) -> list[int]:
    """The common beginning."""
    count = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return list(a[:count])


def spellings(clip, tower: Tower, text: str, escaped: Callable[[str], str]) -> list[list[int]]:
    """Ids that a text can have inside a prompt: as it stands alone, and behind another word.

    Args:
        escaped: function that escapes a prompt for ComfyUI.
    """
    alone = _words(clip, tower, escaped(text))
    if not tower.chat:
        return [alone, alone[:-1]]  # T5 joins a last digit with a comma behind it: "R2-D", "2,"
    before = _words(clip, tower, escaped("a"))
    behind = _words(clip, tower, escaped(f"a {text}"))[len(before) :]
    return [behind, alone]


def _words(clip, tower: Tower, prompt: str) -> list[int]:
    ids = token_ids(clip, prompt, tower.name)
    first, stop = tower.content(ids)
    return ids[first:stop]


def row_ids(tower: Tower, ids: Sequence[int], rows: int, prompt: str) -> tuple[int, ...]:
    """The ids of the last ``rows`` tokens. Some encoders drop the rows of their template's beginning.

    Raises:
        ConceptError: if there are more rows than tokens, or user's words are among the dropped.
    """
    dropped = len(ids) - rows
    if dropped < 0 or dropped > (len(tower.start) if tower.chat else 0):
        raise ConceptError(f"'{prompt}' gives {rows} rows for {len(ids)} tokens; this CLIP is not supported")
    return tuple(ids[dropped:])
