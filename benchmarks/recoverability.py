"""What an erasure takes, and what two attacks bring back of it: ``python benchmarks/recoverability.py``.

Erases a concept from the demo models by every method, in processor time of one thread, and attacks every
erasure, see :mod:`trace_core.evaluate.recover`. Results are written after every method, and a run goes on
where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import trace_core
from trace_core import engine
from trace_core.cli.commands import write_text
from trace_core.demo import domain, loader
from trace_core.evaluate.recover import recoverability
from trace_core.methods import METHODS, Eraser

sys.path.insert(0, str(Path(__file__).parent))
from erasure import VARIANTS, concepts_of  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "recoverability.json"


def run(
    name: str,
    methods: Sequence[str],
    concept: str,
    samples: int,
    steps: int,
    every: int,
    seed: int,
    file: Path,
) -> dict:
    found = engine.load()
    setting = {
        "seed": seed,
        "trace_core": trace_core.__version__,
        "torch": torch.__version__,
        "engine": found.version,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    data = json.loads(file.read_text()) if file.exists() else {"setting": setting, "results": {}}
    model, clip, vae = loader.load(name)
    measured = domain.domain()
    for method in methods:
        key = f"{name}/{method}/{concept}"
        if key in data["results"]:
            continue
        concepts = concepts_of(method, measured.locate(concept)[0], concept)
        plain, options, _ = VARIANTS.get(method, (method, {}, None))
        start = time.process_time()
        result = Eraser(plain, seed=seed, finetune=options).fit(model, clip, concepts)
        spent = {
            "erase_cpu_seconds": time.process_time() - start,
            "evaluations": result.report.get("evaluations", 0),
        }
        r = data["results"][key] = spent | recoverability(
            model, result.lora, clip, vae, measured, concept, samples, seed, steps, every
        )
        write_text(file, json.dumps(data, indent=1) + "\n")
        print(
            f"{key}: {100 * r['plain']:.0f} %, adversarial rows {100 * r['adversarial_rows']:.0f} %, "
            f"inversion {r['inversion']['curve']}, {r['erase_cpu_seconds']:.0f} s",
            flush=True,
        )
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=loader.MODELS, default=list(loader.MODELS))
    parser.add_argument(
        "--methods", nargs="+", choices=[*METHODS, "ant-saliency"], default=[*METHODS, "ant-saliency"]
    )
    parser.add_argument("--concept", default="cat")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60, help="of the inversion, at most")
    parser.add_argument("--every", type=int, default=2, help="steps of the inversion until the judge looks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for model in args.models:
        run(model, args.methods, args.concept, args.samples, args.steps, args.every, args.seed, args.out)


if __name__ == "__main__":
    main()
