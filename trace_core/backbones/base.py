"""Where text enters a denoiser, and how its weights are read. Everything family-specific of the closed form is here."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ModelError
from ..numerics import is_finite

PREFIX = "diffusion_model."

CONTEXT = "context"  #: rows of the text encoder, one per token
POOLED = "pooled"  #: one vector per prompt


@dataclass(frozen=True)
class Layer:
    """A linear layer that consumes text directly.

    Attributes:
        module: name below the ComfyUI model object, e.g. ``diffusion_model.txt_in``.
        stream: :data:`CONTEXT` or :data:`POOLED`.
        columns: how many of the layer's first input columns are text (SDXL appends size embeddings to the pooled vector).
    """

    module: str
    stream: str
    columns: int

    @property
    def key(self) -> str:
        return self.module + ".weight"


class Backbone:
    """A ComfyUI ModelPatcher, seen as the places where text enters it.

    Weights are read through ``get_key_patches``: originals, with the patches already on the model applied, dequantised.
    They are never written.
    """

    def __init__(self, patcher, kind: str, layers: list[Layer]):
        self.patcher = patcher
        self.kind = kind
        self._layers = layers

    def context_layers(self) -> list[Layer]:
        """Every layer that consumes text rows directly."""
        return [layer for layer in self._layers if layer.stream == CONTEXT]

    def pooled_layers(self) -> list[Layer]:
        """Every layer that consumes the pooled text vector directly."""
        return [layer for layer in self._layers if layer.stream == POOLED]

    def layers(self, stream: str) -> list[Layer]:
        return [layer for layer in self._layers if layer.stream == stream]

    def width(self, stream: str) -> int | None:
        """Text width of a stream, or None if this family has none."""
        return next((layer.columns for layer in self.layers(stream)), None)

    @property
    def engine(self):
        """The ``comfy`` package this model object came from."""
        return engine_of(self.patcher)

    def weights(self, layers: list[Layer] | None = None) -> Iterator[tuple[Layer, Tensor]]:
        """Effective weights ``[out, in]`` float32, one at a time, on the device where they are stored.

        Raises:
            ModelError: if a weight holds NaN or infinity.
        """
        layers = self._layers if layers is None else layers
        entries = self.patcher.get_key_patches(PREFIX)
        for layer in layers:
            (stored, convert), *patches = entries[layer.key]
            weight = convert(stored.detach().to(torch.float32, copy=True), inplace=False)
            if patches:
                weight = self.engine.lora.calculate_weight(patches, weight, layer.key)
            if not is_finite(weight):
                raise ModelError(f"{layer.key} holds NaN or infinite values; load the model again from an intact file")
            yield layer, weight

    def model_hash(self) -> str:
        """Fingerprint of the unpatched base: sha256 over every 16th row of the layers that read text, 16 hex digits."""
        digest = hashlib.sha256()
        entries = self.patcher.get_key_patches(PREFIX)
        for layer in self._layers:
            stored = entries[layer.key][0][0]
            digest.update(f"{layer.module}{tuple(stored.shape)}".encode())
            digest.update(stored.detach()[::16].float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def engine_of(patcher):
    """The ``comfy`` package of a ModelPatcher (or subclass), without importing it.

    Raises:
        ModelError: if the object is no ComfyUI ModelPatcher.
    """
    for cls in type(patcher).__mro__:
        if cls.__module__ == "comfy.model_patcher":
            return sys.modules["comfy.model_patcher"].comfy
    raise ModelError(f"{type(patcher).__name__} is no ComfyUI model; connect the MODEL output of a loader")


def backbone_for(patcher) -> Backbone:
    """Recognise the family of a ComfyUI model.

    Raises:
        ModelError: naming the class, for families whose text path is not known.
    """
    from . import flux, unet

    engine_of(patcher)
    network = getattr(patcher.model, "diffusion_model", None)
    for family in (unet, flux):
        if family.matches(network):
            return family.build(patcher)
    raise ModelError(
        f"{type(patcher.model).__name__} models are not supported; use Stable Diffusion 1.x, 2.x, SDXL or FLUX.1"
    )
