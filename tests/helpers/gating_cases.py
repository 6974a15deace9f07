"""What the tests of erasures in a window share."""

from __future__ import annotations

import torch

from trace_core.backbones import backbone_for
from trace_core.lora import ErasureLora
from trace_core.lora.gating import apply

KINDS = ("sd1", "sdxl", "flux")
SAMPLERS = ("euler", "dpmpp_2m", "dpmpp_2m_sde")
STEPS = 6
NEARLY_ALL = {"start": 0.0, "end": 0.999999}  #: holds every sigma that is sampled, in the gated way
SD_CONVOLUTIONS = ("diffusion_model.input_blocks.1.1.proj_in", "diffusion_model.input_blocks.1.0.in_layers.2")
FLUX_DEEP = (
    "diffusion_model.double_blocks.0.txt_attn.qkv",
    "diffusion_model.double_blocks.1.img_mod.lin",
    "diffusion_model.single_blocks.0.linear1",
)


def some_lora(model, seed: int = 0, rank: int = 3, extra: tuple[str, ...] = (), **metadata) -> ErasureLora:
    """Random factors on every layer that reads text, and on ``extra`` modules."""
    draw = torch.Generator().manual_seed(seed)
    backbone = backbone_for(model)
    factors = {}
    for module in [layer.module for layer in backbone.context_layers() + backbone.pooled_layers()] + list(
        extra
    ):
        weight = model.model.get_submodule(module).weight
        up = torch.randn(weight.shape[0], rank, generator=draw)
        factors[module] = (
            up,
            0.3 * torch.randn(rank, weight[0].numel(), generator=draw) / weight[0].numel() ** 0.5,
        )
    lora = ErasureLora.from_factors(factors)
    lora.metadata.update(metadata)
    return lora


def run(
    tiny, model, sampler: str = "euler", sigmas: torch.Tensor | None = None, seed: int = 0
) -> list[tuple]:
    """Sample by ComfyUI; ``[(x, denoised)]`` of every step as its callback sees them, and the result."""
    import comfy.sample

    positive, negative = (tiny.random_conditioning(model, seed=s) for s in (1, 2))
    latent = torch.zeros(2, model.model.latent_format.latent_channels, 8, 8)
    noise = comfy.sample.prepare_noise(latent, seed)
    steps = []
    done = comfy.sample.sample(
        model,
        noise,
        STEPS,
        4.0,
        sampler,
        "simple",
        positive,
        negative,
        latent,
        disable_pbar=True,
        seed=seed,
        sigmas=sigmas,
        callback=lambda i, denoised, x, n: steps.append((x.clone(), denoised.clone())),
    )
    assert done.isfinite().all()
    return [*steps, (done, done)]


def last(tiny, model, **options) -> torch.Tensor:
    return run(tiny, model, **options)[-1][0]


def sigmas_of(model) -> torch.Tensor:
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)


def percent_before(model, step: int) -> float:
    """A share of the schedule between two sampled steps, ``step - 1`` and ``step``."""
    schedule = model.get_model_object("model_sampling")
    high, low = sigmas_of(model)[step - 1 : step + 1].tolist()
    return next(p / 1000 for p in range(1, 1000) if low < schedule.percent_to_sigma(p / 1000) < high)


def distance(a, b) -> float:
    return (a - b).abs().max().item()


def state_of(model) -> dict:
    """Everything of the shared network that hooks might touch, by identity where there is one."""
    network = model.model
    tables = [n for n in vars(torch.nn.Module()) if n.startswith("_") and "hooks" in n]
    return {
        "modules": [(name, id(m)) for name, m in network.named_modules()],
        "hooks": [
            [(t, list(getattr(m, t).items())) for t in tables if getattr(m, t)] for m in network.modules()
        ],
        "attributes": [sorted(vars(m)) for m in network.modules()],
        "forwards": ["forward" in vars(m) for m in network.modules()],
        "weights": {k: v.sum(dtype=torch.float64).item() for k, v in network.state_dict().items()},
        "options": repr(model.model_options),
    }


def several(model, order):
    """Erasures with strengths and windows of their own, one of them as patches, in the given order."""
    parts = [(0, 1.0, 0.0, 0.6), (1, 0.7, 0.4, 1.0), (2, -0.5, 0.0, 1.0), (3, 1.2, 0.2, 0.7)]
    for i in order:
        seed, *rest = parts[i]
        model = apply(model, some_lora(model, seed), *rest)
    return model
