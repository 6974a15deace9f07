"""How fast the closed form is: ``python -m trace_core bench closed-form --json FILE``, or this file itself.

Ours is the library's own path (``collect``, ``solve``, ``export``) on the same rows, weights and lambda as
the published way (MACE, arXiv 2403.06135, eq. 2; UCE, arXiv 2308.14761, eq. 7, written here from the papers):
every matrix accumulates its own two sums, prompt by prompt, in float32, and takes a dense inverse. It is
timed in three forms:

* ``batched``: the two sums as batched matrix products, one product a prompt; the figures' baseline
* ``loop``: one product a prompt, each added in place; stronger than anything published
* ``outer``: an outer product for every token, summed, as the released code has it; timed on one prompt and
scaled

Making the text rows and pairing them is not timed on either side. They are synthetic, with what matters of
CLIP's: a constant start row with giant numbers, a large common part, equal rows where prompts begin alike,
pads that carry the concept and differ a little by position, and a full, slowly decaying spectrum (nothing is
of low rank).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import torch

import trace_core
from trace_core import engine
from trace_core.backbones import backbone_for
from trace_core.backbones.base import CONTEXT, POOLED
from trace_core.text.templates import EVERYDAY

sys.path.insert(0, str(Path(__file__).parent))  # the command line loads this file by its path
from closed_form_sides import (  # noqa: E402
    MORE,
    concepts,
    difference,
    one_of_each,
    ours,
    outer_products,
    published,
    scaled,
)
from synthetic import Clock, Matrices, SyntheticText, sd15  # noqa: E402

RESULTS = Path(__file__).parent / "results"
FEW_KEPT = EVERYDAY[1:6]  #: 5 entries, 30 prompts
SCALING = (
    "seconds of a matrix of each size, times their number; sums of concepts_timed, times concepts / "
    "concepts_timed"
)


def layers_of(backbone) -> dict[str, torch.Tensor]:
    return {layer.module: weight for layer, weight in backbone.weights() if layer.stream == CONTEXT}


def materialise(layers: dict, mine: dict) -> float:
    """Seconds for the dense weights ``W + up down``, float32, as the published way ends with them; one of
    each size, scaled.
    """
    seconds = {}
    for name, weight in one_of_each(layers).items():
        begin, (up, down) = Clock.now(), mine["lora"].modules[name]
        torch.addmm(weight, up.float(), down.float())
        seconds[name] = Clock.now() - begin
    return scaled(seconds, layers)


def record(mine: dict, count: int, kept, model_bytes: int | None = None) -> dict:
    """What is written of a run of ours."""
    part = mine["sums"][CONTEXT]
    templates = 18 + len(MORE)
    out = {
        "concepts": count,
        "templates": templates,
        "prompts": count * templates,
        "erased_rows": part.count,
        "keep_entries": len(kept),
        "keep_rows": part.keep.count,
        "policy": mine["config"].policy,
        "rank": mine["edits"][CONTEXT].rank,
        "seconds": {k: round(v, 4) for k, v in mine["seconds"].items()},
        "peak_increase_bytes": mine["peak_bytes"],
        "largest_residual": mine["residual"],
    }
    if model_bytes and mine["peak_bytes"] is not None:
        out["peak_of_model"] = round(1 + mine["peak_bytes"] / model_bytes, 4)
    return out


def against(
    mine: dict, layers: dict, chosen: dict, text, erased, kept, forms=("batched", "loop"), share=None
) -> dict:
    """Time the published way on the matrices ``chosen`` (and ``share`` of the concepts) and scale to all."""
    out = {
        "matrices_timed": len(chosen),
        "matrices": len(layers),
        "concepts_timed": share or len(erased),
        "scaling": SCALING,
    }
    edit = mine["seconds"]["edit"]
    for form in forms:
        base = published(chosen, text, erased, kept, mine, form, share=share)
        seconds = scaled(base["seconds"], layers)
        out[form] = {"seconds": round(seconds, 3), "ratio": round(seconds / edit, 1)}
        if base["changes"]:
            out[form]["relative_difference_float32"] = difference(mine, layers, base["changes"])
    out["baseline_prompts"] = base["prompts"]
    seconds = outer_products(layers, text, base["prompts"])
    out["outer"] = {"seconds": round(seconds, 1), "ratio": round(seconds / edit, 1)}
    dense = materialise(layers, mine)
    out["dense_weights_seconds"] = round(dense, 4)
    out["ratio_with_dense_weights"] = round(out["batched"]["seconds"] / (edit + dense), 1)
    return out


def median(runs: list[dict]) -> dict:
    return sorted(runs, key=lambda r: r["seconds"]["edit"])[len(runs) // 2]


def bench_sd15(say, many: int) -> dict:
    """1, 5, 100 and ``many`` concepts on SD1.5's UNet."""
    patcher, size = sd15()
    backbone, text = backbone_for(patcher), SyntheticText(768)
    layers = layers_of(backbone)
    some, out = one_of_each(layers), {"matrices": len(layers), "model_bytes": size, "dtype": "float16"}
    smallest = dict([min(some.items(), key=lambda item: len(item[1]))])
    ours(backbone, text, concepts(1), FEW_KEPT)  # warm-up
    for name, count, kept, repeats, chosen, share, exact in (
        ("1", 1, FEW_KEPT, 5, layers, None, some),
        ("1, the library's own keep set", 1, EVERYDAY, 3, some, None, smallest),
        ("5", 5, FEW_KEPT, 3, some, None, smallest),
        ("100", 100, FEW_KEPT, 1, some, 4, smallest),
    ):
        erased = concepts(count)
        mine = median([ours(backbone, text, erased, kept) for _ in range(repeats)])
        forms = ("batched", "loop") if kept is FEW_KEPT else ("batched",)
        out[name] = record(mine, count, kept, size) | against(
            mine, layers, chosen, text, erased, kept, forms, share
        )
        changes = published(exact, text, erased, kept, mine, "loop", torch.float64)["changes"]
        out[name]["relative_difference_float64"] = difference(mine, layers, changes)
        say("SD1.5", name, out[name])
    for name, count, options in (
        ("100, an anchor each", 100, {"anchors": True}),
        ("1, projection", 1, {}),
        ("100, projection", 100, {}),
    ):
        policy = {"policy": "projection"} if "projection" in name else {}
        mine = ours(backbone, text, concepts(count, **options), FEW_KEPT, **policy)
        out[name] = record(mine, count, FEW_KEPT, size)
        say("SD1.5", name, out[name])
    out[f"{many}"] = thousand(backbone, text, many, size)
    say("SD1.5", f"{many}", out[f"{many}"])
    return out


