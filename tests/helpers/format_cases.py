"""What the tests of file formats share."""

from __future__ import annotations

import torch

from trace_core.finetune import FinetuneConfig
from trace_core.lora import ErasureLora

FLOAT8 = ("fp8 e4m3", "fp8 e5m2", "fp8 e4m3 by option", "fp8 e4m3 fast", "scaled fp8")
QUANTISED = ("mixed fp8", "int8", "mxfp8", "nvfp4")
GGUF = ("Q8_0", "Q4_K", "Q8_0 everything")
FORMATS = (*FLOAT8, *QUANTISED, *GGUF)
KEY = "diffusion_model.txt_in.weight"
BLOCK = "diffusion_model.double_blocks.0.txt_attn.qkv.weight"

SMALL = FinetuneConfig(
    steps=2,
    batch=4,
    trajectories=1,
    keep_trajectories=1,
    refresh=2,
    sampling_steps=2,
    cfg=1.0,
    rank=2,
    lr=0.01,
    width=32,
    height=32,
    window=(0.2, 1.0),
    eta=0.5,
    scope="text",
)


def some_lora(size: float = 1.0, seed: int = 0) -> ErasureLora:
    """An edit of rank 2 of both ways in and of a block, about a tenth of the weights where ``size`` is 1."""
    generator, shapes = (
        torch.Generator().manual_seed(seed),
        {"txt_in": 256, "vector_in.in_layer": 256, BLOCK[16:-7]: 768},
    )
    return ErasureLora.from_factors(
        {
            f"diffusion_model.{name}": (
                0.06 * size * torch.randn(out, 2, generator=generator),
                0.06 * torch.randn(2, 256, generator=generator),
            )
            for name, out in shapes.items()
        }
    )


def conditioning() -> list:
    generator = torch.Generator().manual_seed(2)
    rows, pooled = torch.randn(1, 5, 256, generator=generator), torch.randn(1, 256, generator=generator)
    return [[rows, {"pooled_output": pooled, "guidance": 3.0}]]


def by_stock_loader(model, lora):
    import comfy.lora

    clone = model.clone()
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    clone.add_patches(comfy.lora.load_lora(lora.state_dict(), keys), 1.0)
    assert len(clone.patches) == len(lora.modules)
    return clone


def fitting(bench, tiny, fmt, folder, family, hidden=None):
    """A model whose text widths are those of a family's text encoder; Q4_K needs widths that divide by
    256.
    """
    widths = {k: family.options[k] for k in ("context_dim", "pooled_dim")}
    return bench.load(tiny, fmt, folder, **widths, hidden=hidden or (256 if fmt in GGUF else 64))
