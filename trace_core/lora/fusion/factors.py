"""Factors of the fused file from the solved sums, and rank reduction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...text.concepts import Concept
from ..erasure import ErasureLora
from ..parts import Part
from .config import Adapter, FusionConfig, timed
from .sums import Stream


def assemble(
    adapters: Sequence[Adapter], streams: Sequence[Stream], config: FusionConfig, clock: dict
) -> tuple[ErasureLora, dict | None]:
    """The fused factors, concatenated along the rank. In mode ``add`` the first erasure's are as they were.

    Layers that do not read the text rows are only concatenated.

    Returns:
        the erasure without metadata, and the loss of :func:`_cut` if a maximum rank is set.
    """
    with timed(clock, "export"):
        places = [(stream, [stream.slices(a) for a in adapters]) for stream in streams if stream.solved]
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        for module in dict.fromkeys(m for a in adapters for m in a.lora.modules):
            pairs = []
            for number, adapter in enumerate(adapters):
                if module not in adapter.lora.modules:
                    continue
                up, down = (f.cpu() for f in adapter.lora.modules[module])
                for stream, slices in places:
                    if module in slices[number] and (number or config.mode != "add"):
                        text = stream.solved[number][slices[number][module]]
                        up, down = balance(
                            up.double(), torch.cat([text, down[:, stream.width :].double()], 1)
                        )
                pairs.append((up, down))
            factors[module] = torch.cat([up for up, _ in pairs], 1), torch.cat([down for _, down in pairs])
        if config.mode == "add":
            first = next(iter(adapters[0].lora.modules.values()))[0]
            return ErasureLora.from_factors(factors, first.dtype), None
        if config.max_rank is None:
            return ErasureLora.from_factors(factors), None
        return _cut(factors, config.max_rank)


def _cut(factors: Mapping[str, tuple[Tensor, Tensor]], rank: int) -> tuple[ErasureLora, dict]:
    """The nearest edit of a given rank in every layer, and its relative Frobenius errors."""
    small = {m: truncate(*pair, rank) for m, pair in factors.items()}
    losses = [loss for *_, loss in small.values()]
    lora = ErasureLora.from_factors({m: (up, down) for m, (up, down, _) in small.items()})
    return lora, {"max_rank": rank, "mean": sum(losses) / len(losses), "worst": max(losses)}


def compress(lora: ErasureLora, rank: int) -> tuple[ErasureLora, dict]:
    """A file of lower rank with strengths applied and all concepts in one part, and the loss."""
    concepts = list({c.target: c for part in lora.parts() for c in part.concepts}.values())
    small, lost = _cut(lora.modules, rank)
    small.metadata |= lora.metadata
    small._set_parts([one_part(concepts, small)])
    return small, lost


def balance(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with factors of similar norm per rank. Powers of two keep ``up`` exact."""
    ratio = down.norm(dim=1) / up.norm(dim=0)
    power = (
        torch.where((ratio > 0) & torch.isfinite(ratio), ratio, torch.ones_like(ratio)).log2().div(2).round()
    )
    return up * torch.exp2(power), down * torch.exp2(-power)[:, None]


def truncate(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The nearest product of rank ``rank``, by QR of both factors and an SVD of the core.

    Returns:
        up ``[out, k]``, down ``[k, in]``, and the relative Frobenius error.
    """
    if down.shape[0] <= rank:
        return up, down, 0.0
    (left, first), (right, second) = torch.linalg.qr(up.double()), torch.linalg.qr(down.double().T)
    U, values, Vh = torch.linalg.svd(first @ second.T)
    roots = values[:rank].sqrt()
    lost = values[rank:].square().sum() / values.square().sum().clamp_min(1e-300)
    return left @ U[:, :rank] * roots, roots[:, None] * Vh[:rank] @ right.T, lost.sqrt().item()


def parts_of(adapters: Sequence[Adapter], lora: ErasureLora) -> list[Part]:
    """All adapters' parts, with their positions in the fused file."""
    out, at = [], dict.fromkeys(lora.modules, 0)
    for adapter in adapters:
        for part in adapter.parts:
            out.append(
                replace(
                    part, slices={m: slice(at[m] + s.start, at[m] + s.stop) for m, s in part.slices.items()}
                )
            )
        for module, (_, down) in adapter.lora.modules.items():
            at[module] += down.shape[0]
    return out


def one_part(concepts: Sequence[Concept], lora: ErasureLora) -> Part:
    return Part(tuple(concepts), {m: slice(0, down.shape[0]) for m, (_, down) in lora.modules.items()})