def thousand(backbone, text, many: int, size: int) -> dict:
    """The long run, with the progress that a caller sees."""
    begin, seen = Clock.now(), []

    def progress(phase, done, total):
        if phase == "encode concepts" and done % max(1, total // 10) == 0:
            seen.append([done, round(Clock.now() - begin, 2)])
            print(f"  {phase} {done}/{total}, {seen[-1][1]:.1f} s (with the making of rows)", flush=True)

    mine = ours(backbone, text, concepts(many), FEW_KEPT, progress)
    return record(mine, many, FEW_KEPT, size) | {"progress": seen}


def bench_wide(say) -> dict:
    """One concept at SDXL's and FLUX's real widths. FLUX has one matrix a stream: nothing is shared there."""
    out = {}
    for name, backbone, text, kept in (
        (
            "SDXL",
            Matrices([(CONTEXT, 20, 640, 2048), (CONTEXT, 120, 1280, 2048)]),
            SyntheticText(2048),
            FEW_KEPT,
        ),
        (
            "FLUX",
            Matrices([(CONTEXT, 1, 3072, 4096), (POOLED, 1, 3072, 768)]),
            SyntheticText(4096, 256, bidirectional=True, pooled=768),
            FEW_KEPT[:1],
        ),
    ):
        layers, erased = layers_of(backbone), concepts(1)
        mine = ours(backbone, text, erased, kept, report=False)
        some = one_of_each(layers)
        out[name] = record(mine, 1, kept) | against(mine, layers, some, text, erased, kept, ("batched",))
        say(name, "1", out[name])
        del mine
        projected = ours(backbone, text, erased, kept, report=False, policy="projection")
        out[f"{name}, projection"] = record(projected, 1, kept)
        say(name, "1, projection", out[f"{name}, projection"])
    return out


HEAD = ("model", "concepts", "ours, s", "batched, s", "ratio", "loop ratio", "outer ratio", "peak")


def row(model: str, name: str, r: dict) -> list[str]:
    def figure(form, key, places=0):
        return f"{r[form][key]:.{places}f}" + ("x" if key == "ratio" else "") if form in r else "–"

    peak = f"{r['peak_of_model']:.3f}x" if "peak_of_model" in r else "–"
    return [
        model,
        name,
        f"{r['seconds']['edit']:.2f}",
        figure("batched", "seconds", 1),
        figure("batched", "ratio"),
        figure("loop", "ratio"),
        figure("outer", "ratio"),
        peak,
    ]


def run(many: int = 1000, cpu_time: bool = False, wide: bool = True) -> dict:
    """All of it; returns what ``--json`` writes.

    Args:
        many: concepts of the long run.
        cpu_time: one thread, and the process's own time: for a machine whose cores do other work too.
        wide: SDXL's and FLUX's widths as well.
    """
    found = engine.load(cpu=True)
    if cpu_time:
        torch.set_num_threads(1)
        Clock.now = staticmethod(time.process_time)
    begin, rows = time.perf_counter(), []
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None

    def say(model, name, result):
        if not rows:
            print("".join(f"{h:<14}" if i != 1 else f"{h:<30}" for i, h in enumerate(HEAD)))
        rows.append(row(model, name, result))
        print("".join(f"{c:<14}" if i != 1 else f"{c:<30}" for i, c in enumerate(rows[-1])), flush=True)

    with torch.inference_mode():
        results = {"sd15": bench_sd15(say, many)} | (bench_wide(say) if wide else {})
    table = [HEAD, ["---"] * len(HEAD), *rows]
    note = (
        "`ours` is rows to LoRA factors, rows made and paired before, on either side; measuring every "
        "layer for the report comes on top. `batched` is the published way (own sums and dense inverse for "
        "every matrix, float32); `loop` the same with in-place products; `outer` as the released code has "
        "it, scaled from one prompt. `peak` is the model's memory and the largest increase during the "
        "edit, over the model's memory."
    ) + (" Times are the process's own, of one thread: the cores did other work too." if cpu_time else "")
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "engine": found.version,
        "trace_core": trace_core.__version__,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "load_at_start": load,
        "cores_were_shared": load is not None and load > 0.5,
        "clock": "cpu time of the process" if cpu_time else "wall",
        "seconds_in_all": round(time.perf_counter() - begin, 1),
        "results": results,
        "markdown": "\n".join("| " + " | ".join(r) + " |" for r in table) + "\n\n" + note,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS / "closed_form.json")
    parser.add_argument("--many", type=int, default=1000, help="concepts of the long run")
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread and its own time, where cores are shared"
    )
    parser.add_argument("--no-wide", action="store_true", help="leave out SDXL's and FLUX's widths")
    args = parser.parse_args(argv)
    data = run(args.many, args.cpu_time, not args.no_wide)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(data, indent=1) + "\n")
    print(f"wrote {args.json}")


if __name__ == "__main__":
    main()
