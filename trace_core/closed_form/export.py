"""Export the edit of the text rows as LoRA factors for every layer, with the change of each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from ..backbones import Backbone
from ..lora.erasure import ErasureLora
from .certificate import certificate
from .edit import ContextEdit
from .gram import add_symmetric, mirror
from .sums import RowSums


def export(
    backbone: Backbone,
    edits: dict[str, ContextEdit],
    sums: Mapping[str, RowSums | Sequence[RowSums]],
    measure: bool = True,
    eta: float = 0.0,
) -> tuple[ErasureLora, dict, dict[str, float]]:
    """Convert the edits to LoRA factors layer by layer, and optionally measure the change of each layer.

    Last, the :func:`~trace_core.closed_form.certificate.certificate` of each stream, where measured.

    Per layer: ``residual`` = ||W'D|| / ||W D|| over the weighted difference rows, for the edit without its
    overshoot ``eta``. With substitutes it is ||dW D + W M|| / ||W M||, M the intended displacement.
    ``keep_change`` = ||dW P|| / ||W P|| over the keep rows. ``relative_norm`` = ||dW|| / ||W||.
    """
    factors, measured, inner = {}, {}, {}
    forms = {s: _forms(edit, sums[s], eta) if measure else None for s, edit in edits.items() if edit.rank}
    for layer, weight in backbone.weights():
        if layer.stream not in forms:
            continue
        up, down = edits[layer.stream].factors(weight, layer.columns, torch.float16)
        factors |= ErasureLora.from_factors({layer.module: (up.cpu(), down.cpu())}).modules
        if measure:
            gram = _gram(weight[:, : layer.columns].float().cpu())
            inner[layer.stream] = inner[layer.stream].add_(gram) if layer.stream in inner else gram
            measured[layer.module] = _norms(
                gram, forms[layer.stream], weight[:, : layer.columns].norm().item()
            )
    certificates = {s: certificate(edits[s], H, _difference(sums[s])) for s, H in inner.items()}
    return ErasureLora(factors), measured, certificates


def _gram(text: Tensor) -> Tensor:
    """``W^T W`` ``[d, d]`` float64 of a layer's text columns ``[out, d]`` float32."""
    inner = torch.zeros(text.shape[1], text.shape[1])
    add_symmetric(inner, text)
    return mirror(inner).double()


def _difference(parts: RowSums | Sequence[RowSums]) -> Tensor:
    parts = [parts] if isinstance(parts, RowSums) else parts
    return reduce(torch.add, (p.difference() for p in parts))


def _norms(gram: Tensor, forms: Tensor, norm: float) -> dict[str, float]:
    """One layer's norms, from ``W^T W`` of its text columns, the forms of :func:`_forms` and ``||W||``."""
    norms = (forms @ gram.flatten()).clamp_min(0).sqrt().tolist()
    return {
        "residual": _ratio(norms[0], norms[1]),
        "keep_change": _ratio(norms[2], norms[3]),
        "relative_norm": _ratio(norms[4], norm),
    }


def _forms(edit: ContextEdit, parts: RowSums | Sequence[RowSums], eta: float) -> Tensor:
    """Quadratic forms for all layers' norms: ``||W X||_F^2 = <W^T W, X X^T>``, with X X^T shared by all.

    Returns:
        ``[5, d * d]`` float64: X X^T for M + U V^T D / (1 + eta), M, U V^T P, P and U V^T. M is D, or the
        displacement with substitutes. All forms are positive semidefinite, so the inner products have no
        cancellation, and float32 is precise enough for W^T W.
    """
    parts = [parts] if isinstance(parts, RowSums) else parts
    V, D, P = (
        edit.V,
        reduce(torch.add, (p.difference() for p in parts)),
        reduce(torch.add, (p.keep.value() for p in parts)),
    )
    M, across = (reduce(torch.add, sums) for sums in zip(*(p.displaced() for p in parts)))  # M M^T, M D^T
    left = (lambda x: x) if edit.is_plain else (lambda x: edit.U @ x)
    half = across + left(V.T @ D) / (1 + eta)
    # filled one by one, because stacking would need the memory twice
    forms = torch.empty(5, *D.shape, dtype=torch.float64)
    forms[0] = M + left(V.T @ across.T) / (1 + eta) + left((half @ V).T).T / (1 + eta)
    forms[1], forms[3] = M, P
    forms[2] = left(left(V.T @ P @ V).T)
    forms[4] = left(left(V.T @ V).T)
    return forms.flatten(1)


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom > 0 else 0.0
