"""What the tests of the erasure file share."""

from __future__ import annotations

import torch

from trace_core.lora.erasure import ErasureLora

A, B = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k", "diffusion_model.txt_in"


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(rank: int = 3, metadata: dict | None = None) -> ErasureLora:
    lora = ErasureLora.from_factors(
        {A: (noise(8, rank), noise(rank, 6, seed=1)), B: (noise(4, rank, seed=2), noise(rank, 5, seed=3))}
    )
    lora.metadata.update(metadata or {})
    return lora
