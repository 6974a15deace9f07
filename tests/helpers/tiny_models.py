"""ComfyUI's real model objects, tiny and with random weights. ComfyUI must be importable.

Model configurations are given, not detected from a file, so that every size is free (channels of a
UNet must divide by 32, the heads' axes of a Flux must be even).
"""

from __future__ import annotations

import hashlib

import comfy.ldm.flux.model
import comfy.model_management
import comfy.sample
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.taesd.taesd
import comfy.text_encoders.flux
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from trace_core.backbones import compat

CPU = torch.device("cpu")


def initialise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a value: ComfyUI's layers allocate memory and leave it as it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            elif name.endswith(("scale", "weight")):
                parameter.fill_(1.0)
            else:
                parameter.copy_(0.02 * noise)
    return module


def build(config, seed: int, dtype: torch.dtype, state: dict | None = None) -> ModelPatcher:
    """A ModelPatcher of the model that a ``comfy.supported_models`` configuration describes.

    ``state``: what a file would hold beside the weights, which ComfyUI reads the type of prediction off.
    """
    config.set_inference_dtype(dtype, None)
    model = config.get_model(state or {}, device=CPU)
    initialise(model.diffusion_model, seed)
    return ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def unet_config(**changes) -> dict:
    """What a UNet of two levels has in common with SD1 and SDXL."""
    config = {
        "use_checkpoint": False,
        "image_size": 32,
        "use_spatial_transformer": True,
        "legacy": False,
        "adm_in_channels": None,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
        "transformer_depth_middle": 1,
        "use_linear_in_transformer": False,
        "use_temporal_resblock": False,
        "use_temporal_attention": False,
    }
    return config | changes


def tiny_sd(
    context_dim: int = 32, heads: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32, **changes
) -> ModelPatcher:
    """SD1: a UNet that predicts eps. ``changes`` are entries of the UNet's configuration."""
    config = comfy.supported_models.SD15(unet_config(context_dim=context_dim, **changes))
    config.unet_config["num_heads"] = heads
    return build(config, seed, dtype)


def tiny_sdxl(
    context_dim: int = 48, pooled_dim: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32, **changes
) -> ModelPatcher:
    """SDXL: its vector input is the pooled text and six size embeddings of 256. ``changes`` as for
    :func:`tiny_sd`.
    """
    own = {
        "context_dim": context_dim,
        "num_classes": "sequential",
        "adm_in_channels": pooled_dim + 6 * 256,
        "transformer_depth": [0, 1],
        "transformer_depth_output": [0, 0, 1, 1],
        "use_linear_in_transformer": True,
    }
    config = comfy.supported_models.SDXL(unet_config(**{**own, **changes}))
    config.unet_config["num_head_channels"] = 16
    return build(config, seed, dtype)


def tiny_flux(
    hidden: int = 64,
    heads: int = 4,
    depth: int = 2,
    depth_single: int = 2,
    context_dim: int = 32,
    pooled_dim: int = 24,
    guidance: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    channels: int = 16,
) -> ModelPatcher:
    """FLUX.1 dev, or schnell without ``guidance``; more ``channels`` for a picture beside the latent
    (Fill: 96).
    """
    head = hidden // heads
    first = head // 8 * 2
    second = (head - first) // 4 * 2
    config = {
        "image_model": "flux",
        "in_channels": channels,
        "out_channels": 16,
        "patch_size": 2,
        "vec_in_dim": pooled_dim,
        "context_in_dim": context_dim,
        "hidden_size": hidden,
        "mlp_ratio": 4.0,
        "num_heads": heads,
        "depth": depth,
        "depth_single_blocks": depth_single,
        "axes_dim": [first, second, head - first - second],
        "theta": 10000,
        "qkv_bias": True,
        "guidance_embed": guidance,
    }
    family = comfy.supported_models.Flux if guidance else comfy.supported_models.FluxSchnell
    return build(family(compat.flux_config(comfy, config)), seed, dtype)


def _clip_l_config(hidden: int, layers: int) -> dict:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * hidden,
        "projection_dim": hidden,
    }


def tiny_clip_sd1(hidden: int = 32, layers: int = 2, seed: int = 0) -> comfy.sd.CLIP:
    """SD1's tokenizer and text encoder object, the encoder tiny. Needs a checkout (tokenizer files)."""
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    options = {"dtype": torch.float32, "clip_l_model_config": _clip_l_config(hidden, layers)}
    clip = comfy.sd.CLIP(target, model_options=options)
    clip.tokenizer.clip_l.embedding_size = hidden
    initialise(clip.cond_stage_model, seed)
    return clip


def tiny_clip_flux(
    pooled_dim: int = 24, context_dim: int = 32, layers: int = 2, seed: int = 0
) -> comfy.sd.CLIP:
    """FLUX's tokenizers and text encoder object (CLIP-L and T5), the encoders tiny. Needs a checkout."""
    flux = comfy.text_encoders.flux
    target = comfy.supported_models_base.ClipTarget(
        flux.FluxTokenizer, flux.flux_clip(dtype_t5=torch.float32)
    )
    t5 = {
        "d_model": context_dim,
        "d_ff": 2 * context_dim,
        "d_kv": context_dim // 2,
        "num_heads": 2,
        "num_layers": layers,
    }
    options = {
        "dtype": torch.float32,
        "clip_l_model_config": _clip_l_config(pooled_dim, layers),
        "t5xxl_model_config": t5,
    }
    clip = comfy.sd.CLIP(target, model_options=options)
    initialise(clip.cond_stage_model, seed)
    return clip


