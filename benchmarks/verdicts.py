"""Does Verify Erasure say what the judge says: ``python benchmarks/verdicts.py``.

Erasures of varied quality on the demo models: good ones, half ones, weak ones, such of another concept, and
such that take other things along. Each is verified, without the judge, and then judged. An erasure failed if
the judge sees an erased concept in more than 20 % of its pictures, or less than 90 % of what was to stay. It
is good if these are at most 10 % and at least 95 %. Others lie between, where WARN is right and its
neighbours are not wrong.

Thresholds were chosen on demo-sd. demo-people was looked at by nobody before its verdicts were written down.
Results are written after every erasure, and a run goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from erasure import ERASABLE, OTHERS

import trace_core
from trace_core import engine
from trace_core.cli.commands import write_text
from trace_core.demo import domain, loader, people
from trace_core.demo.vocabulary import OBJECTS
from trace_core.evaluate import Evaluator
from trace_core.evaluate.verify import FAIL, PASS, WARN, Verification, verify
from trace_core.lora.gating import apply
from trace_core.methods import Eraser
from trace_core.text.concepts import Concept

RESULTS = Path(__file__).parent / "results" / "verdicts.json"
TWELVE = tuple(OBJECTS)[::2]
FAILED, GOOD = (0.20, 0.90), (0.10, 0.95)  #: of the concept's pictures at most, of the rest at least


@dataclass(frozen=True)
class Case:
    """An erasure: its method and options, what is erased, and what it is said to erase."""

    name: str
    method: str
    concepts: tuple[str, ...]
    closed_form: dict = field(default_factory=dict)
    finetune: dict = field(default_factory=dict)
    claimed: tuple[str, ...] = ()
    anchored: bool = False


def _half(strength: float, concept: str) -> Case:
    return Case(f"projection {strength:g}, {concept}", "projection", (concept,), {"strength": strength})


def cases(model: str) -> list[Case]:
    """Every erasure, the same on both models of objects."""
    return people_cases() if model == "demo-people" else object_cases()


def people_cases() -> list[Case]:
    """Erasures of people: good, half, of methods that are weak on people, of somebody else, and too broad."""
    a, b, c, d = ERASABLE[3:7]
    return [
        Case("projection, a person", "projection", (a,)),
        Case("projection, another", "projection", (b,)),
        Case("projection, 10 people", "projection", ERASABLE[:10]),
        Case("trace, a person", "trace", (c,), finetune={"preset": "fast"}),
        Case("trce-eot, a person", "trce-eot", (d,), anchored=True),
        Case("mace-cfr, a person", "mace-cfr", (a,)),
        Case("speed, a person", "speed", (b,)),
        *(Case(f"uce, {name}", "uce", (who,)) for name, who in (("a person", a), ("another", c))),
        *(Case(f"projection {s:g}, a person", "projection", (a,), {"strength": s}) for s in (0.3, 0.5, 0.6)),
        Case("projection of one, as another", "projection", (a,), claimed=(b,)),
        Case("oce, 10 people", "oce", ERASABLE[:10]),
        Case("esd at 20 times the rate, a person", "esd", (b,), finetune={"steps": 60, "lr": 1e-2}),
        Case("esd of 20 steps, a person", "esd", (d,), finetune={"steps": 20}),
    ]


def object_cases() -> list[Case]:
    plain = [Case(f"projection, {c}", "projection", (c,)) for c in ("cat", "truck", "pizza", "twitter style")]
    halves = [(0.3, "cat"), (0.4, "ship"), (0.5, "dog"), (0.6, "cat"), (0.7, "horse"), (0.45, "banana")]
    peers = [
        *(Case(f"uce, {c}", "uce", (c,)) for c in ("cat", "deer")),
        *(Case(f"double, {c}", "double", (c,)) for c in ("dog", "airplane")),
        *(Case(f"mace-cfr, {c}", "mace-cfr", (c,)) for c in ("ship", "frog")),
        Case("speed, bird", "speed", ("bird",)),
        Case("rece, truck", "rece", ("truck",)),
        Case("trce-eot, cat", "trce-eot", ("cat",), anchored=True),
    ]
    others = [
        Case("projection of dog, as cat", "projection", ("dog",), claimed=("cat",)),
        Case("projection of ship, as truck", "projection", ("ship",), claimed=("truck",)),
        Case("projection of cat, as cat and frog", "projection", ("cat",), claimed=("cat", "frog")),
    ]
    broad = [
        _half(1.8, "cat"),
        _half(1.8, "house"),
        Case("esd at 20 times the rate, cat", "esd", ("cat",), finetune={"steps": 60, "lr": 1e-2}),
        Case("oce, cat", "oce", ("cat",)),
    ]
    trained = [
        Case("trace, cat", "trace", ("cat",), finetune={"preset": "fast"}),
        Case("trace, bird", "trace", ("bird",), finetune={"preset": "fast"}),
        Case("esd of 20 steps, dog", "esd", ("dog",), finetune={"steps": 20}),
        Case("ant of 40 steps, frog", "ant", ("frog",), finetune={"steps": 40}),
    ]
    many = [Case(f"{m}, 12 objects", m, TWELVE) for m in ("oce", "projection")]
    return [*plain, *[_half(*h) for h in halves], *peers, *others, *broad, *trained, *many]


def made(model, clip, case: Case):
    """The erasure of a case."""
    names = list(people.people()) if case.concepts[0] in ERASABLE else list(OBJECTS)
    stay = [name for name in names if name not in case.concepts]
    concepts = [named(c, stay[names.index(c) % len(stay)] if case.anchored else "") for c in case.concepts]
    return Eraser(case.method, closed_form=case.closed_form, finetune=case.finetune).fit(
        model, clip, concepts
    )


def named(name: str, anchor: str = "") -> Concept:
    """The concept of a class. Nobody knows that these people are people unless one says so."""
    return Concept(name, anchor, kind_given="person" if name in ERASABLE else "")


def truth(judged: dict) -> str:
    """What the judge says."""
    worst, kept = (round(judged[k], 6) for k in ("worst", "kept"))  # shares of float32
    if worst > FAILED[0] or kept < FAILED[1]:
        return FAIL
    return PASS if worst <= GOOD[0] and kept >= GOOD[1] else WARN


def agrees(said: str, judged: str) -> bool:
    """Whether a verdict agrees with the judge's. What lies between may be called either way."""
    return said == judged or judged == WARN


