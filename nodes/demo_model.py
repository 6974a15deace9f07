"""Load Demo Model: the small models that come with the pack, as MODEL, CLIP and VAE."""

from __future__ import annotations

from ..trace_core.demo import loader


class LoadDemoModel:
    ID = "TRACE_LoadDemoModel"
    TITLE = "Load Demo Model"
    CATEGORY = "TRACE"
    SEARCH_ALIASES = ["demo checkpoint", "example model", "load model", "emoji"]
    DESCRIPTION = (
        "A small text-to-image model that comes with this pack: 24 objects in five emoji styles, 64 x 64 "
        "pixels, sampled in seconds without a GPU. Try an erasure on it, then put a checkpoint loader in "
        "its place."
    )
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    OUTPUT_TOOLTIPS = (
        "The denoiser, of ComfyUI's own classes.",
        "The text encoder that belongs to it.",
        "Latents to pictures and back.",
    )
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        tooltip = (
            "demo-sd is a UNet as Stable Diffusion's, demo-flux a transformer as FLUX's (use cfg 1 with it)."
        )
        return {"required": {"name": (list(loader.MODELS), {"default": "demo-sd", "tooltip": tooltip})}}

    def load(self, name):
        return loader.load(name)
