"""Differences between ComfyUI versions, one function each.

Every function tests what the engine offers, never a version number.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import ModelError


def flux_config(engine, config: dict) -> dict:
    """A FLUX.1 configuration with the fields of newer versions (``txt_ids_dims``, since FLUX.2)."""
    fields = {f.name for f in dataclasses.fields(engine.ldm.flux.model.FluxParams)}
    return {**config, "txt_ids_dims": []} if "txt_ids_dims" in fields else dict(config)


def network_state(config, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network's state dict under this version's names, by its loader's renaming.

    Example: FLUX's ``scale`` became ``weight``.
    """
    rename = getattr(config, "process_unet_state_dict", None)
    return rename(dict(state)) if rename else state


@contextmanager
def training_flag(engine) -> Iterator[None]:
    """Set ComfyUI's training flag.

    Newer versions then use operations with a gradient (FLUX's rotary embedding).
    """
    management = engine.model_management
    if not hasattr(management, "in_training"):
        yield
        return
    before, management.in_training = management.in_training, True
    try:
        yield
    finally:
        management.in_training = before


def clip_options(engine) -> dict:
    """Options that keep a CLIP object out of dynamic memory management, if this version has it."""
    known = inspect.signature(engine.sd.CLIP.__init__).parameters
    return {"disable_dynamic": True} if "disable_dynamic" in known else {}


def is_dynamic(patcher) -> bool:
    """Whether a model is under ComfyUI's dynamic memory management (since v0.30).

    Such a model keeps its weights in mapped files until they are cast.
    """
    return bool(getattr(patcher, "is_dynamic", lambda: False)())


def static_patcher(patcher):
    """The model itself, or for a dynamic model a copy with static weights and the same patches and options.

    Raises:
        ModelError: if the loader of a dynamic model provides no way to load it again.
    """
    if not is_dynamic(patcher):
        return patcher
    if getattr(patcher, "cached_patcher_init", None) is None:
        raise ModelError(
            "this model is under dynamic memory management, and its loader cannot load it again for "
            "training; use one of ComfyUI's own loaders, or start ComfyUI with --disable-dynamic-vram"
        )
    with torch.inference_mode(False):  # tensors created in inference mode cannot take part in a gradient
        return patcher.clone(disable_dynamic=True)


def seed_of(engine, key: str) -> int:
    """The seed of ComfyUI's stochastic rounding of a weight. Its old function has moved and warns."""
    moved = getattr(engine.utils, "string_to_seed", None)
    return (moved or engine.model_patcher.string_to_seed)(key)
