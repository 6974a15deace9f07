"""How well every method erases, in one harness: ``python benchmarks/erasure.py``.

For every CIFAR-10 class and every style, on demo-sd and demo-flux: erase it alone, then measure it, all
other classes, its synonyms and the drift; and 12 of the 24 objects at once. On demo-people: one person, 10,
50 and 100 of 200 at once, and a trait that prompts only imply. Every seed (of the training and of the
pictures) has a file of its own. Results are written after every concept, and a run goes on where the last
one stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import torch

import trace_core
from trace_core import engine
from trace_core.cli.commands import write_text
from trace_core.demo import domain, loader, people, world
from trace_core.demo.vocabulary import CIFAR10, OBJECTS, STYLES
from trace_core.evaluate import Evaluator
from trace_core.lora.gating import apply
from trace_core.methods import METHODS, Eraser
from trace_core.text.concepts import Concept

RESULTS = Path(__file__).parent / "results"
MEASURES = ("acc_e", "acc_s", "acc_g", "h_o", "h_c")
TWELVE = tuple(OBJECTS)[::2]
EMOJI = {"object": CIFAR10, "style": tuple(STYLES), "12 objects": ("12 objects",)}
#: Every second person of the list may be erased: three of them alone, and the first 10, 50 and 100 at once.
#: Defaults for people were chosen on the others.
ERASABLE = tuple(people.people())[::2]
CROWDS = {f"{n} people": n for n in (10, 50, 100)}
PEOPLE = {"person": ERASABLE[:3], **{name: (name,) for name in CROWDS}, "trait": (people.PATCH,)}
TASKS = EMOJI | PEOPLE
OTHERS = {"demo-people": 2}  #: pictures of every class that is not erased; elsewhere 5
#: What a user of ``trace`` would write down: prompts with the content, of people whom no table erases
IMPLIED = [
    *(
        f"a drawing of {name} {people.IMPLYING[i % len(people.IMPLYING)]}"
        for i, name in enumerate(tuple(people.people())[1::12])
    ),
    *(f"{who} {place}" for who, place in zip(("a man", "a woman", "a person"), people.IMPLYING)),
]
TRAIT_PICTURES = 48  #: of every kind of prompt
#: TRCE steers to a safe concept; against the neutral prompt its margin holds from the start
ANCHORED = ("trce-eot", "trce")
#: name: method and its options
VARIANTS = {
    "ant-saliency": ("ant", {"finetune": {"saliency": 0.5, "rank": 64}}),
    "trace-fused": ("trace", {"per_concept": True}),
    "projection-robust": ("projection", {"closed_form": {"robust": 1}}),
    "trace-robust": ("trace", {"finetune": {"robust": 1}}),
    "trace-adversarial": ("trace", {"finetune": {"robust": 2}}),
    "projection-exact": ("projection", {"closed_form": {"exact": True}}),
    "projection-plain": ("projection", {"closed_form": {"energy": 0.97, "eta": 0.0}}),
}


def jobs(model: str, methods: list[str], tasks: list[str]) -> Iterator[tuple[str, str, str]]:
    """(method, task, concept), in the order in which they are run, of the tasks that the model has."""
    for method in methods:
        for task in tasks:
            if task not in (PEOPLE if model == "demo-people" else EMOJI):
                continue
            if method == "trace-fused" and len(targets_of(task, "")) == 1:
                continue  # of one concept it is trace
            if method == "projection-plain" and task not in PEOPLE:
                continue  # of other kinds it is projection
            for concept in TASKS[task]:
                yield method, task, concept


def targets_of(task: str, concept: str) -> tuple[str, ...]:
    """The classes that are erased together."""
    if task == "12 objects":
        return TWELVE
    return ERASABLE[: CROWDS[task]] if task in CROWDS else (concept,)


def concepts_of(method: str, task: str, concept: str) -> list[Concept]:
    """What is erased: the class alone, or steered to the next one that stays."""
    targets, anchored = targets_of(task, concept), method in ANCHORED
    if task == "trait":
        return [Concept(concept, "bare eye" if anchored else "", kind_given="explicit")]
    if task in PEOPLE:
        stay = [name for name in people.people() if name not in ERASABLE]
        return [
            Concept(t, stay[i % len(stay)] if anchored else "", kind_given="person")
            for i, t in enumerate(targets)
        ]
    stay = [name for name in (STYLES if task == "style" else OBJECTS) if name not in targets]
    classes = list(STYLES if task == "style" else OBJECTS)
    return [Concept(t, stay[classes.index(t) % len(stay)] if anchored else "") for t in targets]


def pictures_of(task: str, concept: str, samples: int) -> int:
    """Pictures of every erased class: fewer where many are erased."""
    if task == "trait":
        return TRAIT_PICTURES
    count = len(targets_of(task, concept))
    return samples if count == 1 else max(2, min(5, 150 // count))


def results_file(model: str, seed: int) -> Path:
    return RESULTS / f"erasure-{model}{f'-seed{seed}' if seed else ''}.json"


def mean(results: list[dict]) -> dict:
    """Mean of every measure over concepts; H of the means is not taken, H is averaged as the papers do."""
    out = {
        k: fmean(r[k] for r in results) if all(r[k] is not None for r in results) else None for k in MEASURES
    }
    return out | {
        "latent_mse": fmean(r["drift"]["latent_mse"] for r in results),
        "psnr": fmean(r["drift"]["psnr"] for r in results),
        "concepts": len(results),
    }


def run(
    model_name: str, methods: list[str], tasks: list[str], samples: int, others: int, seed: int, file: Path
) -> dict:
    found = engine.load()
    setting = {
        "samples_per_class": samples,
        "samples_per_other_class": others,
        "seed": seed,
        "trace_core": trace_core.__version__,
        "torch": torch.__version__,
        "engine": found.version,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    data = json.loads(file.read_text()) if file.exists() else {"setting": setting, "results": {}}
    evaluator = None
    for method, task, concept in jobs(model_name, methods, tasks):
        key = f"{model_name}/{method}/{task}/{concept}"
        if key in data["results"]:
            continue
        if evaluator is None:
            model, clip, vae = loader.load(model_name)
            evaluator = Evaluator(model, clip, vae, domain.domain(model_name), samples, seed, others=others)
        evaluator.samples = pictures_of(task, concept, samples)
        concepts = concepts_of(method, task, concept)
        name, options = VARIANTS.get(method, (method, {}))
        start, busy = time.perf_counter(), time.process_time()
        if method == "trace" and task == "trait":
            options = options | {"finetune": {"implied": IMPLIED}}
        if "exact" in method:  # which is for a list that the user gives
            options = options | {"keep": world.defaults(model_name).keep_list(concepts)}
        eraser = Eraser(name, seed=seed, **options)
        result = eraser.fit(evaluator.model, evaluator.clip, concepts)
        seconds, cpu = time.perf_counter() - start, time.process_time() - busy
        scores = evaluator.evaluate(apply(evaluator.model, result.lora), concepts)
        size = sum(f.nbytes for pair in result.lora.modules.values() for f in pair)
        made = {
            "erase_seconds": seconds,
            "cpu_seconds": cpu,
            "rank": result.lora.rank,
            "evaluations": result.report.get("evaluations", 0),
            "bytes": size,
        }
        data["results"][key] = scores | made
        write_text(file, json.dumps(data, indent=1) + "\n")
        line = " ".join(f"{k} {100 * scores[k]:.1f}" for k in MEASURES if scores[k] is not None)
        print(f"{key}: {line}", flush=True)
    data["means"] = {}
    for prefix in dict.fromkeys(key.rsplit("/", 1)[0] for key in data["results"]):
        data["means"][prefix] = mean([r for k, r in data["results"].items() if k.startswith(prefix + "/")])
    write_text(file, json.dumps(data, indent=1) + "\n")
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(loader.MODELS))
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *VARIANTS], default=[*METHODS, *VARIANTS])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--others", type=int, help="pictures of every class that is not erased")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: results/erasure-MODEL.json, of other seeds -seedN")
    args = parser.parse_args()
    for model in args.models:
        file = args.out or results_file(model, args.seed)
        others = args.others or OTHERS.get(model, 5)
        data = run(model, args.methods, args.tasks, args.samples, others, args.seed, file)
        for name, row in data["means"].items():
            print(name, {k: v if v is None else round(v, 4) for k, v in row.items()})


if __name__ == "__main__":
    main()
