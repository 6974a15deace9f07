"""What two attacks bring back of an erased concept: ``python benchmarks/recoverability.py``.

Erases a concept from a demo model by several methods and attacks every erasure, see :mod:`trace_core.evaluate.recover`.
Results are written after every method, and a run goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

import trace_core
from trace_core import engine
from trace_core.cli.commands import write_text
from trace_core.concepts import parse_concepts
from trace_core.demo import domain, loader
from trace_core.evaluate.recover import recoverability
from trace_core.methods import METHODS, erase

RESULTS = Path(__file__).parent / "results" / "recoverability.json"


def run(name: str, methods: Sequence[str], concept: str, samples: int, steps: int, seed: int, file: Path) -> dict:
    found = engine.load()
    setting = {"seed": seed, "trace_core": trace_core.__version__, "torch": torch.__version__, "engine": found.version,
               "python": platform.python_version(), "threads": torch.get_num_threads()}  # fmt: skip
    data = json.loads(file.read_text()) if file.exists() else {"setting": setting, "results": {}}
    model, clip, vae = loader.load(name)
    concepts, measured = parse_concepts(concept), domain.domain()
    for method in methods:
        key = f"{name}/{method}/{concept}"
        if key in data["results"]:
            continue
        lora = erase(method, model, clip, concepts, domain.keep_list(concepts), {"contexts": domain.CONTEXTS},
                     domain.FINETUNE[name], seed).lora  # fmt: skip
        r = data["results"][key] = recoverability(model, lora, clip, vae, measured, concept, samples, seed, steps)
        write_text(file, json.dumps(data, indent=1) + "\n")
        print(f"{key}: {100 * r['plain']:.0f} %, adversarial rows {100 * r['adversarial_rows']:.0f} %, "
              f"inversion {r['inversion']['curve']}", flush=True)  # fmt: skip
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=loader.MODELS, default="demo-sd")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["projection", "uce", "trace"])
    parser.add_argument("--concept", default="cat")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100, help="of the inversion, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    run(args.model, args.methods, args.concept, args.samples, args.steps, args.seed, args.out)


if __name__ == "__main__":
    main()
