"""The table of families, which selects the file for a model."""

from __future__ import annotations

from ..errors import ModelError
from . import flux, unet
from .base import Backbone, comfy_class, engine_of

#: Tried in this order with ``matches(patcher)``; the first match builds the backbone.
FAMILIES = (unet, flux)


def backbone_for(patcher) -> Backbone:
    """The backbone of a ComfyUI model, by its family.

    Raises:
        ModelError: naming the model, if its family is not supported.
    """
    engine_of(patcher)
    if getattr(patcher.model, "diffusion_model", None) is not None:
        for family in FAMILIES:
            if family.matches(patcher):
                return family.build(patcher)
    name = comfy_class(patcher.model)
    if name in ("", "BaseModel"):
        name = type(getattr(patcher.model, "model_config", patcher.model)).__name__
    raise ModelError(
        f"{name} models are not supported; use Stable Diffusion 1.x, 2.x, SDXL or FLUX.1 (including "
        "inpainting models, unCLIP, SSD-1B, Vega, KOALA, and FLUX.1's Fill, Kontext and Krea)"
    )
