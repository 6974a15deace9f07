"""The table of families: which file of this folder knows a model."""

from __future__ import annotations

from ..errors import ModelError
from . import flux, unet
from .base import Backbone, comfy_class, engine_of

#: Asked in this order, each with ``matches(patcher)``; the first that knows the model builds its backbone.
FAMILIES = (unet, flux)


def backbone_for(patcher) -> Backbone:
    """Recognise the family of a ComfyUI model.

    Raises:
        ModelError: naming the model, for families whose text path is not known.
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
        f"{name} models are not supported; use Stable Diffusion 1.x, 2.x, SDXL or FLUX.1 (inpainting "
        "models, unCLIP, SSD-1B, Vega, KOALA, and FLUX.1's Fill, Kontext and Krea are among them)"
    )
