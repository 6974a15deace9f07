"""Prompts whose conditioning was made by hand."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...text.batching import Encoded, encode


class Prepared:
    """A CLIP that answers some prompts with a prepared conditioning, and encodes all others.

    Args:
        made: prompt -> its conditioning.
    """

    def __init__(self, clip, made: Mapping[str, Encoded]):
        self._clip, self._made = clip, made

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens(self, tokens: str, return_pooled: bool = True, return_dict: bool = False):
        found = self._made.get(tokens) or encode(self._clip, self._clip.tokenize(tokens))
        made = found.conditioning()
        return made if return_dict else (made["cond"], made["pooled_output"])


def concatenated(first: Encoded, second: Encoded) -> Encoded:
    """The rows of both, and the pooled vector of the first: ComfyUI's ConditioningConcat."""
    return Encoded(torch.cat([first.rows, second.rows]), first.pooled, first.extra)


def averaged(first: Encoded, second: Encoded, share: float) -> Encoded:
    """``share`` of the first and the rest of the second, row by row: ComfyUI's ConditioningAverage.

    The second gets zero rows, or loses its last rows, until it is as long as the first.
    """
    rows = second.rows[: len(first.rows)]
    missing = len(first.rows) - len(rows)
    rows = torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
    pooled = None if first.pooled is None else _mixed(first.pooled, second.pooled, share)
    return Encoded(_mixed(first.rows, rows, share), pooled, first.extra)


def _mixed(first: Tensor, second: Tensor, share: float) -> Tensor:
    return share * first + (1 - share) * second
