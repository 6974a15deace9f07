"""The judge: a small classifier of object, style and background colour in a 64 x 64 picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .vocabulary import COLOURS, OBJECTS, STYLES

HEADS = {"object": list(OBJECTS), "style": list(STYLES), "colour": list(COLOURS)}


def _stage(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride=2, padding=1),
        nn.GroupNorm(8, outside),
        nn.SiLU(),
        nn.Conv2d(outside, outside, 3, padding=1),
        nn.GroupNorm(8, outside),
        nn.SiLU(),
    )


class Judge(nn.Module):
    """Pictures ``[b, 3, 64, 64]`` in -1..1 -> logits per head ``{head: [b, classes]}``."""

    def __init__(self, heads: dict[str, list[str]] = HEADS):
        super().__init__()
        self.body = nn.Sequential(
            _stage(3, 24), _stage(24, 48), _stage(48, 96), _stage(96, 128), nn.Flatten()
        )
        self.mix = nn.Sequential(nn.Linear(128 * 16, 128), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(128, len(classes)) for name, classes in heads.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        features = self.mix(self.body(pictures))
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def probabilities(self, pictures: Tensor, head: str, batch: int = 256) -> Tensor:
        """Class probabilities ``[b, classes]`` of ComfyUI IMAGEs ``[b, h, w, 3]`` in 0..1."""
        x = pictures.permute(0, 3, 1, 2) * 2 - 1
        return torch.cat([self(part)[head].softmax(-1) for part in x.split(batch)])
