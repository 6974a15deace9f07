"""One person more, and one fewer, in a file of a hundred: ``python benchmarks/one_more.py``.

A hundred people of demo-people are erased. Then the 101st is added to the file, and taken out again. Every
other person's accuracy is compared with the file of a hundred, on the same prompts and seeds. Fusing both
files, and solving for 101 people anew, stand beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import fmean

import torch
from erasure import ERASABLE

import trace_core
from trace_core import engine
from trace_core.cli.commands import write_text
from trace_core.demo import domain, loader, people, world
from trace_core.evaluate import Evaluator
from trace_core.lora.fusion import FusionConfig, fuse
from trace_core.lora.gating import apply
from trace_core.methods import Eraser
from trace_core.text.concepts import Concept

RESULTS = Path(__file__).parent / "results" / "one_more.json"


def files(model, clip, concepts: list[Concept], newcomer: Concept) -> dict[str, tuple]:
    """Every file and the seconds that making it took from the one before."""
    out = {}

    def made(name: str, make):
        start = time.perf_counter()
        out[name] = make(), time.perf_counter() - start

    solved = lambda what: Eraser("projection").fit(model, clip, what).lora  # noqa: E731
    own = world.defaults("demo-people")
    keep = own.keep_list([*concepts, newcomer])

    def fused(mode: str):
        config = FusionConfig(mode, contexts=own.contexts)
        return fuse(model, clip, [out["hundred"][0], solved([newcomer])], keep, config).lora

    made("hundred", lambda: solved(concepts))
    made("added", lambda: fused("add"))
    made("taken out", lambda: out["added"][0].without(newcomer.target))
    made("fused", lambda: fused("fuse"))
    made("solved anew", lambda: solved([*concepts, newcomer]))
    return out


def compared(found: dict[str, dict], newcomer: str) -> dict:
    """Figures of every file, and how the accuracies of all others moved from the file of a hundred."""
    start, out = found["hundred"]["per_class"], {}
    for name, scores in found.items():
        own = scores["per_class"]
        moved = {p: own[p]["top1"] - start[p]["top1"] for p in own if p != newcomer}
        groups = {"erased": [], "kept": []}
        for person, v in own.items():
            if person != newcomer:
                groups["erased" if person in ERASABLE else "kept"].append(v["top1"])
        out[name] = {k: fmean(v) for k, v in groups.items()} | {
            "newcomer": own[newcomer]["top1"],
            "mean_move": fmean(moved.values()),
            "people_moved": sum(v != 0 for v in moved.values()),
            "drift": scores["drift"]["latent_mse"],
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=3, help="pictures of every person")
    args = parser.parse_args()
    setting = {
        "samples": args.samples,
        "trace_core": trace_core.__version__,
        "torch": torch.__version__,
        "engine": engine.load().version,
    }
    model, clip, vae = loader.load("demo-people")
    evaluator = Evaluator(model, clip, vae, domain.domain("demo-people"), args.samples)
    newcomer = next(name for name in people.people() if name not in ERASABLE)
    concepts = [Concept(name, kind_given="person") for name in ERASABLE]
    scores, sizes = {}, {}
    for name, (lora, seconds) in files(model, clip, concepts, Concept(newcomer, kind_given="person")).items():
        scores[name] = evaluator.evaluate(apply(model, lora), concepts)
        size = sum(f.nbytes for pair in lora.modules.values() for f in pair)
        sizes[name] = {"seconds": seconds, "bytes": size, "rank": lora.rank}
        print(name, sizes[name], flush=True)
    results = {name: r | sizes[name] for name, r in compared(scores, newcomer).items()}
    write_text(RESULTS, json.dumps({"setting": setting, "results": results}, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
