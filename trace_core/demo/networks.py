"""The demo models' networks, from ComfyUI's own classes: UNetModel, Flux, and its CLIP and T5 towers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ..backbones import compat
from . import sizes

ASSETS = Path(__file__).resolve().parent / "assets"


def latent_format():
    """A ComfyUI latent format for the demo codec: 16 channels, already of unit variance."""
    import comfy.latent_formats

    fmt = comfy.latent_formats.LatentFormat()
    fmt.latent_channels = sizes.LATENT_CHANNELS
    return fmt


def unet_model(dtype: torch.dtype = torch.float32):
    """ComfyUI's BaseModel (eps) around a small UNetModel; weights unset."""
    import comfy.supported_models

    config = comfy.supported_models.SD15(sizes.UNET)
    config.unet_config["num_heads"] = sizes.UNET_HEADS
    config.latent_format = latent_format()
    config.inpaint_model = lambda: False  # ComfyUI treats more than four input channels as inpainting
    config.set_inference_dtype(dtype, None)
    return config.get_model({}, device=torch.device("cpu"))


def flux_model(dtype: torch.dtype = torch.float32):
    """ComfyUI's model_base.Flux around a small Flux; weights unset."""
    import comfy.ldm.flux.model
    import comfy.supported_models

    config = comfy.supported_models.Flux(compat.flux_config(comfy, sizes.FLUX))
    config.latent_format = latent_format()
    config.set_inference_dtype(dtype, None)
    return config.get_model({}, device=torch.device("cpu"))


def initialise(network: nn.Module, zero: tuple[str, ...], seed: int = 0) -> None:
    """Fill every parameter: fan-in normal, ones for scales, zeros for ``zero`` names.

    ComfyUI's layers leave their parameters unset.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, p in network.named_parameters():
        with torch.no_grad():
            if p.ndim >= 2 and not any(z in name for z in zero):
                p.copy_(torch.randn(p.shape, generator=generator) * (1.0 / p[0].numel()) ** 0.5)
            elif p.ndim == 1 and name.endswith((".scale", ".weight")):
                p.fill_(1.0)
            else:
                p.zero_()


def clip_config(tower: dict, vocab: int) -> dict:
    """Configuration of a CLIP text tower, in the keys that transformers and ComfyUI share."""
    return {
        **sizes.CLIP_COMMON,
        **tower,
        "vocab_size": vocab,
        "bos_token_id": vocab - 2,
        "eos_token_id": vocab - 1,
        "pad_token_id": vocab - 1,
        "projection_dim": tower["hidden_size"],
    }


@contextmanager
def config_file(config: dict) -> Iterator[str]:
    """A configuration as a temporary file, which older ComfyUIs need to build a text model."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(config))
        yield str(file)
