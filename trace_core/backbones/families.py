"""The table of families, which selects the file for a model."""

from __future__ import annotations

from ..errors import ModelError
from . import chroma, flux, flux2, krea2, qwen_image, sd3, unet, z_image
from .base import Backbone, comfy_class, engine_of
from .kinds import Kind

#: Tried in this order with ``matches(patcher)``; the first match builds the backbone.
FAMILIES = (unet, flux, flux2, z_image, qwen_image, krea2, sd3, chroma)

#: every kind of model, by the name that files record
KINDS: dict[str, Kind] = {name: kind for family in FAMILIES for name, kind in family.KINDS.items()}


def backbone_for(patcher) -> Backbone:
    """The backbone of a ComfyUI model, by its family.

    Raises:
        ModelError: naming the model and the known families, if its family is not supported.
    """
    engine_of(patcher)
    if getattr(patcher.model, "diffusion_model", None) is not None:
        for family in FAMILIES:
            if family.matches(patcher):
                return family.build(patcher)
    name = comfy_class(patcher.model)
    if name in ("", "BaseModel"):
        name = type(getattr(patcher.model, "model_config", patcher.model)).__name__
    known = [family.SUPPORTED for family in FAMILIES]
    raise ModelError(f"{name} models are not supported; use {', '.join(known[:-1])} or {known[-1]}")
