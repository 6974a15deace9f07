"""The memory and the speed of a training step on real shapes with random weights; used by ``finetune.py``.

On a CPU each figure is the largest increase of the resident memory of a process of its own; on CUDA the
allocator's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from trace_core import engine
from trace_core.backbones import Backbone, backbone_for
from trace_core.finetune.adapters import attached
from trace_core.finetune.gradients import checkpointed, saved_apart, training_mode
from trace_core.finetune.objectives.base import squared_error

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import peak_memory  # noqa: E402

LATENT = 64  #: edge of the latents: pictures of 512 pixels
RANK = 8
MODES = ("inference", "training", "training, checkpointed")
COPIES = 4  #: of every trained number: itself, its gradient and Adam's two moments

_UNET = {"use_checkpoint": False, "image_size": 32, "use_spatial_transformer": True, "legacy": False,
         "in_channels": 4, "out_channels": 4, "model_channels": 320, "use_temporal_resblock": False,
         "use_temporal_attention": False}  # fmt: skip
_FLUX = {"image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "mlp_ratio": 4.0,
         "theta": 10000, "qkv_bias": True, "guidance_embed": True}  # fmt: skip

#: Name -> ComfyUI's family, its network's configuration, rows of text
SHAPES: dict[str, tuple[str, dict, int]] = {
    "SD1.5": ("SD15", {
        **_UNET, "adm_in_channels": None, "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3,
        "transformer_depth_middle": 1, "use_linear_in_transformer": False, "context_dim": 768}, 77),
    "SDXL": ("SDXL", {
        **_UNET, "num_classes": "sequential", "adm_in_channels": 2816, "num_res_blocks": [2] * 3,
        "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10,
        "use_linear_in_transformer": True, "context_dim": 2048}, 77),
    "FLUX.1-dev": ("Flux", {
        **_FLUX, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072, "num_heads": 24, "depth": 19,
        "depth_single_blocks": 38, "axes_dim": [16, 56, 56]}, 256),
    "FLUX, a quarter as wide": ("Flux", {
        **_FLUX, "vec_in_dim": 768, "context_in_dim": 1024, "hidden_size": 768, "num_heads": 12, "depth": 4,
        "depth_single_blocks": 8, "axes_dim": [16, 24, 24]}, 256),
}  # fmt: skip
REAL = ("SD1.5", "SDXL", "FLUX.1-dev")
ON_CPU = ("FLUX, a quarter as wide", "SD1.5")


# ------------------------------------------------------------------------------------------------ models


def build(name: str, device: torch.device, dtype: torch.dtype):
    """A ModelPatcher of that shape on the device; random weights, made there."""
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    family, network, _ = SHAPES[name]
    config = getattr(comfy.supported_models, family)(dict(network))
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, device=torch.device("meta"))
    model.diffusion_model.to_empty(device=device).requires_grad_(False)
    with torch.no_grad():
        for p in model.diffusion_model.parameters():
            p.normal_(std=p[0].numel() ** -0.5) if p.ndim > 1 else p.fill_(1.0)
    return ModelPatcher(model, load_device=device, offload_device=device)


def inputs(name: str, backbone: Backbone, batch: int, edge: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Random latents, their noise level, and random text in the place of an encoder's."""
    network, rows = SHAPES[name][1:]
    draw = lambda *shape: torch.randn(batch, *shape, device=backbone.device)  # noqa: E731
    condition = {"c_crossattn": draw(rows, network.get("context_dim") or network["context_in_dim"])}
    pooled = network.get("vec_in_dim") or network.get("adm_in_channels")
    condition |= {"y": draw(pooled)} if pooled else {}
    level = lambda value: torch.full((batch,), value, device=backbone.device)  # noqa: E731
    condition |= {"guidance": level(3.0)} if network.get("guidance_embed") else {}
    sigma = level(backbone.sigma_at(0.5))
    return draw(*backbone.latent_shape(8 * edge, 8 * edge)), sigma, condition


