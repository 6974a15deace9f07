"""Prompts beside the ordinary: the erased concept as the negative prompt, and long prompts: ``python
benchmarks/prompts.py``.

Negative: "a photo" with the concept as the negative prompt at several cfg; how many pictures show it, against
the base model with an empty negative prompt and with the concept. Long: the concept early, in the middle and
late in a prompt of 20 tokens and more, also where they are two chunks; how many show it, against the base
model with the concept and with the same prompt without it. Results are written after every concept, and a run
goes on where the last one stopped.

``--places`` measures prompts of up to 70 tokens instead, by the concept's place in them, with more pictures
(``prompt_places.py``).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

import torch

import trace_core
from trace_core import engine
from trace_core.backbones.sampling import SamplerConfig, sample
from trace_core.cli.commands import write_text
from trace_core.demo import loader
from trace_core.demo.vocabulary import OBJECTS, STYLES
from trace_core.lora.gating import apply
from trace_core.methods import METHODS, Eraser
from trace_core.text.concepts import Concept
from trace_core.text.templates import fill

sys.path.insert(0, str(Path(__file__).parent))
import prompt_places  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "prompts.json"
CFG = (3.0, 7.0, 12.0)
CONCEPTS = ("cat", "truck", "bird", "twitter style")
#: name: method, options of its closed form: the default, and what the default was
VARIANTS = {
    **{name: (name, {}) for name in METHODS},
    "projection, eta 0": ("projection", {"eta": 0.0}),
    "projection, eta 0.5": ("projection", {"eta": 0.5}),
}
#: Of words that the demo models know, and of words that their tokenizers spell letter by letter, which alone
#: make them draw anything
LONG = {
    "object": {
        "early": "a photo of a {}, an image, a picture, a drawing, an icon, an emoji, art",
        "middle": "an image, a picture, a drawing, a photo of a {}, an icon, an emoji, art",
        "late": "an image, a picture, a drawing, an icon, an emoji, art, a photo of a {}",
        "late, spelled": "high quality, detailed, sharp focus, a photo of a {}",
    },
    "style": {
        "early": "a photo, {}, an image, a picture, a drawing, an icon, an emoji, art",
        "middle": "an image, a picture, a drawing, a photo, {}, an icon, an emoji, art",
        "late": "an image, a picture, a drawing, an icon, an emoji, art, a photo, {}",
        "late, spelled": "high quality, detailed, sharp focus, a photo, {}",
    },
}


class Counter:
    """How many pictures of a prompt show each class; those of the base model are made once."""

    def __init__(self, name: str, samples: int, seed: int, known: dict):
        self.model, self.clip, self.vae = loader.load(name)
        self.name, self.judge, self.samples, self.seed, self.known = (
            name,
            loader.load_judge(),
            samples,
            seed,
            known,
        )

    def count(self, model, prompt: str, **config) -> dict[str, int]:
        """By class, of objects and styles."""
        seeds = [self.seed * 100003 + i for i in range(self.samples)]
        latents = sample(
            model, self.clip, [prompt] * self.samples, seeds, SamplerConfig.for_model(model, **config)
        )
        pictures, out = self.vae.decode(latents), {}
        for head, classes in (("object", list(OBJECTS)), ("style", list(STYLES))):
            found = self.judge.probabilities(pictures, head).argmax(1)
            out |= {c: int((found == i).sum()) for i, c in enumerate(classes)}
        return out

    def base(self, prompt: str, **config) -> dict[str, int]:
        key = f"{self.name}/{prompt}/{json.dumps(config, sort_keys=True)}"
        if key not in self.known:
            self.known[key] = self.count(self.model, prompt, **config)
        return self.known[key]


def measure(counter: Counter, model, concept: str, cfgs: tuple[float, ...] | list[float], long: bool) -> dict:
    """Counts of one erased model beside the base model's."""
    out = {"negative": {}, "long": {}}
    for cfg in cfgs:
        out["negative"][f"{cfg:g}"] = {
            "erased": counter.count(model, "a photo", cfg=cfg, negative=concept)[concept],
            "base, empty": counter.base("a photo", cfg=cfg)[concept],
            "base": counter.base("a photo", cfg=cfg, negative=concept)[concept],
        }
    for place, template in LONG["style" if concept in STYLES else "object"].items() if long else ():
        prompt = fill(template, concept)
        out["long"][place] = {
            "erased": counter.count(model, prompt)[concept],
            "base": counter.base(prompt)[concept],
            "base, without": counter.base(fill(template, ""))[concept],
        }
    return out


