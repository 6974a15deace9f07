"""How fast the fusion is: ``python benchmarks/fusion.py`` (for quiet figures: two idle cores, no other work).

A hundred adapters of rank 4 with random factors, one concept each, on a UNet of SD1.5's shapes (32 matrices
that read 768 numbers), through :func:`trace_core.lora.fusion.fuse` itself, from the adapters to the float16
factors with the report. Making the text rows is the text encoder's work and not counted; they are the
synthetic ones of the closed form's benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import torch

import trace_core
from trace_core import engine
from trace_core.backbones import backbone_for
from trace_core.lora import ErasureLora, fusion
from trace_core.text.templates import EVERYDAY, TEMPLATES

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import SyntheticText, peak_memory, sd15  # noqa: E402

RESULTS = Path(__file__).parent / "results"
#: modules, to take their clock and encoder
FUSE, CONFIG = (import_module(f"trace_core.lora.fusion.{name}") for name in ("fuse", "config"))
KEPT = EVERYDAY[1:21]  #: 20 entries, 120 prompts


def adapters(backbone, count: int, rank: int) -> list[ErasureLora]:
    """Random factors on every layer that reads text, one concept each."""
    draw, out = torch.Generator().manual_seed(0), []
    layers = [(layer.module, weight.shape) for layer, weight in backbone.weights()]
    for number in range(count):
        factors = {
            m: (torch.randn(o, rank, generator=draw) / 30, torch.randn(rank, d, generator=draw) / 30)
            for m, (o, d) in layers
        }
        lora = ErasureLora.from_factors(factors)
        lora.metadata["trace.concepts"] = json.dumps(
            [[f"concept{number}" if number % 2 else f"big concept{number}", "", 1.0]]
        )
        out.append(lora)
    return out


def once(patcher, text: SyntheticText, loras: list[ErasureLora], **options) -> dict:
    """One fusion: seconds in all without the making of rows, and by phase; memory; size of the result."""
    kept, made = list(KEPT), FUSE.TextEncoder
    FUSE.TextEncoder = lambda clip: clip  # the stand-in is a text encoder already
    try:
        with peak_memory() as memory:
            result = fusion.fuse(patcher, text, loras, kept, fusion.FusionConfig(**options))
    finally:
        FUSE.TextEncoder = made
    report, seconds = result.report, result.report["seconds"]
    size = sum(f.nbytes for pair in result.lora.modules.values() for f in pair)
    context = report["streams"]["context"]
    return {
        "adapters": len(loras),
        "rank_of_each": loras[0].rank,
        "keep_entries": len(kept),
        "options": options,
        "seconds": round(seconds["all"] - seconds["rows"], 3),
        "rows": round(seconds["rows"], 3),
        "phases": {k: round(v, 3) for k, v in seconds.items() if k not in ("rows", "all")},
        "rank": result.lora.rank,
        "layers": len(result.lora.modules),
        "file_bytes": size,
        "peak_increase_bytes": memory["bytes"],
        "residual": {k: round(v["residual_mean"], 4) for k, v in context.items()},
        "keep_change": {k: round(v["keep_change"], 4) for k, v in context.items()},
        "truncation": report["truncation"],
    }


def run(counts=(10, 100), rank: int = 4, cpu_time: bool = False) -> dict:
    """Returns what ``--json`` writes.

    Args:
        cpu_time: one thread, and the process's own time: for a machine whose cores do other work too.
    """
    if cpu_time:
        torch.set_num_threads(1)
        FUSE.time = CONFIG.time = SimpleNamespace(perf_counter=time.process_time)
    found = engine.load(cpu=True)
    load = os.getloadavg()[0]
    with torch.inference_mode():
        patcher, size = sd15()
        backbone, text, results = backbone_for(patcher), SyntheticText(768), {}
        loras = adapters(backbone, max(counts), rank)
        once(patcher, text, loras[:2])  # warm-up
        cases = [(str(n), n, {}) for n in counts] + [
            (f"{counts[-1]}, mu 0.5", counts[-1], {"integration": 0.5}),
            (f"{counts[-1]}, cut to rank 128", counts[-1], {"max_rank": 128}),
        ]
        for name, count, options in cases:
            results[name] = once(patcher, text, loras[:count], **options)
            print(f"{name:<24} {results[name]['seconds']:6.2f} s  {results[name]['phases']}", flush=True)
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "engine": found.version,
        "trace_core": trace_core.__version__,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "load_at_start": load,
        "cores_were_shared": load > 0.5,
        "clock": "cpu time of the process" if cpu_time else "wall",
        "model_bytes": size,
        "matrices": len(backbone.context_layers()),
        "width": 768,
        "templates": len(TEMPLATES["object"]),
        "results": results,
    }


def demo(erased=("cat", "dog", "truck"), more: str = "twitter style") -> dict:
    """On demo-sd: what a fused file's concepts do on their own prompts, before another is fused in, with it,
    and without it again.

    Relative differences of the responses ``dW c`` of all layers, over rows c of a few prompts.
    """
    from trace_core.closed_form import ClosedFormConfig, erase
    from trace_core.demo import domain, loader
    from trace_core.text.concepts import Concept
    from trace_core.text.encoding import TextEncoder
    from trace_core.text.grammar import parse_concepts

    model, clip, _ = loader.load("demo-sd")
    backbone, encoder = backbone_for(model), TextEncoder(clip)

    def projection(concept: str) -> ErasureLora:
        concepts = parse_concepts(concept)
        return erase(
            model, clip, concepts, domain.keep_list(concepts), ClosedFormConfig(contexts=domain.CONTEXTS)
        ).lora

    def fused(loras, names) -> ErasureLora:
        config = fusion.FusionConfig(contexts=domain.CONTEXTS)
        return fusion.fuse(model, clip, loras, domain.keep_list([Concept(n) for n in names]), config).lora

    def moved(lora: ErasureLora, base: ErasureLora, concept: str) -> float:
        templates = ("{}", "a photo of a {}", "a {} on a red background")
        rows = torch.cat([encoder.encode(t.format(concept), concept).embeddings[1:] for t in templates])
        new, old = (
            torch.cat([rows @ x.delta(layer.module).T for layer in backbone.context_layers()], 1)
            for x in (lora, base)
        )
        return round(((new - old).norm() / old.norm()).item(), 4)

    alone = {name: projection(name) for name in (*erased, more)}
    first = fused([alone[n] for n in erased], erased)
    second = fused([first, alone[more]], (*erased, more))
    whole = fused(list(alone.values()), (*erased, more))
    figures = {
        "fused, from its own": {n: moved(first, alone[n], n) for n in erased},
        f"with '{more}', from before": {n: moved(second, first, n) for n in erased},
        "without it again, from before": {n: moved(second.without(more), first, n) for n in erased},
        f"with '{more}', from its own": {n: moved(second, alone[n], n) for n in alone},
        "all at once, from its own": {n: moved(whole, alone[n], n) for n in alone},
    }
    for name, values in figures.items():
        print(f"{name:<34} " + ", ".join(f"{n} {100 * v:.1f} %" for n, v in values.items()))
    return figures


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS / "fusion.json")
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[10, 100], help="how many adapters are fused"
    )
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread and its own time, where cores are shared"
    )
    parser.add_argument(
        "--demo", action="store_true", help="only what a concept more does to the others, on demo-sd"
    )
    args = parser.parse_args(argv)
    if args.demo:
        engine.load(cpu=True)
        data = json.loads(args.json.read_text()) if args.json.exists() else {}
        data["demo"] = demo()
    else:
        data = {
            **run(tuple(args.counts), cpu_time=args.cpu_time),
            "demo": json.loads(args.json.read_text()).get("demo") if args.json.exists() else None,
        }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(data, indent=1) + "\n")
    print(f"wrote {args.json}")


if __name__ == "__main__":
    main()
