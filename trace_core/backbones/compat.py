"""Where ComfyUI's versions differ: one function a difference, each by a test of what is there, never of a
version number.
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
    """A FLUX.1 network's configuration with the fields that newer versions ask for (``txt_ids_dims``,
    since FLUX.2).
    """
    fields = {f.name for f in dataclasses.fields(engine.ldm.flux.model.FluxParams)}
    return {**config, "txt_ids_dims": []} if "txt_ids_dims" in fields else dict(config)


def network_state(config, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network's state dict under the names of this version, as its loader renames them (FLUX: ``scale``
    is ``weight`` now).
    """
    rename = getattr(config, "process_unet_state_dict", None)
    return rename(dict(state)) if rename else state


@contextmanager
def training_flag(engine) -> Iterator[None]:
    """ComfyUI's mark of a training: newer versions then use operations that have a gradient, such as
    FLUX's rotary embedding.
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
    """Options of a CLIP object that is to stay out of dynamic memory management, where there is one."""
    known = inspect.signature(engine.sd.CLIP.__init__).parameters
    return {"disable_dynamic": True} if "disable_dynamic" in known else {}


def is_dynamic(patcher) -> bool:
    """Whether a model is under ComfyUI's dynamic memory management (since v0.30), which keeps weights in
    mapped files until they are cast.
    """
    return bool(getattr(patcher, "is_dynamic", lambda: False)())


def static_patcher(patcher):
    """The model itself, or where it is dynamic a copy with weights that stay, patches and options the same.

    Raises:
        ModelError: if the loader of a dynamic model gave no way to load it once more.
    """
    if not is_dynamic(patcher):
        return patcher
    if getattr(patcher, "cached_patcher_init", None) is None:
        raise ModelError(
            "this model is under dynamic memory management, and its loader cannot load it again for "
            "training; use one of ComfyUI's own loaders, or start ComfyUI with --disable-dynamic-vram"
        )
    with torch.inference_mode(False):  # tensors that are made in inference mode take part in no gradient
        return patcher.clone(disable_dynamic=True)


def seed_of(engine, key: str) -> int:
    """By which ComfyUI rounds a weight at random; the function has moved, and warns where it was."""
    moved = getattr(engine.utils, "string_to_seed", None)
    return (moved or engine.model_patcher.string_to_seed)(key)