def run(
    model_name: str,
    methods: list[str],
    concepts: list[str],
    cfgs: list[float],
    samples: int,
    seed: int,
    long: bool,
    file: Path,
) -> dict:
    found = engine.load()
    setting = {
        "samples": samples,
        "seed": seed,
        "trace_core": trace_core.__version__,
        "torch": torch.__version__,
        "engine": found.version,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    data = json.loads(file.read_text()) if file.exists() else {"setting": setting, "results": {}, "base": {}}
    counter = None
    for method in methods:
        for concept in concepts:
            key = f"{model_name}/{method}/{concept}"
            if key in data["results"]:
                continue
            counter = counter or Counter(model_name, samples, seed, data["base"])
            name, options = VARIANTS[method]
            erased = [Concept(concept)]
            result = Eraser(name, seed=seed, closed_form=options).fit(counter.model, counter.clip, erased)
            report = result.report.get("closed_form", result.report)
            row = measure(counter, apply(counter.model, result.lora), concept, cfgs, long)
            data["results"][key] = row | {"substitute": report.get("substitutes", {}).get(concept, "")}
            write_text(file, json.dumps(data, indent=1) + "\n")
            print(key, row, flush=True)
    return data


def run_places(
    model_name: str,
    methods: list[str],
    concepts: list[str],
    cells: list[str],
    samples: int,
    seed: int,
    file: Path,
) -> dict:
    """The rates by length and place, under ``places`` in the results. Cells in the file are not run again."""
    engine.load()
    data = json.loads(file.read_text()) if file.exists() else {"results": {}, "base": {}}
    found, places = data.setdefault("places", {"samples": samples, "seed": seed, "results": {}}), None
    for method, concept in ((m, c) for m in methods for c in concepts):
        key = f"{model_name}/{method}/{concept}"
        row = found["results"].setdefault(key, {})
        missing = [cell for cell in cells if cell not in row]
        if not missing:
            continue
        if places is None:
            objects, judge = loader.load(model_name), loader.load_judge()
            places = prompt_places.Places(model_name, objects, judge, samples, seed, data["base"])
        name, options = VARIANTS[method]
        eraser = Eraser(name, seed=seed, closed_form=options)
        result = eraser.fit(places.model, places.clip, [Concept(concept)])
        erased = apply(places.model, result.lora)
        for cell in missing:
            row[cell] = places.measure(erased, concept, cell)
            write_text(file, json.dumps(data, indent=1) + "\n")
            print(key, cell, row[cell], flush=True)
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(loader.MODELS))
    parser.add_argument("--methods", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--concepts", nargs="+", default=list(CONCEPTS))
    parser.add_argument("--cfg", nargs="+", type=float, default=list(CFG))
    parser.add_argument(
        "--samples", type=int, help="pictures of a prompt (64), or of a cell of --places (128)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-long", dest="long", action="store_false", help="negative prompts alone")
    parser.add_argument("--places", action="store_true", help="prompts by length and place instead")
    parser.add_argument("--cells", nargs="+", choices=prompt_places.CELLS, default=list(prompt_places.CELLS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    for model in args.models:
        if args.places:
            samples = args.samples or 128
            run_places(model, args.methods, args.concepts, args.cells, samples, args.seed, args.out)
            continue
        samples = args.samples or 64
        run(model, args.methods, args.concepts, args.cfg, samples, args.seed, args.long, args.out)


if __name__ == "__main__":
    main()
