"""Prompts as inputs of the network, in batches of any lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbones import Backbone
from ..text.batching import BatchEncoder, Encoded
from ..text.encoding import FIRST_EOT, PAD, SUBJECT, TextEncoder, escape
from ..text.spelling import same_length

TOGETHER = 32  #: prompts encoded at once; their rows exist twice meanwhile


class Prompts:
    """Prompts as inputs of the network, each encoded once and stored in the network's precision."""

    def __init__(self, backbone: Backbone, clip, shape: tuple[int, int, int], guidance: float):
        self._backbone, self._clip, self._shape, self._guidance = backbone, clip, shape, guidance
        self._index: dict[str, int] = {}
        self._conditions: list[dict[str, Tensor]] = []
        self._subjects: dict[int, str] = {}
        self._groups: dict[int, tuple[int, ...]] = {}
        self._encoder: TextEncoder | None = None
        self._batch = BatchEncoder(clip)
        self.texts: list[str] = []

    def index(self, prompt: str, subject: str = "") -> int:
        """The number of a prompt. A new prompt is encoded. ``subject``: its concept, for :meth:`columns`."""
        return self.indices([(prompt, subject)])[0]

    def indices(self, prompts: Sequence[tuple[str, str]]) -> list[int]:
        """The numbers of prompts with subjects, as :meth:`index` gives them.

        New prompts are encoded together.
        """
        new = list(dict.fromkeys(prompt for prompt, _ in prompts if prompt not in self._index))
        for start in range(0, len(new), TOGETHER):
            part = new[start : start + TOGETHER]
            for prompt, encoded in zip(part, self._batch([same_length(self._clip, escape(p)) for p in part])):
                self._add(prompt, encoded)
        self._subjects |= {self._index[prompt]: subject for prompt, subject in prompts if subject}
        return [self._index[prompt] for prompt, _ in prompts]

    def _add(self, prompt: str, encoded: Encoded) -> None:
        condition = self._backbone.condition(encoded.conditioning(), self._shape, self._guidance)
        self._index[prompt] = len(self._conditions)
        self._conditions.append(condition)
        self.texts.append(prompt)

    def condition(self, number: int) -> dict[str, Tensor]:
        """The network's inputs for a prompt, of batch 1."""
        return self._conditions[number]

    def add(self, condition: dict[str, Tensor]) -> int:
        """The number of a new condition that no text gives; :attr:`texts` shows it as empty."""
        self._conditions.append(condition)
        self.texts.append("")
        return len(self._conditions) - 1

    def put(self, number: int, condition: dict[str, Tensor]) -> None:
        """Replace the condition of an :meth:`add`."""
        self._conditions[number] = condition

    def columns(self, numbers: Tensor | Sequence[int], ends: bool) -> Tensor:
        """Mask of a concept's words among the text rows, ``[n, m]`` bool.

        ``ends``: include the end and pad rows, which carry the concept too.

        Raises:
            ConceptError: if the concept's tokens cannot be found in a prompt.
        """
        self._encoder = self._encoder or TextEncoder(self._clip)
        for n in {int(n) for n in numbers} - set(self._groups):
            groups, rows = (
                self._encoder.encode(self.texts[n], self._subjects[n]).groups,
                self._conditions[n]["c_crossattn"].shape[1],
            )
            # the padding may be longer here, see same_length
            padding = (PAD,) * (rows - len(groups))
            left = self._backbone.traits.pads_left
            self._groups[n] = padding + groups if left else (groups + padding)[:rows]
        wanted = torch.tensor([SUBJECT, FIRST_EOT, PAD] if ends else [SUBJECT])
        return torch.stack([torch.isin(torch.tensor(self._groups[int(n)]), wanted) for n in numbers])

    def batch(self, numbers: Tensor | Sequence[int]) -> ConditionBatch:
        """The conditions of several prompts, together where they have the same shape."""
        return grouped(self._backbone, [self._conditions[int(n)] for n in numbers])

    @property
    def nbytes(self) -> int:
        return sum(
            v.nbytes for condition in self._conditions for v in condition.values() if isinstance(v, Tensor)
        )


@dataclass(frozen=True)
class ConditionBatch:
    """Conditions of a batch of prompts, in parts of equal shape.

    Language models do not pad their prompts, and a pass of the network cannot hold rows of different lengths.

    Attributes:
        parts: places in the batch, and their joint condition.
    """

    backbone: Backbone
    parts: Sequence[tuple[list[int], dict]]

    def predict(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The network's raw predictions ``[b, c, h, w]`` at x ``[b, c, h, w]`` and sigma ``[b]``."""
        if len(self.parts) == 1:
            return self.backbone.predict(x, sigma, self.parts[0][1])
        out = [self.backbone.predict(x[places], sigma[places], c) for places, c in self.parts]
        order = torch.tensor([at for places, _ in self.parts for at in places])
        return torch.cat(out)[order.argsort().to(x.device)]

    def attention(self, maps: list, wanted: slice) -> Iterator[tuple[list[int], list[tuple[Tensor, Tensor]]]]:
        """The attention maps of a pass over the batch, for a range of its samples.

        Args:
            maps: what :meth:`Backbone.attention_maps` collected during :meth:`predict`.

        Yields:
            places within the range, and their queries and keys in every layer.
        """
        layers = len(maps) // len(self.parts)
        for number, (places, _) in enumerate(self.parts):
            own = maps[number * layers : (number + 1) * layers]
            rows = [i for i, at in enumerate(places) if wanted.start <= at < wanted.stop]
            if rows:
                yield [places[i] - wanted.start for i in rows], [(q[rows], k[rows]) for q, k in own]


def grouped(backbone: Backbone, conditions: Sequence[Mapping]) -> ConditionBatch:
    """The conditions of a batch, each of batch 1, together where they have the same shape."""
    groups: dict[tuple, list[int]] = {}
    for at, condition in enumerate(conditions):
        shape = tuple((k, getattr(v, "shape", v)) for k, v in condition.items())
        groups.setdefault(shape, []).append(at)
    parts = []
    for places in groups.values():
        joined = {
            k: torch.cat([conditions[at][k] for at in places]) if isinstance(v, Tensor) else v
            for k, v in conditions[places[0]].items()
        }
        parts.append((places, joined))
    return ConditionBatch(backbone, parts)