def sd15_checkpoint_state_dict(
    levels: int = 1, seed: int = 0, clip: bool = True, vae: bool = True, dtype: torch.dtype = torch.float16
) -> dict[str, Tensor]:
    """A checkpoint that the stock loader detects as SD1.5: 26 M parameters, 123 M more with ``clip``.

    Detection fixes the width (320) and the context (768), and the text encoder's size is not read from the
    file.
    """
    model = tiny_sd(
        context_dim=768,
        heads=8,
        seed=seed,
        model_channels=320,
        channel_mult=[1] * levels,
        num_res_blocks=[1] * levels,
        transformer_depth=[1] * levels,
        transformer_depth_output=[1, 1] * levels,
    )
    state = _prefixed("model.diffusion_model.", model.model.diffusion_model.state_dict(), dtype)
    if vae:
        taesd = initialise(comfy.taesd.taesd.TAESD(), seed)
        state |= _prefixed("first_stage_model.", taesd.state_dict(), dtype)
        state["first_stage_model.vae_scale"] = torch.tensor(1.0)
        state["first_stage_model.vae_shift"] = torch.tensor(0.0)
    if clip:
        text = initialise(
            comfy.sd1_clip.SD1ClipModel(dtype=torch.float32), seed
        ).clip_l.transformer.text_model
        state |= _prefixed("cond_stage_model.transformer.text_model.", text.state_dict(), dtype)
    return state


def _prefixed(prefix: str, state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {prefix + key: value.to(dtype).contiguous() for key, value in state.items()}


def random_conditioning(model: ModelPatcher, tokens: int = 7, seed: int = 0) -> list:
    """A CONDITIONING of random rows ``[1, tokens, d]`` that fits the model, with a pooled vector where it
    has one.
    """
    generator = torch.Generator().manual_seed(seed)
    config = model.model.model_config.unet_config
    context_dim = config.get("context_dim") or config["context_in_dim"]
    rows = torch.randn(1, tokens, context_dim, generator=generator)
    pooled_dim = config.get("vec_in_dim") or (config.get("adm_in_channels") or 6 * 256) - 6 * 256
    extra = {"pooled_output": torch.randn(1, pooled_dim, generator=generator)} if pooled_dim else {}
    return [[rows, extra]]


def sample(
    model: ModelPatcher, positive: list, negative: list, seed: int = 0, steps: int = 2, cfg: float = 4.0
) -> Tensor:
    """ComfyUI's own sampling of one latent of 8 x 8."""
    latent = torch.zeros(1, model.model.latent_format.latent_channels, 8, 8)
    noise = comfy.sample.prepare_noise(latent, seed)
    return comfy.sample.sample(
        model, noise, steps, cfg, "euler", "simple", positive, negative, latent, disable_pbar=True, seed=seed
    )


class Snapshot:
    """All that a training could leave behind on a model: values bit by bit, the objects that hold them, and
    flags.

    The objects are held too, so that no other can take their place unnoticed.
    """

    def __init__(self, patcher: ModelPatcher):
        self.facts, self.held = {}, []
        for name, module in patcher.model.named_modules():
            own = (*module._modules.items(), *module._parameters.items(), *module._buffers.items())
            self.held += [module, *(thing for _, thing in own)]
            hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
            children = [(k, id(v)) for k, v in own]
            self.facts[f"module {name}"] = (id(module), type(module), children, sorted(module.__dict__))
            self.facts[f"flags of {name}"] = (module.training, [len(h) for h in hooks])
        for name, p in patcher.model.named_parameters():
            self.facts[f"parameter {name}"] = (
                id(p),
                p.data_ptr(),
                p.requires_grad,
                p.grad is None,
                p.is_inference(),
            )
            # a state dict need not hold it: GGUF's is empty
            self.facts[f"stored value of {name}"] = digest(p)
            self.facts[f"patches on {name}"] = [id(x) for x in getattr(p, "patches", [])]
        for name, tensor in patcher.model.state_dict().items():
            self.facts[f"value of {name}"] = digest(tensor)
        backups = patcher.backup, patcher.object_patches_backup
        self.facts["patcher"] = (sorted(patcher.__dict__), *map(sorted, backups))
        self.facts["patches"] = (
            {k: [id(x) for x in v] for k, v in patcher.patches.items()},
            patcher.patches_uuid,
        )
        self.facts["options"] = repr(patcher.model_options), sorted(patcher.object_patches)

    def differences(self, later: Snapshot) -> list[str]:
        """What is not as it was."""
        return [k for k in {**self.facts, **later.facts} if self.facts.get(k) != later.facts.get(k)]


def digest(tensor: Tensor) -> tuple:
    """Tells any two tensors apart that are not bit for bit the same, however they are stored."""
    if hasattr(tensor, "_qdata"):  # ComfyUI's quantised tensors
        parts = (tensor._qdata, *(v for v in vars(tensor._params).values() if isinstance(v, Tensor)))
        return (tensor._layout_cls, *map(digest, parts))
    tensor = tensor.as_subclass(Tensor)  # GGUF's say another shape than their bytes have
    if tensor.is_meta:
        return tensor.dtype, tuple(tensor.shape)
    tensor = tensor.detach().reshape(-1) if tensor.ndim == 0 else tensor.detach()
    data = tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return tensor.dtype, tuple(tensor.shape), hashlib.sha256(data).hexdigest()
