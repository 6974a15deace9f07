"""Where ComfyUI's versions differ: one function a difference, each by a test of what is there, never of a version number."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


def flux_config(engine, config: dict) -> dict:
    """A FLUX.1 network's configuration with the fields that newer versions ask for (``txt_ids_dims``, since FLUX.2)."""
    fields = {f.name for f in dataclasses.fields(engine.ldm.flux.model.FluxParams)}
    return {**config, "txt_ids_dims": []} if "txt_ids_dims" in fields else dict(config)


def network_state(config, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network's state dict under the names of this version, as its loader renames them (FLUX: ``scale`` is ``weight`` now)."""
    rename = getattr(config, "process_unet_state_dict", None)
    return rename(dict(state)) if rename else state


@contextmanager
def training_flag(engine) -> Iterator[None]:
    """ComfyUI's mark of a training: newer versions then use operations that have a gradient, such as FLUX's rotary embedding."""
    management = engine.model_management
    if not hasattr(management, "in_training"):
        yield
        return
    before, management.in_training = management.in_training, True
    try:
        yield
    finally:
        management.in_training = before


def seed_of(engine, key: str) -> int:
    """By which ComfyUI rounds a weight at random; the function has moved, and warns where it was."""
    moved = getattr(engine.utils, "string_to_seed", None)
    return (moved or engine.model_patcher.string_to_seed)(key)
