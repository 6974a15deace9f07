"""Export the edit of the text rows as LoRA factors for every layer, with the change of each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.base import PREFIX
from ..lora.erasure import ErasureLora
from .certificate import certificate, layers_certificate
from .edit import ContextEdit, LayerEdits
from .gram import add_symmetric, mirror
from .sums import RowSums


def export(
    backbone: Backbone,
    edits: Mapping[str, ContextEdit | LayerEdits],
    sums: Mapping[str, RowSums | Sequence[RowSums]],
    measure: bool = True,
    eta: float = 0.0,
    values: bool = False,
) -> tuple[ErasureLora, dict, dict[str, float]]:
    """Convert the edits to LoRA factors layer by layer, and optionally measure the change of each layer.

    Last, the :func:`~trace_core.closed_form.certificate.certificate` of each stream, where measured.

    Per layer: ``residual`` = ||W'D|| / ||W D|| over the weighted difference rows, for the edit without its
    overshoot ``eta``. With substitutes it is ||dW D + W M|| / ||W M||, M the intended displacement.
    ``values``: leave keys out, where a layer of keys is separate.
    ``keep_change`` = ||dW P|| / ||W P|| over the keep rows. ``relative_norm`` = ||dW|| / ||W||.
    """
    factors, measured, inner = {}, {}, {}
    own = {
        s: _Forms(edit, sums[s], eta) if measure else None for s, edit in edits.items() if not edit.is_empty
    }
    left_out = {PREFIX + name for name in backbone.lora_targets("keys")} if values else set()
    for layer, weight in backbone.weights():
        if layer.stream not in own or layer.module in left_out:
            continue
        up, down = edits[layer.stream].factors(weight, layer.columns, torch.float16)
        factors |= ErasureLora.from_factors({layer.module: (up.cpu(), down.cpu())}).modules
        if measure:
            text = weight[:, : layer.columns].float().cpu()
            own_gram = gram(text)
            known = layer.stream in inner
            inner[layer.stream] = inner[layer.stream].add_(own_gram) if known else own_gram
            measured[layer.module] = own[layer.stream].norms(text, own_gram, up, down[:, : layer.columns])
    certificates = {s: own[s].certificate(H) for s, H in inner.items()}
    return ErasureLora(factors), measured, certificates


def gram(text: Tensor) -> Tensor:
    """``W^T W`` ``[d, d]`` float64 of a layer's text columns ``[out, d]`` float32."""
    inner = torch.zeros(text.shape[1], text.shape[1])
    add_symmetric(inner, text)
    return mirror(inner).double()


class _Forms:
    """What is measured of a stream's layers, by quadratic forms that all layers share.

    ``||W X||_F^2 = <W^T W, X X^T>``.
    """

    def __init__(self, edit: ContextEdit | LayerEdits, parts: RowSums | Sequence[RowSums], eta: float):
        parts = [parts] if isinstance(parts, RowSums) else parts
        self.edit, self.eta = edit, eta
        self.difference = reduce(torch.add, (p.difference() for p in parts))
        self.keep = reduce(torch.add, (p.keep.value() for p in parts))
        # M M^T and M D^T
        self.moved, self.across = (reduce(torch.add, sums) for sums in zip(*(p.displaced() for p in parts)))
        self._by_layer = isinstance(edit, LayerEdits)
        if self._by_layer:
            width = len(self.keep)
            self._own, self._cross = (torch.zeros(width, width, dtype=torch.float64) for _ in "ab")
        else:
            self._forms = self._shared()

    def norms(self, text: Tensor, gram: Tensor, up: Tensor, down: Tensor) -> dict[str, float]:
        """One layer's norms, from its text columns W, ``W^T W`` and its factors."""
        if self._by_layer:
            norms = self._of_layer(text.double(), up.double().cpu() @ down.double().cpu())
        else:
            norms = (self._forms @ gram.flatten()).clamp_min(0).sqrt().tolist()
        return {
            "residual": _ratio(norms[0], norms[1]),
            "keep_change": _ratio(norms[2], norms[3]),
            "relative_norm": _ratio(norms[4], text.norm().item()),
        }

    def certificate(self, H: Tensor) -> float:
        """The stream's certificate, with ``H = sum W^T W``."""
        if self._by_layer:
            return layers_certificate(H, self._own, self._cross, self.difference)
        return certificate(self.edit, H, self.difference)

    def _of_layer(self, W: Tensor, change: Tensor) -> list[float]:
        """The norms for an edit of this layer alone; also adds the layer to the certificate's sums."""
        new = W + change
        self._own += new.T @ new
        self._cross += new.T @ W
        left = change @ self.difference / (1 + self.eta) + W @ self.across
        return [
            norm.clamp_min(0).sqrt().item()
            for norm in (
                (left * change).sum() / (1 + self.eta)
                + ((change @ self.across.T) * W).sum() / (1 + self.eta)
                + ((W @ self.moved) * W).sum(),
                ((W @ self.moved) * W).sum(),
                ((change @ self.keep) * change).sum(),
                ((W @ self.keep) * W).sum(),
                change.square().sum(),
            )
        ]

    def _shared(self) -> Tensor:
        """``[5, d * d]`` float64: X X^T for M + U V^T D / (1 + eta), M, U V^T P, P and U V^T.

        M is D, or the displacement with substitutes. All forms are positive semidefinite, so the inner
        products have no cancellation, and float32 is precise enough for W^T W.
        """
        edit, V, D, P, eta = self.edit, self.edit.V, self.difference, self.keep, self.eta
        left = (lambda x: x) if edit.is_plain else (lambda x: edit.U @ x)
        half = self.across + left(V.T @ D) / (1 + eta)
        # filled one by one, because stacking would need the memory twice
        forms = torch.empty(5, *D.shape, dtype=torch.float64)
        forms[0] = self.moved + left(V.T @ self.across.T) / (1 + eta) + left((half @ V).T).T / (1 + eta)
        forms[1], forms[3] = self.moved, P
        forms[2] = left(left(V.T @ P @ V).T)
        forms[4] = left(left(V.T @ V).T)
        return forms.flatten(1)


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom > 0 else 0.0
