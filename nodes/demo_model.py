"""Load Demo Model: the small models that come with the pack, as MODEL, CLIP and VAE."""

from __future__ import annotations

from ..trace_core.demo import loader
from . import widgets

TOOLTIPS = {
    "name": "demo-sd is a UNet like Stable Diffusion's. demo-flux is a transformer like FLUX's, to be "
    "sampled with cfg 1. demo-people is a UNet that draws 200 made-up people.",
}


class LoadDemoModel:
    ID = "TRACE_LoadDemoModel"
    TITLE = "Load Demo Model"
    CATEGORY = "TRACE"
    SEARCH_ALIASES = ["demo checkpoint", "example model", "load model", "emoji"]
    DESCRIPTION = (
        "A small text-to-image model that comes with this pack. Two of them draw 24 objects in five emoji "
        "styles, the third draws 200 made-up people, at 64 x 64 pixels, in seconds without a GPU. Try an "
        "erasure on it, then put a checkpoint loader in its place."
    )
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    OUTPUT_TOOLTIPS = (
        "The denoiser, built from ComfyUI's own classes.",
        "The text encoder of the same model.",
        "The VAE: latents to pictures and back.",
    )
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        return widgets.input_types(TOOLTIPS, {"name": widgets.choice(loader.MODELS, "demo-sd")})

    def load(self, name):
        widgets.check(self, locals())
        return loader.load(name)
