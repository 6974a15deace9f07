"""What is left of a concept's rows behind each layer that reads the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...backbones.base import CONTEXT, POOLED, Layer
from ...closed_form.effects import USED, weighted
from ...closed_form.policies import row_weights
from ...text.encoding import align
from .prompts import PLAIN, Probe
from .scene import Scene


@dataclass(frozen=True)
class Residual:
    """What a layer leaves of one way to write a concept: ``W'c - Wg`` along ``Wc - Wg``, 1 before the edit.

    g is the row in the counterpart. Below 0 the layer gives the opposite.
    """

    probe: str
    layer: str
    left: float


def only_text(scene: Scene) -> bool:
    """Whether the adapter is on layers alone that read the text encoder's output directly."""
    return set(scene.lora.modules) <= {layer.module for layer in _reading(scene)}


def _reading(scene: Scene) -> list[Layer]:
    """Every layer that reads the text encoder's output directly."""
    return scene.backbone.context_layers() + scene.backbone.pooled_layers()


def residuals(scene: Scene, probes: Sequence[Probe], phase: str) -> list[Residual]:
    """The residual of every probe behind every edited layer that reads the text.

    Rows are weighted by groups of tokens, as in the closed form. A weight in the prompt acts as ComfyUI's:
    relative to the empty prompt.
    """
    rows = {p.name: _rows(scene, p) for p in probes if p.phrase}
    if PLAIN in rows:
        rows |= {p.name: _weighted(scene, p) for p in probes if not p.phrase and p.rewritten}
    found = []
    edited = [layer for layer in _reading(scene) if layer.module in scene.lora.modules]
    for done, (layer, weight) in enumerate(scene.backbone.weights(edited)):
        scene.progress(phase, done, len(edited))
        W = weight[:, : layer.columns].float().cpu()
        for name, streams in rows.items():
            if layer.stream in streams:
                found.append(Residual(name, layer.module, _left(scene, layer, W, *streams[layer.stream])))
    return found


def _left(scene: Scene, layer: Layer, W: Tensor, c: Tensor, g: Tensor, weights: Tensor) -> float:
    """One residual, of rows c and g ``[n, d]`` with weights ``[n]``."""
    up, down = scene.lora.modules[layer.module]
    edit = (c @ down[:, : layer.columns].float().T) @ up.float().T * scene.strength
    way, weights = (c - g) @ W.T, weights[:, None]
    along = (weights * way * (way + edit)).sum() / (weights * way * way).sum().clamp_min(1e-12)
    return along.item()


def _rows(scene: Scene, probe: Probe) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Rows of the prompt, rows of the counterpart, and weights, by text stream."""
    own, other = scene.encoder.encode_all([(probe.prompt, probe.phrase), (probe.counterpart, probe.other)])
    pairs = align(own, other)
    weights = row_weights(pairs.groups, USED, "group").float()
    found = {CONTEXT: (pairs.erase, pairs.want, weights)}
    if own.pooled is not None and other.pooled is not None:
        found[POOLED] = (own.pooled[None], other.pooled[None], torch.ones(1))
    return found


def _weighted(scene: Scene, probe: Probe) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """The rows of the plain prompt with the concept's name at a weight."""
    name = probe.prompt.rpartition("(")[2].partition(":")[0]
    own, other = scene.encoder.encode_all([(probe.reference, name), (probe.counterpart, "")])
    pairs = weighted(align(own, other), scene.encoder.encode("").embeddings)
    return {CONTEXT: (pairs.erase, pairs.want, row_weights(pairs.groups, USED, "group").float())}
