"""What a step costs with an erasure in a window: ``python -m trace_core bench gating --json FILE``, or this
file.

ComfyUI's UNet in SD1.5's shapes, text layers random, all others constant, a batch of two as classifier-free
guidance has it. Measured in two ways, both as a share of the base model's step:

* ``step``: whole steps of each variant in turn, in another order each round, medians; on a busy machine this
tells
  a cost of some percent from none, not less
* ``added``: the edited layers alone on the text's rows, with the gate and without in turn, many times; the
median
  difference over the base model's step

The smaller the latent, the larger the share: the cost depends on the text alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch

import trace_core
from trace_core import engine
from trace_core.backbones import backbone_for
from trace_core.lora import ErasureLora
from trace_core.lora.gating import apply

RESULTS = Path(__file__).resolve().parent / "results"
RANKS = (8, 64)  #: a finetune's, a closed form's of several concepts
TOKENS = 77


def load_unet():
    """A ModelPatcher of the UNet in float32, as ComfyUI computes on a CPU."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("synthetic", Path(__file__).with_name("synthetic.py"))
    synthetic = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(synthetic)
    model, _ = synthetic.sd15()
    model.model.diffusion_model.float()
    model.model.diffusion_model.dtype = torch.float32
    return model


def lora_of(model, rank: int) -> ErasureLora:
    draw = torch.Generator().manual_seed(rank)
    factors = {}
    for layer in backbone_for(model).context_layers():
        out, width = model.model.get_submodule(layer.module).weight.shape
        normal = torch.randn(out + width, rank, generator=draw) / width**0.5
        factors[layer.module] = normal[:out], normal[out:].T
    return ErasureLora.from_factors(factors)


def variants_of(model) -> dict:
    """Name -> model. The window is the second half; ``in`` and ``out`` run on a sigma within it and before
    it.
    """
    out = {"base": (model, "out")}
    for rank in RANKS:
        gated = apply(model, lora_of(model, rank), 1.0, 0.5, 1.0)
        out[f"rank {rank}, in the window"] = (gated, "in")
        out[f"rank {rank}, outside"] = (gated, "out")
    return out


def step(model, sigma: float, x, rows) -> float:
    """Seconds of the process in one model evaluation by way of ComfyUI's wrapper slot."""
    args = {
        "input": x,
        "timestep": torch.full((len(x),), sigma),
        "cond_or_uncond": [0, 1],
        "c": {"c_crossattn": rows, "transformer_options": {}},
    }
    wrapper = model.model_options.get(
        "model_function_wrapper", lambda f, a: f(a["input"], a["timestep"], **a["c"])
    )
    begin = time.process_time()
    wrapper(model.model.apply_model, args)
    return time.process_time() - begin


def added(model, gated, sigma: float, rows, repeats: int = 40) -> float:
    """Seconds that the gate adds to a step: median over pairs of runs of the edited layers alone."""
    layers = [model.model.get_submodule(layer.module) for layer in backbone_for(model).context_layers()]

    def edited_layers(x, t, **c):
        for layer in layers:
            layer(rows)
        return x

    args = {"input": rows, "timestep": torch.full((len(rows),), sigma), "cond_or_uncond": [0, 1], "c": {}}
    gate, pairs = gated.model_options["model_function_wrapper"], []
    for _ in range(repeats):
        begin = time.process_time()
        edited_layers(rows, None)
        middle = time.process_time()
        gate(edited_layers, args)
        pairs.append((time.process_time() - middle) - (middle - begin))
    return statistics.median(pairs)


def measure(model, size: int, rounds: int) -> dict:
    """Figures of one latent size: seconds of every step, ratios of each round, their medians."""
    variants = variants_of(model)
    draw = torch.Generator().manual_seed(0)
    x, rows = torch.randn(2, 4, size, size, generator=draw), torch.randn(2, TOKENS, 768, generator=draw)
    border = model.get_model_object("model_sampling").percent_to_sigma(0.5)
    sigmas = {"in": border / 2, "out": border * 2}
    times = {name: [] for name in variants}
    with torch.inference_mode():
        for variant, where in variants.values():  # the first run of each casts factors
            step(variant, sigmas[where], x[..., :8, :8], rows)
        for i in range(rounds):
            names = list(variants)[i % len(variants) :] + list(variants)[: i % len(variants)]
            for name in names:
                times[name].append(step(variants[name][0], sigmas[variants[name][1]], x, rows))
    base = times.pop("base")
    out = {
        "latent": size,
        "rounds": rounds,
        "base_seconds": statistics.median(base),
        "base_all": base,
        "variants": {},
    }
    for name, seconds in times.items():
        ratios, middle = [a / b for a, b in zip(seconds, base, strict=True)], statistics.median(seconds)
        with torch.inference_mode():
            extra = added(model, variants[name][0], sigmas[variants[name][1]], rows)
        out["variants"][name] = {
            "seconds": middle,
            "ratio_of_medians": middle / out["base_seconds"],
            "median_of_ratios": statistics.median(ratios),
            "added_seconds": extra,
            "added_share": extra / out["base_seconds"],
            "all": seconds,
        }
    return out


def run(sizes: dict[int, int] | None = None) -> dict:
    """All of it; returns what ``--json`` writes.

    Args:
        sizes: edge of the latent -> rounds. 64 is a picture of 512 pixels.
    """
    found = engine.load(cpu=True)
    begin, model, results = time.perf_counter(), load_unet(), []
    for size, rounds in (sizes or {16: 7}).items():
        results.append(measure(model, size, rounds))
        print(
            f"latent {size} x {size}, batch 2: {results[-1]['base_seconds']:.2f} s a step without an erasure"
        )
        for name, r in results[-1]["variants"].items():
            print(
                f"  {name:24} steps {100 * (r['ratio_of_medians'] - 1):+.1f} %, added "
                f"{1000 * r['added_seconds']:.2f} ms, {100 * r['added_share']:.3f} %",
                flush=True,
            )
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "engine": found.version,
        "trace_core": trace_core.__version__,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "model": "UNet in SD1.5's shapes, float32, CPU",
        "layers": len(backbone_for(model).context_layers()),
        "batch": 2,
        "tokens": TOKENS,
        "clock": "cpu time of the process",
        "seconds_in_all": round(time.perf_counter() - begin, 1),
        "results": results,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS / "gating.json")
    parser.add_argument(
        "--sizes", nargs="+", default=["16:7"], metavar="LATENT:ROUNDS", help="64:3 takes minutes"
    )
    args = parser.parse_args(argv)
    data = run({int(s): int(n) for s, n in (entry.split(":") for entry in args.sizes)})
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(data, indent=1) + "\n")
    print(f"wrote {args.json}")


if __name__ == "__main__":
    main()
