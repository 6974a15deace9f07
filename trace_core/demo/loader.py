"""Load a demo model as the three objects of a ComfyUI loader: MODEL, CLIP, VAE."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..backbones import compat
from ..backbones.defaults import ATTRIBUTE
from ..errors import TraceError
from . import networks, people, text_towers
from .codec import Codec
from .judge import Judge
from .sizes import LATENT_CHANNELS, PATCH
from .world import defaults

MODELS = ("demo-sd", "demo-flux", "demo-people")
MARK = "trace_demo"  #: attribute of the model object with the demo model's name; all clones share that object


class DemoVAE:
    """The interface of a VAE for the stock VAEDecode, VAEEncode and their tiled forms."""

    latent_channels = LATENT_CHANNELS
    latent_dim = 2
    output_channels = 3
    downscale_ratio = upscale_ratio = PATCH

    def __init__(self, codec: Codec):
        self.first_stage_model = codec

    def decode(self, samples: Tensor, **_) -> Tensor:
        """Latents ``[b, 16, h, w]`` -> pictures ``[b, 8h, 8w, 3]`` in 0..1."""
        with torch.no_grad():
            pictures = self.first_stage_model.decode(samples.float().cpu())
        return ((pictures + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pictures ``[b, h, w, 3+]`` in 0..1 -> latents; edges beyond a multiple of 8 are cropped."""
        height, width = (pixels.shape[i] // PATCH * PATCH for i in (1, 2))
        x = pixels[:, :height, :width, :3].permute(0, 3, 1, 2).float().cpu() * 2 - 1
        with torch.no_grad():
            return self.first_stage_model.encode(x)

    def decode_tiled(self, samples: Tensor, **_) -> Tensor:
        return self.decode(samples)

    def encode_tiled(self, pixels: Tensor, **_) -> Tensor:
        return self.encode(pixels)

    def spacial_compression_decode(self) -> int:
        return PATCH

    def spacial_compression_encode(self) -> int:
        return PATCH

    def temporal_compression_decode(self) -> None:
        return None

    def get_sd(self) -> dict[str, Tensor]:
        return self.first_stage_model.state_dict()


def _patcher(model):
    import comfy.model_management as management
    import comfy.model_patcher

    device, offload = management.get_torch_device(), management.unet_offload_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


def _assets(name: str) -> dict[str, Tensor]:
    file = networks.ASSETS / f"{name}.safetensors"
    if not file.is_file():
        raise TraceError(
            f"the weights of {name} are missing ({file.name}); install the pack again, or retrain them"
        )
    return {k: v.float() for k, v in load_file(file).items()}


def _world(name: str) -> str:
    """Prefix of the files that models of one world share."""
    return "people-" if name == "demo-people" else ""


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def _load_clip_tower(transformer, state: dict[str, Tensor]) -> None:
    width = state["text_model.final_layer_norm.weight"].shape[0]
    transformer.load_state_dict({**state, "text_projection.weight": torch.eye(width)})


def load(name: str):
    """A demo model as ``(model, clip, vae)``. ComfyUI must be imported already.

    ComfyUI can reload the model and the text encoder by itself, as it does for a deep clone (its own Train
    LoRA) and for other devices. The model object carries the demo model's name, and so do such copies.

    Raises:
        TraceError: if the name is unknown, or weights are missing.
    """
    if name not in MODELS:
        raise TraceError(f"'{name}' is not a demo model; use {', '.join(MODELS[:-1])} or {MODELS[-1]}")
    state = _assets(name)
    if name == "demo-sd":
        base, clip = networks.unet_model(), text_towers.sd_clip()
    elif name == "demo-people":
        base, clip = networks.unet_model(), text_towers.people_clip()
    else:
        base, clip = networks.flux_model(), text_towers.flux_clip()
        clip.cond_stage_model.t5xxl.transformer.load_state_dict(_part(state, "t5xxl."))
    base.diffusion_model.load_state_dict(compat.network_state(base.model_config, _part(state, "net.")))
    base.diffusion_model.requires_grad_(False)
    _load_clip_tower(clip.cond_stage_model.clip_l.transformer, _part(state, "clip_l."))
    setattr(base, MARK, name)
    setattr(base, ATTRIBUTE, defaults(name))
    patcher = _patcher(base)
    patcher.cached_patcher_init = (load_model, (name,))
    clip.patcher.cached_patcher_init = (load_clip_patcher, (name,))
    return patcher, clip, load_vae(name)


def load_model(name: str, disable_dynamic: bool = False):
    """The ModelPatcher alone, for reloading by ComfyUI. It is never under dynamic memory management."""
    return load(name)[0]


def load_clip_patcher(name: str, disable_dynamic: bool = False):
    """The text encoder's ModelPatcher alone, for reloading by ComfyUI."""
    return load(name)[1].patcher


def load_vae(name: str = "demo-sd") -> DemoVAE:
    """The VAE of a demo model."""
    codec = Codec()
    codec.load_state_dict(_assets(f"{_world(name)}codec"))
    return DemoVAE(codec.requires_grad_(False).eval())


def load_judge(name: str = "demo-sd") -> Judge:
    """The classifier that measures erasures on a demo model."""
    judge = Judge(people.heads()) if name == "demo-people" else Judge()
    judge.load_state_dict(_assets(f"{_world(name)}judge"))
    return judge.requires_grad_(False).eval()
