"""What each paper says of itself, tried on demo-sd: ``python benchmarks/claims.py``.

MACE: closed-form fusion beats the plain sum; drawing times where the concept forms helps. ANT: late beats all
times, the early and the unconditional terms add, reversing late keeps the structure. TRCE: mapping the end
token catches paraphrases that mapping the concept's own token misses, and leaves the rest. Results are
written after every run, and a run goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F

import trace_core
from trace_core import engine
from trace_core.cli.commands import write_text
from trace_core.demo import domain, loader
from trace_core.demo.vocabulary import OBJECTS
from trace_core.evaluate import Evaluator
from trace_core.finetune.objectives import OBJECTIVES
from trace_core.lora import ErasureLora
from trace_core.lora.fusion import FusionConfig, fuse
from trace_core.lora.gating import apply
from trace_core.methods import Eraser
from trace_core.text.concepts import Concept

RESULTS = Path(__file__).parent / "results" / "claims.json"
MODEL = "demo-sd"
KEYS = ("acc_e", "acc_s", "acc_g", "h_o", "h_c")
FUSED = ("cat", "ship", "truck", "bird")
ABLATED = ("cat", "ship")
OFF = {"early": 0.0, "uncond late": 0.0, "uncond early": 0.0}

#: Options of ANT's objective, from the bare term to the whole
ANT = {
    "erase at all times": {"window": (0.0, 1.0), "weights": {"uncond late": 0.0}},
    "erase late": {"weights": OFF},
    "erase late, uncond late": {"weights": {"early": 0.0, "uncond early": 0.0}},
    "erase late, early": {"weights": {"uncond late": 0.0, "uncond early": 0.0}},
    "all four terms": {},
}
STARTS = (0.0, 0.06, 0.2, 0.3, 0.5)  #: of the window; t' = 50, 47, 40, 35, 25 of 50


class Run:
    def __init__(self, samples: int, others: int, seed: int, file: Path):
        found = engine.load()
        self.model, self.clip, vae = loader.load(MODEL)
        self.evaluator = Evaluator(self.model, self.clip, vae, domain.domain(), samples, seed, others=others)
        self.seed, self.file = seed, file
        self.data = (
            json.loads(file.read_text())
            if file.exists()
            else {
                "setting": {
                    "model": MODEL,
                    "fused": FUSED,
                    "ablated": ABLATED,
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

    def options(self, **finetune) -> tuple[dict, dict]:
        return {"contexts": domain.CONTEXTS}, {**domain.FINETUNE[MODEL], **finetune}

    def measured(self, key: str, make, concepts) -> dict:
        if key not in self.data["results"]:
            model = apply(self.model, make())
            found = self.evaluator.evaluate(model, concepts)
            out = {k: found[k] for k in KEYS} | {"drift": found["drift"]["latent_mse"]}
            if len(concepts) == 1:
                out["structure"] = self.structure(model, concepts[0].target)
            self.data["results"][key] = out
            write_text(self.file, json.dumps(self.data, indent=1) + "\n")
            print(key, {k: v if v is None else round(v, 4) for k, v in out.items()}, flush=True)
        return self.data["results"][key]

    def structure(self, model, noun: str) -> float:
        """Correlation of the erased pictures with the base's, same seeds, at a quarter of the resolution
        in grey: the layout's.
        """
        prompts = self.evaluator.domain.prompts("object", noun, self.evaluator.samples)
        small = []
        for m in (self.model, model):
            _, pictures = self.evaluator.pictures(m, prompts, "structure")
            small.append(F.avg_pool2d(pictures.mean(-1)[:, None], 4).flatten(1))
        a, b = (x - x.mean(dim=1, keepdim=True) for x in small)
        return F.cosine_similarity(a, b).mean().item()


def mace(r: Run) -> None:
    plain = OBJECTIVES["mace"]
    concepts = [Concept(name) for name in FUSED]
    keep = domain.keep_list(concepts)
    closed, tuned = r.options()
    for label, focus in (("focal times", plain.terms[0].focus), ("even times", None)):
        OBJECTIVES["mace"] = replace(plain, terms=(replace(plain.terms[0], focus=focus),))
        eraser = Eraser("mace", keep, r.seed, closed, tuned)
        start = eraser.fit_start(r.model, r.clip, concepts)
        parts: dict[str, ErasureLora] = {}

        def part(c, eraser=eraser, start=start, parts=parts):
            if c.target not in parts:
                parts[c.target] = eraser.fit_part(r.model, r.clip, c, start).lora
            return parts[c.target]

        names = [f"MACE/{label}/{c.target}" for c in concepts] + [
            f"MACE/{label}/{mode}" for mode in ("fuse", "sum")
        ]
        if all(n in r.data["results"] for n in names):
            continue
        for c in concepts:
            r.measured(f"MACE/{label}/{c.target}", lambda c=c: ErasureLora.join(start, part(c)), [c])
        for mode in ("fuse", "sum"):
            config = FusionConfig(mode=mode, contexts=domain.CONTEXTS)
            r.measured(
                f"MACE/{label}/{mode}",
                lambda config=config: ErasureLora.join(
                    start, fuse(r.model, r.clip, [part(c) for c in concepts], keep, config).lora
                ),
                concepts,
            )
        r.measured("MACE/closed form alone", lambda: start, concepts)
    OBJECTIVES["mace"] = plain


def one(r: Run, key: str, method: str, concept: Concept, **finetune) -> None:
    keep = domain.keep_list([concept])
    r.measured(
        f"{key}/{concept.target}",
        lambda: Eraser(method, keep, r.seed, *r.options(**finetune)).fit(r.model, r.clip, [concept]).lora,
        [concept],
    )


def ant(r: Run) -> None:
    for label, options in ANT.items():
        for name in ABLATED:
            one(r, f"ANT/{label}", "ant", Concept(name), **options)
    for start in STARTS:
        one(
            r,
            f"ANT/from {start}",
            "ant",
            Concept("cat"),
            window=(start, 1.0),
            **({"weights": OFF} if start else {"weights": {"uncond late": 0.0}}),
        )


def trce(r: Run) -> None:
    stay = [name for name in OBJECTS if name not in FUSED]
    for number, name in enumerate(FUSED):
        for label, method in (
            ("subject token only", "uce"),
            ("end token", "trce-eot"),
            ("end token and steering", "trce"),
        ):
            one(r, f"TRCE/{label}", method, Concept(name, stay[number]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--others", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--papers", nargs="+", default=["mace", "trce", "ant"], choices=["mace", "trce", "ant"]
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    r = Run(args.samples, args.others, args.seed, args.out)
    for paper in args.papers:
        {"mace": mace, "ant": ant, "trce": trce}[paper](r)
    groups: dict[str, list[dict]] = {}
    for key, found in r.data["results"].items():
        if key.rsplit("/", 1)[-1] in FUSED:
            groups.setdefault(key.rsplit("/", 1)[0], []).append(found)
    r.data["means"] = {g: {k: fmean(f[k] for f in found) for k in found[0]} for g, found in groups.items()}
    write_text(args.out, json.dumps(r.data, indent=1) + "\n")


if __name__ == "__main__":
    main()
