"""A denoiser as the rest of the library uses it: its text inputs, its weights and its predictions."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ModelError, TraceError
from . import casting, compat
from .kinds import Kind
from .numerics import is_finite
from .weights import effective, is_linear, original, shape_of

PREFIX = "diffusion_model."

#: which linear layers get adapters
SCOPES = {
    "text": "layers that read the text alone: cross-attention keys and values (SD), the text's input layers "
    "and its stream's qkv (transformers), the pooled-vector layers",
    "attention": "every attention projection",
    "linear": "every linear layer",
    "entry": "layers that read the text encoder's rows or pooled vector directly (UCE's layers)",
    "keys": "keys of the text (SD), queries and keys of the text stream (transformers; EraseAnything's "
    "layers)",
    "image": "self-attention and the picture's queries, which do not read the text (TRCE, stage 2)",
}

CONTEXT = "context"  #: rows of the text encoder, one per token
POOLED = "pooled"  #: one vector per prompt


@dataclass(frozen=True)
class Layer:
    """A linear layer that reads text directly.

    Attributes:
        module: name below the ComfyUI model object, e.g. ``diffusion_model.txt_in``.
        stream: :data:`CONTEXT` or :data:`POOLED`.
        columns: number of leading input columns that are text (SDXL appends size embeddings to the pooled
            vector).
    """

    module: str
    stream: str
    columns: int

    @property
    def key(self) -> str:
        return self.module + ".weight"


class Backbone:
    """A ComfyUI ModelPatcher, described by its text inputs.

    Weights are read through :mod:`~trace_core.backbones.weights`: dequantised originals with the model's
    patches applied. The library never writes them.
    """

    def __init__(self, patcher, kind: str, layers: list[Layer], family, excluded: tuple[str, ...] = ()):
        """
        Args:
            family: module of this package for the network's other layers.
            excluded: text layers of the family that do not read text in this model (unCLIP's ``label_emb``
                reads images).
        """
        self.patcher = patcher
        self.kind = kind
        self._layers = layers
        self._family, self._excluded = family, excluded
        self.evaluations = 0  #: forward passes, counted per sample; a backward pass adds two

    def context_layers(self) -> list[Layer]:
        """Every layer that reads text rows directly."""
        return [layer for layer in self._layers if layer.stream == CONTEXT]

    def pooled_layers(self) -> list[Layer]:
        """Every layer that reads the pooled text vector directly."""
        return [layer for layer in self._layers if layer.stream == POOLED]

    def layers(self, stream: str) -> list[Layer]:
        return [layer for layer in self._layers if layer.stream == stream]

    def width(self, stream: str) -> int | None:
        """Text width of a stream, or None if the family has no such stream."""
        return next((layer.columns for layer in self.layers(stream)), None)

    @property
    def traits(self) -> Kind:
        """What is known about this kind of model, and about the sampling that a node may have set."""
        traits = self._family.KINDS[self.kind]
        # ComfyUI's sampling of LCM models, which skips most of the noise levels
        return traits.of_few_steps() if hasattr(self.model_sampling, "skip_steps") else traits

    @property
    def text_width(self) -> int:
        """Numbers per row of the text encoder that belongs to the model."""
        own = getattr(self._family, "text_width", None)
        return own(self.network) if own else self.width(CONTEXT)

    def read_rows(self, rows: Tensor) -> Tensor:
        """What the text layers read of a prompt: rows ``[n, text_width]`` float32 -> ``[n, width]``.

        Some networks normalise or mix the text encoder's rows before the first layer that reads them.
        """
        own = getattr(self._family, "read_rows", None)
        return own(self, rows) if own else rows

    @property
    def engine(self):
        """The ``comfy`` package of the model object."""
        return engine_of(self.patcher)

    def weights(self, layers: list[Layer] | None = None) -> Iterator[tuple[Layer, Tensor]]:
        """Effective weights ``[out, in]`` float32, one at a time, on the device that stores them.

        Raises:
            ModelError: if a weight has NaN or infinite values, or a format that this engine cannot read.
        """
        for layer in self._layers if layers is None else layers:
            weight = effective(self.patcher, layer.key, self.engine.lora.calculate_weight)
            if not is_finite(weight):
                raise ModelError(
                    f"{layer.key} contains NaN or infinite values; load the model again from an intact file"
                )
            yield layer, weight

    # ------------------------------------------------------------------------------------------- the network

    @property
    def network(self) -> torch.nn.Module:
        return bare(self.patcher.model.diffusion_model)

    def lora_targets(self, scope: str) -> list[str]:
        """Names of a scope's linear layers, relative to :attr:`network`.

        Raises:
            TraceError: if the scope is unknown.
        """
        if scope not in SCOPES:
            raise TraceError(f"scope '{scope}' is unknown; use one of {', '.join(SCOPES)}")
        # a layer with one output or input has no low-rank edit
        linear = [n for n, m in self.network.named_modules() if is_linear(m) and min(shape_of(m)) > 1]
        wanted = "" if scope == "linear" else getattr(self._family, scope.upper())
        return [
            name
            for name in linear
            if re.search(wanted, name) and (scope == "linear" or name not in self._excluded)
        ]

    def trained_rows(self, name: str, scope: str) -> slice | None:
        """The trained output rows of a layer in a scope; None for all rows."""
        return self._family.trained_rows(name, scope, shape_of(self.network.get_submodule(name))[0])

    def attention_maps(self, found: list):
        """A context in which a forward pass appends ``(queries, keys)`` of each text-reading attention layer.

        The queries of the picture are ``[b, h, n, d]``. The keys are ``[b, h, m, d]``, text rows first.
        """
        return self._family.attention_maps(self.network, found)

    def time_of(self, sigma: Tensor) -> Tensor:
        """Time 0..1 (1: pure noise) of noise levels, on the scale of the network's time steps."""
        sampling = self.model_sampling
        top = sampling.timestep(torch.as_tensor(sampling.sigma_max).view(1)).float()
        return sampling.timestep(sigma.to(top.device)).float().cpu() / top.cpu()

    def blocks(self) -> list[str]:
        """The modules for gradient checkpointing, named relative to :attr:`network`."""
        return self._family.blocks(self.network)

    # ------------------------------------------------------------------------------------------- prediction

    @property
    def model_sampling(self):
        return self.patcher.get_model_object("model_sampling")

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    def load(self) -> None:
        """Load the whole model to its device through ComfyUI, with its patches on the weights.

        A dynamically managed model keeps its weights in a mapped file and casts them for each operation, but
        a gradient needs persistent tensors. This backbone then switches to a static copy, as ComfyUI's own
        training does.

        Call this method before :func:`~trace_core.finetune.gradients.training_mode`. Patches that are applied
        to a quantised weight in inference mode, as in ComfyUI's nodes, can only be removed in inference mode.
        The same holds for normal mode.

        Raises:
            ModelError: if this engine cannot dequantise a weight, or a dynamic model cannot be copied.
        """
        self.patcher = compat.static_patcher(self.patcher)
        with torch.no_grad():  # rounding of patches to float8 has no gradient
            self.engine.model_management.load_models_gpu([self.patcher], force_full_load=True)
        casting.check(self.engine, self.network, self.device)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Data type of the network's computations, whatever the type of its stored weights."""
        return self.patcher.model.manual_cast_dtype or self.patcher.model.get_dtype()

    @property
    def pixels(self) -> int:
        """Pixels of a side per latent cell."""
        # older engines have no model with another size
        return getattr(self.patcher.model.latent_format, "spacial_downscale_ratio", 8)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """``[c, h, w]`` of the latent of a picture with this size in pixels."""
        channels = self.patcher.model.latent_format.latent_channels
        return channels, height // self.pixels, width // self.pixels

    def with_frames(self, latents: Tensor) -> Tensor:
        """Latents ``[b, c, h, w]`` as ComfyUI has them: ``[b, c, 1, h, w]`` if a network draws videos."""
        video = getattr(self.patcher.model.latent_format, "latent_dimensions", 2) == 3
        return latents.unsqueeze(2) if video else latents

    def without_frames(self, latents: Tensor) -> Tensor:
        """The inverse of :meth:`with_frames`, for latents of one frame."""
        return latents[:, :, 0] if latents.ndim == 5 else latents

    def sigma_at(self, percent: float) -> float:
        """Noise level after the fraction ``percent`` (0..1) of the schedule, at most the model's largest."""
        sampling = self.model_sampling
        return min(float(sampling.percent_to_sigma(percent)), float(sampling.sigma_max))

    def condition(self, encoded: Mapping, shape: tuple[int, int, int], guidance: float) -> dict:
        """The network's inputs for a prompt, as ComfyUI's sampler prepares them.

        Networks that also read a picture (inpainting, Fill, instructions) get ComfyUI's default: a fully
        masked empty latent.

        Args:
            encoded: the prompt as ``clip.encode_from_tokens`` with ``return_dict`` gives it.
            shape: of the latent, ``[c, h, w]``.
            guidance: for a network that embeds it.

        Returns:
            name -> tensor of batch 1, or a number that holds for the whole batch.
        """
        # cloned, because they may be inference tensors
        extra = {k: v.clone() if isinstance(v, Tensor) else v for k, v in encoded.items()}
        rows = extra.pop("cond")
        if self.traits.embeds_guidance:
            extra["guidance"] = guidance
        entries = self.engine.sampler_helpers.convert_cond([[rows, extra]])
        noise = self.with_frames(torch.zeros(1, *shape, device=self.device))
        model, empty = self.patcher.model, torch.zeros_like(noise)
        processed = self.engine.samplers.process_conds(
            model, noise, {"positive": entries}, self.device, empty, None, seed=0
        )
        conditions = processed["positive"][0]["model_conds"]
        conditions = {
            k: c.process_cond(batch_size=1, device=self.device, area=None).cond for k, c in conditions.items()
        }
        tensors = {k: v.to(self.device) for k, v in conditions.items() if isinstance(v, Tensor)}
        return tensors | {k: v for k, v in conditions.items() if isinstance(v, (int, float))}

    def predict(self, x: Tensor, sigma: Tensor, condition: dict) -> Tensor:
        """The network's raw prediction (eps, v or velocity) ``[b, c, h, w]`` float32.

        Args:
            x: noisy latents ``[b, c, h, w]`` on ComfyUI's scale (``x0 + sigma n``; FLUX ``(1 - sigma) x0 +
                sigma n``).
            sigma: ``[b]``.
            condition: output of :meth:`condition`, of batch b.
        """
        self.evaluations += len(x)
        x0 = self.patcher.model.apply_model(self.with_frames(x), sigma, **condition, transformer_options={})
        return self.prediction_of(x, sigma, self.without_frames(x0))

    def prediction_of(self, x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
        """The raw prediction (eps, v or velocity) for x0: the inverse of ComfyUI's ``calculate_denoised``.

        That function is affine in the network's output.
        """
        zero, x0 = torch.zeros_like(x), self.model_sampling.calculate_denoised
        return (denoised - x0(sigma, zero, x)) / x0(sigma, torch.ones_like(x), zero)

    def denoised_of(self, x: Tensor, sigma: Tensor, prediction: Tensor) -> Tensor:
        """x0 ``[b, c, h, w]`` for a raw prediction, by ComfyUI's own formula."""
        return self.model_sampling.calculate_denoised(sigma, prediction, x)

    def model_hash(self) -> str:
        """Fingerprint of the unpatched model: sha256 of every 16th row of the text layers, 16 hex digits."""
        digest = hashlib.sha256()
        for layer in self._layers:
            weight = original(self.patcher, layer.key)
            digest.update(f"{layer.module}{tuple(weight.shape)}".encode())
            digest.update(weight[::16].cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def engine_of(patcher):
    """The ``comfy`` package of a ModelPatcher (or subclass), without importing it.

    Raises:
        ModelError: if the object is not a ComfyUI ModelPatcher.
    """
    for cls in type(patcher).__mro__:
        if cls.__module__ == "comfy.model_patcher":
            return sys.modules["comfy.model_patcher"].comfy
    what = "no model is connected" if patcher is None else f"{type(patcher).__name__} is not a ComfyUI model"
    raise ModelError(f"{what}; connect the MODEL output of a loader")


def comfy_class(model) -> str:
    """Name of the most specific ``comfy.model_base`` class of a model object; empty if there is none."""
    return next((cls.__name__ for cls in type(model).__mro__ if cls.__module__ == "comfy.model_base"), "")


def bare(network: torch.nn.Module) -> torch.nn.Module:
    """A network without the wrapper of ``torch.compile``."""
    return getattr(network, "_orig_mod", network)


def bare_name(name: str) -> str:
    """The name of a module or weight before parts of the network were compiled."""
    return name.replace("_orig_mod.", "")
