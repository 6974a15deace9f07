"""Stand-ins for ComfyUI's CLIP object and for a backbone, for tests without ComfyUI. Everything is
deterministic.
"""

from __future__ import annotations

import functools
import math
import re
import zlib

import torch
from torch import Tensor

START, END, PAD_T5, END_T5 = 49406, 49407, 0, 1
FIRST_WORD = 10  #: word ids start here
PIECE = 4  #: letters a token holds


@functools.cache
def _noise(seed: int, size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class FakeClip:
    """Tokens are pieces of four letters; rows mix a token with what stands before it (or with everything).

    As in ComfyUI: parentheses that are not escaped are weights, over-long prompts become several chunks,
    causal towers pad with the end token, and T5 has no start token and no largest length.

    Args:
        width: of a row.
        length: rows of a prompt.
        towers: keys of ``tokenize``; ``t5xxl`` makes the rows bidirectional.
        pooled: width of the pooled vector, 0 for none.
        embeddings: words that are textual inversions (a tensor instead of an id).
    """

    def __init__(
        self,
        width: int = 32,
        length: int = 24,
        towers: tuple[str, ...] = ("l",),
        pooled: int = 0,
        embeddings: tuple[str, ...] = (),
        noise: float = 0.3,
    ):
        self.width, self.length, self.towers, self.pooled = width, length, towers, pooled
        self.embeddings, self.noise = embeddings, noise
        self.encoded: list[str] = []

    @property
    def bidirectional(self) -> bool:
        return "t5xxl" in self.towers

    def ids(self, text: str) -> list:
        """Content ids of a text whose escapes are undone; anything but Latin letters, digits and signs is
        dropped.
        """
        out = []
        for word in re.findall(r"[a-z0-9]+|[!-/:-@\[-`{-~]", text.lower()):
            if word in self.embeddings:
                out.append(torch.zeros(self.width))
            else:
                out += [
                    FIRST_WORD + zlib.crc32(word[i : i + PIECE].encode()) % 40000
                    for i in range(0, len(word), PIECE)
                ]
        return out

    def tokenize(self, text: str) -> dict:
        hidden = text.replace("\\(", "\0").replace("\\)", "\1")
        weight = 1.1 if "(" in hidden and ")" in hidden else 1.0
        if weight != 1.0:
            hidden = hidden.replace("(", "").replace(")", "")
        content = self.ids(hidden.replace("\0", "(").replace("\1", ")"))
        tokens = {}
        for tower in self.towers:
            t5 = tower == "t5xxl"
            room = math.inf if t5 else self.length - 2
            chunks = (
                [content[i : i + room] for i in range(0, max(len(content), 1), room)] if not t5 else [content]
            )
            start, end, pad = ([], END_T5, PAD_T5) if t5 else ([START], END, 0 if tower == "g" else END)
            ids = [[*start, *chunk, end] for chunk in chunks]
            tokens[tower] = [[(i, weight) for i in c + [pad] * (self.length - len(c))] for c in ids]
        return tokens

    def encode_from_tokens(self, tokens: dict, return_pooled: bool = False, return_dict: bool = False):
        name = "t5xxl" if self.bidirectional else self.towers[0]
        chunks = [self._rows([i for i, _ in chunk], chunk[0][1]) for chunk in tokens[name]]
        rows = torch.cat(chunks).float()[None]
        pooled = None
        if self.pooled:
            first = [i for i, _ in tokens[self.towers[0]][0]]
            pooled = sum(
                _noise(7 * i + 3, self.pooled) / (1 + 0.1 * at) for at, i in enumerate(first)
            ).float()[None]
        if return_dict:
            return {"cond": rows, "pooled_output": pooled}
        return (rows, pooled) if return_pooled else rows

    def _rows(self, ids: list[int], weight: float) -> Tensor:
        own = torch.stack([_noise(i, self.width) for i in ids])
        place = torch.stack([_noise(100_000 + at, self.width) for at in range(len(ids))])
        if self.bidirectional:
            seen = own.mean(0, keepdim=True).expand_as(own)
        else:
            fading = 0.8 ** (torch.arange(len(ids))[:, None] - torch.arange(len(ids))).double().clamp_min(0)
            seen = (fading * torch.ones_like(fading).tril()) @ own
        rows = own + self.noise * place + torch.tanh(seen + 0.5 * torch.sin(3 * seen * own))
        if not self.bidirectional:
            rows[0] = 12 * torch.tanh(own[0])  # the start token: large, and the same in every prompt
        return weight * rows


class FakeBackbone:
    """The part of a Backbone that the closed form reads, around given float64 weights.

    Args:
        context: weights ``[out, d]`` of the layers that read rows.
        pooled: weights of the layers that read the pooled vector.
    """

    kind = "sd1"
    read_rows = None

    def __init__(self, layer, context: list[Tensor], pooled: list[Tensor] = ()):
        self._weights = [
            (layer(f"diffusion_model.k{i}", "context", w.shape[1]), w) for i, w in enumerate(context)
        ]
        self._weights += [
            (layer(f"diffusion_model.p{i}", "pooled", w.shape[1]), w) for i, w in enumerate(pooled)
        ]

    def width(self, stream: str) -> int | None:
        return next((layer.columns for layer, _ in self._weights if layer.stream == stream), None)

    def weights(self):
        yield from self._weights

    def model_hash(self) -> str:
        return "0" * 16


def random_weights(count: int, out: int, width: int, seed: int = 0) -> list[Tensor]:
    """Weights ``[out, width]``, float64."""
    return [_noise(1000 * seed + i, out * width).reshape(out, width) / width**0.5 for i in range(count)]
