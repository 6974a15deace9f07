"""What hardening reaches, and what it costs, by its metric: ``python benchmarks/hardening.py``.

One direction of the concept is removed, and nothing else is done. The metric in which it is read goes from
the keep set's (t = 0) to the layers' output (t = 1), see :mod:`trace_core.closed_form.hardened`. Beside it:
the leading output of each layer by itself, and of each attention head. For each, the certificate, the largest
change of the keep rows, and what the judge says: the concept with its own prompts and with RECE's rows, all
other classes, and the drift.
"""

from __future__ import annotations

import argparse
import json
import platform
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import trace_core
from trace_core import engine
from trace_core.backbones.base import CONTEXT
from trace_core.cli.commands import write_text
from trace_core.closed_form import ClosedFormConfig, ClosedFormFitter, solvers
from trace_core.closed_form.edit import LayerEdits
from trace_core.closed_form.export import export
from trace_core.closed_form.hardened import hardened
from trace_core.demo import domain, loader
from trace_core.evaluate import Evaluator
from trace_core.evaluate.attacks import attack
from trace_core.lora.gating import apply
from trace_core.text.concepts import Concept

RESULTS = Path(__file__).parent / "results" / "hardening.json"
METRICS = (0.0, 0.01, 0.1, 0.5, 1.0)
HEADS = {"each layer": 1, "each of four heads": 4}
FIRST = 1e-6  #: share of the output energy that one direction always has


def of_outputs(W: Tensor, difference: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """``dW = -E E^T W`` with E the leading output of the concept in each of a layer's heads."""
    own = W @ difference @ W.T
    E = torch.zeros(len(W), heads, dtype=W.dtype)
    for head, rows in enumerate(torch.arange(len(W)).chunk(heads)):
        E[rows, head] = torch.linalg.eigh(own[rows][:, rows])[1][:, -1]
    return -E, E.T @ W


def edits(sums, G: Tensor, gram: Tensor):
    """Every edit by its name."""
    difference, fixed = sums.difference(), torch.cat([sums.constrained.double(), sums.centre])
    for t in METRICS:
        yield f"t = {t:g}", hardened(difference, gram, G, FIRST, 1.0, fixed, t)[0]
    for name, heads in HEADS.items():
        yield name, LayerEdits(partial(of_outputs, difference=difference, heads=heads))


def run(name: str, concept: str, samples: int, others: int, data: dict, out: Path) -> None:
    opened, judged = loader.load(name), domain.domain()
    model, clip, vae = opened
    evaluator = Evaluator(*opened, judged, samples, others=others)
    fitter = ClosedFormFitter(model, clip, config=ClosedFormConfig()).update([Concept(concept)])
    plan = fitter._plan()
    policy, concepts = plan.groups[0]
    sums = fitter._accumulate(policy, concepts, plan, fitter.config, False)[CONTEXT]
    G = solvers.regularise(sums.keep.value(), policy.alpha, None, sums.trace)
    for label, edit in edits(sums, G, fitter._gram(CONTEXT)):
        key = f"{name}/{concept}/{label}"
        if key in data["results"]:
            continue
        lora, layers, certificates = export(fitter.backbone, {CONTEXT: edit}, {CONTEXT: sums})
        scores = evaluator.evaluate(apply(model, lora), [Concept(concept)])
        rece = attack(model, lora, clip, vae, judged, concept, ["rece"], samples)["attacks"]["rece"]["rate"]
        found = {
            "certificate": certificates[CONTEXT],
            "keep_change": max(v["keep_change"] for v in layers.values()),
            "acc_e": scores["acc_e"],
            "rece": rece,
            "acc_s": scores["acc_s"],
            "latent_mse": scores["drift"]["latent_mse"],
        }
        data["results"][key] = found
        write_text(out, json.dumps(data, indent=1) + "\n")
        print(key, {k: round(v, 4) for k, v in found.items()}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=loader.MODELS, default=list(loader.MODELS))
    parser.add_argument("--concept", default="cat")
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--others", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    setting = {
        "trace_core": trace_core.__version__,
        "torch": torch.__version__,
        "engine": engine.load().version,
        "python": platform.python_version(),
        "samples": args.samples,
        "others": args.others,
    }
    data = json.loads(args.out.read_text()) if args.out.exists() else {"setting": setting, "results": {}}
    for model in args.models:
        run(model, args.concept, args.samples, args.others, data, args.out)


if __name__ == "__main__":
    main()
