"""Many concepts in one file: ``python benchmarks/mass.py``.

12 of the 24 objects of demo-sd, each erased alone, then in one file: fused in closed form (MACE, eq. 7),
summed as loading the files side by side would, and, for TRACE, trained together. Erasures are kept in a
folder, and a run goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from statistics import fmean

import torch

import trace_core
from trace_core import engine
from trace_core.cli.commands import write_text
from trace_core.demo import domain, loader
from trace_core.demo.vocabulary import OBJECTS
from trace_core.evaluate import Evaluator
from trace_core.lora import ErasureLora
from trace_core.lora.fusion import FusionConfig, fuse
from trace_core.lora.gating import apply
from trace_core.methods import Eraser
from trace_core.text.concepts import Concept

RESULTS = Path(__file__).parent / "results" / "mass.json"
CONCEPTS = [Concept(name) for name in tuple(OBJECTS)[::2]]
MODEL = "demo-sd"
KEYS = ("acc_e", "acc_s", "acc_g", "h_o", "h_c")


class Run:
    """Model, evaluator and results; every step is skipped where its result is there."""

    def __init__(
        self,
        method: str,
        samples: int,
        others: int,
        seed: int,
        folder: Path,
        file: Path,
        finetune: dict,
        label: str,
    ):
        found = engine.load()
        self.method, self.seed, self.folder, self.file, self.label = method, seed, folder / label, file, label
        self.model, self.clip, vae = loader.load(MODEL)
        self.evaluator = Evaluator(self.model, self.clip, vae, domain.domain(), samples, seed, others=others)
        self.keep = domain.keep_list(CONCEPTS)
        self.eraser = Eraser(method, self.keep, seed, finetune=finetune)
        self.data = (
            json.loads(file.read_text())
            if file.exists()
            else {
                "setting": {
                    "model": MODEL,
                    "concepts": [c.target for c in CONCEPTS],
                    "samples_per_class": samples,
                    "samples_per_other_class": others,
                    "seed": seed,
                    "trace_core": trace_core.__version__,
                    "torch": torch.__version__,
                    "engine": found.version,
                    "python": platform.python_version(),
                    "threads": torch.get_num_threads(),
                },
                "results": {},
            }
        )
        self._start: ErasureLora | None = None

    def start(self) -> ErasureLora | None:
        """The closed form that all parts share, or None."""
        if self._start is None:
            self._start = self.eraser.fit_start(self.model, self.clip, CONCEPTS)
        return self._start

    def part(self, concept: Concept) -> ErasureLora:
        path = self.folder / f"{concept.target}.safetensors"
        if not path.exists():
            self.eraser.fit_part(self.model, self.clip, concept, self.start()).save(path)
        return ErasureLora.load(path)

    def whole(self, lora: ErasureLora) -> ErasureLora:
        return ErasureLora.join(self.start(), lora) if self.start() else lora

    def measured(self, key: str, make, concepts) -> dict:
        """The scores of ``make()``, kept under a key."""
        key = f"{self.label}/{key}"
        if key not in self.data["results"]:
            begin = time.perf_counter()
            lora = make()
            seconds = time.perf_counter() - begin
            found = self.evaluator.evaluate(apply(self.model, lora), concepts)
            self.data["results"][key] = {k: found[k] for k in KEYS} | {
                "drift": found["drift"],
                "seconds": seconds,
                "rank": lora.rank,
            }
            write_text(self.file, json.dumps(self.data, indent=1) + "\n")
            print(
                key,
                " ".join(f"{k} {100 * found[k]:.1f}" for k in KEYS if found[k] is not None),
                f"drift {found['drift']['latent_mse']:.4f}",
                flush=True,
            )
        return self.data["results"][key]


def run(method: str, args, finetune: dict, label: str) -> None:
    r = Run(method, args.samples, args.others, args.seed, args.folder, args.out, finetune, label)
    for concept in CONCEPTS:
        r.measured(f"alone/{concept.target}", lambda c=concept: r.whole(r.part(c)), [concept])
    parts = [r.part(c) for c in CONCEPTS]
    for mode in ("fuse", "sum"):
        config = FusionConfig(mode=mode, contexts=domain.CONTEXTS)
        r.measured(mode, lambda c=config: r.whole(fuse(r.model, r.clip, parts, r.keep, c).lora), CONCEPTS)
    if method == "trace":
        r.measured(
            "together",
            lambda: r.eraser.fit(r.model, r.clip, CONCEPTS).lora,
            CONCEPTS,
        )
    alone = [r.data["results"][f"{label}/alone/{c.target}"] for c in CONCEPTS]
    # some have no synonyms
    r.data["results"][f"{label}/mean alone"] = {
        k: fmean(a[k] for a in alone if a[k] is not None) for k in KEYS
    }
    write_text(args.out, json.dumps(r.data, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["trace"], choices=["trace", "projection", "mace"])
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--others", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("out/mass"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    for method in args.methods:
        run(method, args, {}, method)


if __name__ == "__main__":
    main()
