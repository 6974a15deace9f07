"""The two worlds that demo models draw: emoji (demo-sd, demo-flux) and people (demo-people)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import judge, people, vocabulary
from ..codec import Codec
from . import avatars, icons

CACHE = Path(".cache")


@dataclass(frozen=True)
class World:
    """Pictures with labels, their captions, and the judge's classes.

    ``classes`` gives a label's class name by head of the judge, ``naming`` a caption of what captions seldom
    name, empty for a picture without it.
    """

    name: str
    prefix: str  #: of the files of its codec and judge
    dataset: Callable[..., tuple[np.ndarray, list]]
    caption: Callable[[object, random.Random], str]
    naming: Callable[[object, random.Random], str] | None
    heads: dict[str, list[str]]
    classes: Callable[[object], dict[str, str]]
    per_combination: int
    judged: int  #: renderings of every combination from which the judge learns

    def render(self, per_combination: int, seed: int, strong: bool = False) -> tuple[np.ndarray, list]:
        return self.dataset(CACHE / self.name, per_combination, seed, strong)


WORLDS = {
    "icons": World(
        "icons", "", icons.dataset, vocabulary.caption, None, judge.HEADS,
        lambda x: {"object": x.object, "style": x.style, "colour": x.colour}, 16, 6,
    ),
    "people": World(
        "people", "people-", avatars.dataset, people.caption, people.naming, people.heads(),
        people.classes, 4, 3,
    ),
}  # fmt: skip


def world_of(model: str) -> World:
    return WORLDS["people" if model == "demo-people" else "icons"]


def latents(world: World) -> tuple[Tensor, list, Codec]:
    """The training set as latents ``[n, 16, 8, 8]`` with labels, and the codec fitted on it."""
    file = CACHE / f"{world.prefix}latents.pt"
    codec = Codec()
    if not file.exists():
        pictures, labels = world.render(world.per_combination, seed=1)
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        codec.fit_encoder(x[:6000].float() / 127.5 - 1)
        z = torch.cat([codec.encode(part.float() / 127.5 - 1) for part in x.split(512)])
        state = {k: v for k, v in codec.state_dict().items() if not k.startswith("decoder")}
        torch.save({"z": z, "labels": labels, "codec": state}, file)
    data = torch.load(file, weights_only=False)
    codec.load_state_dict(data["codec"], strict=False)
    return data["z"], data["labels"], codec


def pictures(world: World, seed: int, per_combination: int, strong: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Renderings ``[n, 3, 64, 64]`` uint8 and class indices per head.

    Seeds: 1 for codec and denoisers, 2 for the judge, 3 for tests.
    """
    file = CACHE / f"{world.prefix}pictures-{seed}-{per_combination}-{int(strong)}.pt"
    if not file.exists():
        x, labels = world.render(per_combination, seed, strong)
        named = [world.classes(label) for label in labels]
        y = {h: torch.tensor([names.index(c[h]) for c in named]) for h, names in world.heads.items()}
        torch.save((torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), y), file)
    return torch.load(file)
