"""``demo``: erase, judge and draw on the models that come with the pack."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path

from ..demo import domain, loader
from ..evaluate import Evaluator
from ..evaluate.domains import PERSON
from ..evaluate.grid import grid
from ..lora.erasure import ErasureLora
from ..lora.files import write_whole
from ..lora.gating import apply
from ..methods import METHODS, Eraser
from ..text.grammar import parse_concepts
from .engine import load
from .figures import table
from .outputs import write_text
from .shows import SHOWS, stem
from .training import Bar

MANY = 100  #: people; of so many, one picture of each who stays is drawn


def run(args, bars) -> dict:
    """Erase, save, judge and draw each of :data:`SHOWS`. Writes and returns the report."""
    load()
    out, started = Path(args.out), time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    evaluators, rows = {}, []
    for name, method, concept, nouns in SHOWS:
        if name not in evaluators:
            model, clip, vae = loader.load(name)
            known = domain.domain(name)
            others = 1 if len(known.people) > MANY else None
            evaluators[name] = Evaluator(
                model, clip, vae, known, args.samples, args.seed, progress=bars, others=others
            )
        rows.append(_show(evaluators[name], name, method, concept, nouns, out, bars))
        bars.close()
        print(f"{rows[-1]['name']}: {rows[-1]['grid']}, {rows[-1]['lora']}", flush=True)
    print(table([(r["name"], r) for r in rows]))
    seconds = time.perf_counter() - started
    print(f"{seconds:.0f} s in all; pictures, LoRAs and report.json are in {out}")
    report = {"seconds": seconds, "samples_per_class": args.samples, "seed": args.seed, "results": rows}
    write_text(out / "report.json", json.dumps(report, indent=1) + "\n")
    return report


def _show(evaluator: Evaluator, name: str, method: str, concept: str, nouns, out: Path, bars) -> dict:
    concepts, trained = parse_concepts(concept), METHODS[method].finetune is not None
    if concept in evaluator.domain.people:
        concepts = [replace(c, kind_given=PERSON) for c in concepts]
    start, bar = time.perf_counter(), Bar() if trained else None
    try:
        hooks = {"report": bar} if trained else {}
        result = Eraser(method).fit(evaluator.model, evaluator.clip, concepts, progress=bars, **hooks)
    finally:
        bars.close()
        if bar:
            bar.close()
    seconds = time.perf_counter() - start
    file_stem = stem(name, method, concept)
    file = result.lora.save(out / f"{file_stem}.safetensors")
    edited = apply(evaluator.model, ErasureLora.load(file))
    scores = evaluator.evaluate(edited, concepts)
    prompts, marked = _prompts(concept, nouns, scores["head"], list(evaluator.domain.styles))
    pictures = [
        (label, evaluator.pictures(m, prompts, f"grid: {label}")[1])
        for label, m in (("before", evaluator.model), ("after", edited))
    ]
    how = "closed form and finetune" if trained else "closed form"
    sheet = grid(pictures, prompts, f"{name}: '{concept}' erased by {how}, {seconds:.1f} s", marked=marked)
    picture = io.BytesIO()
    sheet.save(picture, "PNG")
    write_whole(out / f"{file_stem}.png", picture.getvalue())
    return scores | {
        "name": f"{name}: {concept}, {method}",
        "erase_seconds": seconds,
        "bytes": file.stat().st_size,
        "lora": str(file),
        "grid": str(out / f"{file_stem}.png"),
    }


def _prompts(concept: str, nouns, head: str, styles: list[str]) -> tuple[list[str], list[int]]:
    """Prompts of a grid, and the columns with the concept. Other columns show other nouns or styles."""
    if head == PERSON:
        prompts = [f"a portrait of {n}, {styles[i % len(styles)]}" for i, n in enumerate(nouns)]
        return prompts, [i for i, n in enumerate(nouns) if n == concept]
    if head == "object":
        return [f"a photo of a {n}, {styles[i % len(styles)]}" for i, n in enumerate(nouns)], [0, 1]
    others = [s for s in styles if s != concept]
    prompts = [f"a photo of a {n}, {concept}" for n in nouns]
    prompts += [f"a photo of a {n}, {others[i % len(others)]}" for i, n in enumerate(nouns)]
    return prompts, list(range(len(nouns)))