@contextmanager
def stepping(name: str, backbone: Backbone, mode: str, batch: int):
    """Yields ``step(edge)``, an evaluation without gradients or a training step, and the bytes of what is
    trained.
    """
    if mode == "inference":
        with torch.no_grad():
            yield lambda edge: backbone.predict(*inputs(name, backbone, batch, edge)), 0
        return
    network = backbone.network
    blocks = checkpointed(network, backbone.blocks()) if mode.endswith("checkpointed") else nullcontext()
    adapted = attached(backbone, backbone.lora_targets("text"), RANK)
    with training_mode(backbone.engine), adapted as adapters, blocks, saved_apart(network):
        parameters = adapters.parameters()
        optimiser = torch.optim.AdamW(parameters, lr=1e-4)
        for p in parameters:
            p.grad = torch.zeros_like(p)
        optimiser.step()  # the moments are there from the second step on, beside the activations

        def step(edge: int) -> None:
            x, sigma, condition = inputs(name, backbone, batch, edge)
            optimiser.zero_grad(set_to_none=True)
            squared_error(backbone.predict(x, sigma, condition), torch.randn_like(x), sigma).mean().backward()
            optimiser.step()

        yield step, COPIES * sum(p.nbytes for p in parameters)


# ------------------------------------------------------------------------------------------------ memory on a
# CPU


def measure(name: str, mode: str) -> dict:
    """One mode in this process: bytes of the weights, of what is trained, and the largest increase during
    a step.
    """
    engine.load(cpu=True)
    backbone = backbone_for(build(name, torch.device("cpu"), torch.float32))
    with stepping(name, backbone, mode, 1) as (step, _):
        step(8)  # what is imported and allocated once
    with peak_memory() as memory:
        with stepping(name, backbone, mode, 1) as (step, trained):
            begin = time.perf_counter(), time.process_time()
            step(LATENT)
            seconds = [round(now - b, 2) for now, b in zip((time.perf_counter(), time.process_time()), begin)]
    weights = sum(p.nbytes for p in backbone.network.parameters())
    return {
        "weights": weights,
        "trained": trained,
        "increase": memory["bytes"],
        "activations": memory["bytes"] - trained,
        "wall_seconds": seconds[0],
        "cpu_seconds": seconds[1],
    }


def memory(say=print) -> dict:
    """Every mode of the shapes that a CPU can train, batch 1, each in a process of its own.

    Freed blocks of a megabyte and more go back to the system at once there, so that the increase is what is
    in use.
    """
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 20),
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(engine.PACK_ROOT), environment.get("PYTHONPATH", "")])
    out = {}
    for name in ON_CPU:
        out[name] = {}
        for mode in MODES:
            command = [sys.executable, __file__, name, mode, str(torch.get_num_threads())]
            text = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            r = out[name][mode] = json.loads(text.splitlines()[-1])
            say(
                f"{name}, {mode}: weights {r['weights'] >> 20} MB, activations {r['activations'] >> 20} MB, "
                f"trained {r['trained'] >> 20} MB, {r['cpu_seconds']} s"
            )
        plain, twice = (out[name][mode]["activations"] for mode in MODES[1:])
        out[name]["activations_ratio"] = round(plain / twice, 2)
    return out


# ----------------------------------------------------------------------------------------- real sizes on CUDA


def timed(name: str, backbone: Backbone, mode: str, batch: int, edge: int, steps: int) -> dict:
    """Steps per second and the allocator's peak, weights included; None where memory did not suffice."""
    cuda = backbone.device.type == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    try:
        with stepping(name, backbone, mode, batch) as (step, trained):
            for _ in range(2):
                step(edge)
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            wait()
            begin = time.perf_counter()
            for _ in range(steps):
                step(edge)
            wait()
            seconds = time.perf_counter() - begin
    except torch.OutOfMemoryError:
        return {"steps_per_second": None, "peak": None}
    return {
        "steps_per_second": round(steps / seconds, 3),
        "trained": trained,
        "peak": torch.cuda.max_memory_allocated() if cuda else None,
    }


def sizes(
    device: str = "cuda", names=REAL, batch: int = 4, edge: int = LATENT, steps: int = 10, say=print
) -> dict:
    """The real models' shapes in bfloat16."""
    out = {"batch": batch, "pixels": 8 * edge, "dtype": "bfloat16", "models": {}}
    if device == "cuda":
        out["device"] = torch.cuda.get_device_name()
    for name in names:
        backbone = backbone_for(build(name, torch.device(device), torch.bfloat16))
        found = {mode: timed(name, backbone, mode, batch, edge, steps) for mode in MODES}
        out["models"][name] = {"weights": sum(p.nbytes for p in backbone.network.parameters()), **found}
        say(f"{name}: " + json.dumps(out["models"][name]))
        del backbone
        if device == "cuda":
            torch.cuda.empty_cache()
    return out


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    print(json.dumps(measure(sys.argv[1], sys.argv[2])))
