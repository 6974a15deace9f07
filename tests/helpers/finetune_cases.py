"""What the tests of the finetune on ComfyUI's models share."""

from __future__ import annotations

import torch

from trace_core.closed_form import erase
from trace_core.finetune import FinetuneConfig, finetune
from trace_core.lora import ErasureLora
from trace_core.text.concepts import Concept

KINDS = ("sd1", "sdxl", "flux")
CAT = [Concept("cat", "dog")]
KEEP = ["bird"]
SMALL = FinetuneConfig(
    steps=4,
    batch=4,
    trajectories=2,
    keep_trajectories=1,
    refresh=2,
    sampling_steps=2,
    cfg=1.0,
    rank=2,
    lr=0.01,
    width=32,
    height=32,
    window=(0.2, 1.0),
    eta=0.5,
)
LEVEL = dict(channel_mult=[1], num_res_blocks=[1], transformer_depth=[1], transformer_depth_output=[1, 1])
TINY = {"sd1": LEVEL, "sdxl": LEVEL, "flux": dict(depth=1, depth_single=1)}


class Stop(Exception):
    """What a caller raises to cancel."""


class Listener:
    """Keeps every :class:`Progress`; raises at the one numbered ``stop``."""

    def __init__(self, stop: int | None = None, error: type = Stop):
        self.heard, self.stop, self.error = [], stop, error

    def __call__(self, progress):
        if len(self.heard) == self.stop:
            raise self.error
        self.heard.append(progress)


def run(family, model, config=SMALL, **options):
    return finetune(model, family.clip, CAT, KEEP, config, **options)


def closed_form(family, model) -> ErasureLora:
    return erase(model, family.clip, CAT, KEEP).lora


def same_factors(a: ErasureLora, b: ErasureLora) -> bool:
    return a.modules.keys() == b.modules.keys() and all(
        torch.equal(x, y) for m in a.modules for x, y in zip(a.modules[m], b.modules[m])
    )


def values(model) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in model.model.state_dict().items()}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())