def judged(evaluator: Evaluator, lora, concepts: list[Concept]) -> dict:
    evaluator.samples = 6 if len(concepts) > 2 else 15
    scores = evaluator.evaluate(apply(evaluator.model, lora), concepts)
    erased = {n: v["top1"] for n, v in scores["per_class"].items() if v["erased"]}
    return {"worst": max(erased.values()), "erased": scores["acc_e"], "kept": scores["acc_s"]}


def compact(found: Verification) -> dict:
    """The verdict and its figures."""
    whole = found.to_dict()
    keys = ("name", "near", "moves", "evidence_before", "evidence_after")
    return {
        "verdict": found.status,
        "leak": found.leak,
        "weakest": found.weakest,
        "wordings": {
            c["concept"]: {k: [round(w["reach"], 3), w["counts"]] for k, w in c["wordings"].items()}
            for c in whole["concepts"]
        },
        "pictures": [
            {k: c["pictures"][k] for k in (*keys, "drawn")} | {"names": len(c["pictures"]["names"])}
            for c in whole["concepts"]
        ],
        "kept": [{k: d[k] for k in keys} for d in whole["kept"]],
    }


def run(name: str, data: dict, out: Path) -> None:
    model, clip, vae = loader.load(name)
    known = domain.domain(name)
    known = replace(known, objects=dict.fromkeys(known.objects, ()))  # synonyms are no part of the question
    evaluator = Evaluator(model, clip, vae, known, others=OTHERS.get(name, 4))
    for case in cases(name):
        key = f"{name}/{case.name}"
        if key in data["results"]:
            continue
        lora = made(model, clip, case).lora
        concepts = [named(c) for c in case.claimed or case.concepts]
        began = time.perf_counter()
        found = verify(model, clip, lora, concepts)
        seconds = round(time.perf_counter() - began, 1)
        scores = judged(evaluator, lora, concepts)
        said, right = found.status, truth(scores)
        data["results"][key] = {**compact(found), "seconds": seconds, "judge": scores, "truth": right}
        data["summary"] = summary(data["results"])
        write_text(out, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        figures = ", ".join(f"{k} {v:.2f}" for k, v in scores.items())
        print(f"{key}: {said}, judge {right} ({figures}), {seconds} s", flush=True)


def summary(results: dict) -> dict:
    """Agreement by model."""
    out = {}
    for model in dict.fromkeys(key.partition("/")[0] for key in results):
        rows = [r for key, r in results.items() if key.startswith(model + "/")]
        pairs = [(r["verdict"], r["truth"]) for r in rows]
        out[model] = {
            "erasures": len(pairs),
            "agree": sum(agrees(*p) for p in pairs),
            "same": sum(a == b for a, b in pairs),
            "passed_failed_ones": sum(p == (PASS, FAIL) for p in pairs),
            "truth": {s: sum(b == s for _, b in pairs) for s in (PASS, WARN, FAIL)},
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=loader.MODELS, default=list(loader.MODELS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    setting = {
        "trace_core": trace_core.__version__,
        "torch": torch.__version__,
        "engine": engine.load().version,
    }
    data = json.loads(args.out.read_text()) if args.out.exists() else {"setting": setting, "results": {}}
    for model in args.models:
        run(model, data, args.out)
    print(json.dumps(data["summary"], indent=1))


if __name__ == "__main__":
    main()
