"""Zero-shot classification with any CLIP: the text whose row is nearest to a picture's row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE = 100.0  #: factor on the cosines, as OpenAI's CLIPs have learnt it and MACE's evaluation uses it
BATCH = 32  #: pictures at once


class ZeroShot:
    """A judge with rows of pictures and of texts. Subclasses say where the rows come from.

    Attributes:
        name: what a report calls it.
        fingerprint: 16 hex digits of its weights, or empty if it has no file.
        scale: factor on the cosines before the softmax.
    """

    name = "CLIP"
    fingerprint = ""
    scale = SCALE

    def image_rows(self, pictures: Tensor) -> Tensor:
        """Rows ``[n, d]`` of pictures ``[n, h, w, 3]`` in 0..1."""
        raise NotImplementedError

    def text_rows(self, texts: Sequence[str]) -> Tensor:
        """Rows ``[n, d]`` of texts."""
        raise NotImplementedError

    def probabilities(self, pictures: Tensor, texts: Sequence[str]) -> Tensor:
        """How much each picture shows each text: softmax of the scaled cosines, ``[n, texts]`` float32.

        Args:
            pictures: ``[n, h, w, 3]`` in 0..1, of any size.
        """
        rows = self._texts(tuple(texts))
        seen = [self.image_rows(part).float().cpu() for part in pictures[..., :3].split(BATCH)]
        return (self.scale * F.normalize(torch.cat(seen), dim=-1) @ rows.T).softmax(-1)

    def _texts(self, texts: tuple[str, ...]) -> Tensor:
        """Text rows of length 1. Those of the last texts are kept."""
        kept = getattr(self, "_kept", None)
        if kept is None or kept[0] != texts:
            kept = self._kept = texts, F.normalize(self.text_rows(texts).float().cpu(), dim=-1)
        return kept[1]
