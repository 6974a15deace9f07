"""What attacks bring back of an erasure: ``python benchmarks/recoverability.py``.

Erases a concept from the demo models by every method, in processor time of one thread, and runs the attacks
of :mod:`trace_core.evaluate.attacks` on every erasure. Results are written after every attack, under
``model/method/concept``, and a run goes on where the last one stopped. An erasure is made again for the
attacks that are missing; it has the same seed, so it is the same file.
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
from trace_core.cli.attacking import table
from trace_core.cli.commands import write_text
from trace_core.demo import domain, loader
from trace_core.evaluate.attacks import ATTACKS, attack, names_of
from trace_core.methods import METHODS, Eraser

sys.path.insert(0, str(Path(__file__).parent))
from erasure import VARIANTS, concepts_of  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "attacks.json"
METHODS_HERE = [*METHODS, "ant-saliency", "projection-robust", "trace-robust", "trace-adversarial"]


def erased(method: str, concept: str, seed: int, opened: tuple, measured) -> tuple[object, dict]:
    """The erasure of a concept by a method, and what it took."""
    model, clip, _ = opened
    concepts = concepts_of(method, measured.locate(concept)[0], concept)
    plain, options = VARIANTS.get(method, (method, {}))
    start = time.process_time()
    result = Eraser(plain, seed=seed, **options).fit(model, clip, concepts)
    spent = time.process_time() - start
    return result.lora, {
        "erase_cpu_seconds": spent,
        "evaluations": result.report.get("evaluations", 0),
        "fingerprint": result.lora.fingerprint,
    }


def run(args, model_name: str, data: dict) -> None:
    """Every method and attack that ``data["results"]`` does not have yet, on one model."""
    opened, measured = loader.load(model_name), domain.domain()
    for method in args.methods:
        key = f"{model_name}/{method}/{args.concept}"
        kept = data["results"].get(key, {"attacks": {}})
        missing = [name for name in args.attacks if name not in kept["attacks"]]
        if not missing:
            continue
        lora, spent = erased(method, args.concept, args.seed, opened, measured)
        if kept.get("fingerprint", spent["fingerprint"]) != spent["fingerprint"]:
            raise SystemExit(f"{key} in {args.out} is another erasure; write to another file with --out")
        for name in missing:
            found = attack(
                opened[0],
                lora,
                *opened[1:],
                measured,
                args.concept,
                [name],
                args.samples,
                args.seed,
                budget=args.budget,
            )
            attacks = {**kept["attacks"], **found["attacks"]}
            kept = data["results"][key] = {**spent, **found, "attacks": attacks}
            write_text(args.out, json.dumps(data, indent=1) + "\n")
            print(key, *table(found), sep="\n", flush=True)


def setting(seed: int) -> dict:
    return {
        "seed": seed,
        "trace_core": trace_core.__version__,
        "torch": torch.__version__,
        "engine": engine.load().version,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=loader.MODELS, default=list(loader.MODELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS_HERE, default=METHODS_HERE)
    parser.add_argument(
        "--attacks", nargs="+", choices=["all", *ATTACKS], default=["all"], help="in this order"
    )
    parser.add_argument("--concept", default="cat")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--budget", type=float, default=1.0, help="factor on the attacks' numbers of steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    args.attacks = names_of(args.attacks)
    torch.set_num_threads(1)
    found = {"setting": setting(args.seed), "results": {}}
    data = json.loads(args.out.read_text()) if args.out.exists() else found
    for model in args.models:
        run(args, model, data)


if __name__ == "__main__":
    main()
