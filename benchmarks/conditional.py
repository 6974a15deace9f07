"""How well a combination is erased while its parts stay: ``python benchmarks/conditional.py``.

For every combination, on both demo models: erase it, then draw prompts that ask for both parts, for the first
without the second, for the second without the first, and for neither. Objects and styles are told by the
judge, backgrounds by the border's colour. Results are written after every erasure, and a run goes on where
the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import trace_core
from trace_core import engine
from trace_core.backbones.sampling import SamplerConfig, sample
from trace_core.cli.commands import write_text
from trace_core.demo import domain, loader
from trace_core.demo.vocabulary import COLOURS, OBJECTS, STYLES
from trace_core.evaluate import drift
from trace_core.lora.gating import apply
from trace_core.methods import METHODS, Eraser
from trace_core.text.concepts import Concept
from trace_core.text.grammar import parse_concepts

RESULTS = Path(__file__).parent / "results" / "conditional.json"
COMBINATIONS = ("cat + red background", "truck + blue background", "dog + google style")
BORDER = 3  #: pixels of the frame that shows the background

Prompt = tuple[str, dict[str, str]]  #: a prompt, and what it asks for: object, style, colour


def colours(pictures: Tensor) -> list[str]:
    """Background colour of pictures ``[n, h, w, 3]`` in 0..1: the palette's nearest to the median of the
    frame, in sRGB.
    """
    frame = torch.ones(pictures.shape[1:3], dtype=torch.bool)
    frame[BORDER:-BORDER, BORDER:-BORDER] = False
    seen = pictures[:, frame].median(dim=1).values
    palette = torch.tensor(list(COLOURS.values())) / 255
    return [list(COLOURS)[int(i)] for i in torch.cdist(seen, palette).argmin(dim=1)]


def shown(pictures: Tensor, judge) -> list[dict[str, str]]:
    """What every picture shows: object, style, colour."""
    names = {"object": list(OBJECTS), "style": list(STYLES)}
    found = {head: [names[head][int(i)] for i in judge(pictures, head).argmax(-1)] for head in names}
    found["colour"] = colours(pictures)
    return [{head: values[i] for head, values in found.items()} for i in range(len(pictures))]


def asked(noun: str, style: str = "", colour: str = "", turn: int = 0) -> Prompt:
    """A prompt for a picture; the order of style and background alternates with ``turn``, as in the
    captions.
    """
    parts = [f", {style}"] if style else []
    if colour:
        parts.insert(
            turn % 2 and len(parts), (f" on a {colour} background", f", {colour} background")[turn // 2 % 2]
        )
    opening = ("a photo of a", "a picture of a", "an image of the", "a drawing of a")[turn // 4 % 4]
    wanted = {"object": noun, "style": style, "colour": colour}
    return f"{opening} {noun}" + "".join(parts), {k: v for k, v in wanted.items() if v}


def head_of(part: str) -> tuple[str, str]:
    """``("colour", "red")`` of "red background", ``("style", ...)`` of a style."""
    return ("style", part) if part in STYLES else ("colour", part.removesuffix(" background"))


def prompts_of(concept: Concept, count: int) -> dict[str, list[Prompt]]:
    """Prompts of the four groups, ``count`` each: both, first, second, neither."""
    thing, (head, value) = concept.parts[0], head_of(concept.parts[1])
    styles, others = list(STYLES), [o for o in OBJECTS if o != thing]
    out = {"both": [], "first": [], "second": [], "neither": []}
    rest = [v for v in (STYLES if head == "style" else COLOURS) if v != value]
    for i in range(count):
        free = (
            ""
            if i % 3 == 0
            else (list(COLOURS) if head == "style" else styles)[i % (8 if head == "style" else 5)]
        )
        other = "" if i % 2 else rest[i // 2 % len(rest)]  # every second one without any

        def prompt(noun: str, second: str, free=free, i=i) -> Prompt:
            return asked(noun, *((second, free) if head == "style" else (free, second)), turn=i)

        out["both"].append(prompt(thing, value))
        out["first"].append(prompt(thing, other))
        out["second"].append(prompt(others[i % len(others)], value))
        out["neither"].append(prompt(others[i % len(others)], rest[i % len(rest)]))
    return out


def right(seen: Sequence[dict], prompts: Sequence[Prompt], head: str) -> float | None:
    """Share of the pictures asked for with a certain ``head`` that show what was asked for."""
    found = [s[head] == wanted[head] for s, (_, wanted) in zip(seen, prompts) if head in wanted]
    return sum(found) / len(found) if found else None


class Bench:
    """One model, its judge, and the base model's pictures, made once."""

    def __init__(self, name: str, seed: int, count: int):
        self.name, self.seed, self.count = name, seed, count
        self.model, self.clip, self.vae = loader.load(name)
        self.judge = domain.domain().judge
        self.config = SamplerConfig.for_model(self.model)
        self._base = {}

    def pictures(self, model, prompts: Sequence[Prompt], group: int) -> tuple[Tensor, Tensor]:
        seeds = [self.seed * 1_000_003 + group * 10_007 + i for i in range(len(prompts))]
        latents = sample(model, self.clip, [p for p, _ in prompts], seeds, self.config)
        return latents, self.vae.decode(latents)

    def colour_judge(self, count: int = 2) -> dict:
        """How often the frame's colour is the one asked for, on the base model's pictures of every object
        and colour.
        """
        prompts = [asked(o, turn=i, colour=c) for i in range(count) for o in OBJECTS for c in COLOURS]
        _, pictures = self.pictures(self.model, prompts, 9)
        seen = colours(pictures)
        per_colour = {
            c: sum(s == w["colour"] for s, (_, w) in zip(seen, prompts) if w["colour"] == c)
            / (count * len(OBJECTS))
            for c in COLOURS
        }
        return {
            "accuracy": sum(per_colour.values()) / len(COLOURS),
            "per_colour": per_colour,
            "pictures": len(prompts),
        }

    def measure(self, model, concept: Concept) -> dict:
        """Shares of the pictures of each group that show what was asked for, and the drift of all that
        stays.
        """
        head, _ = head_of(concept.parts[1])
        out, apart = {}, []
        for group, (name, prompts) in enumerate(prompts_of(concept, self.count).items()):
            key = (str(concept), name)
            if key not in self._base:
                self._base[key] = self.pictures(self.model, prompts, group)
            latents, pictures = (
                self._base[key] if model is self.model else self.pictures(model, prompts, group)
            )
            seen = shown(pictures, self.judge)
            out[name] = {h: right(seen, prompts, h) for h in ("object", "style", "colour")}
            if name == "both":
                out[name]["both"] = sum(
                    s["object"] == w["object"] and s[head] == w[head] for s, (_, w) in zip(seen, prompts)
                ) / len(prompts)
            else:
                apart.append((latents, self._base[key][0], pictures, self._base[key][1]))
        return out | {"drift": drift(*(torch.cat(v) for v in zip(*apart)))}


def run(
    models: Sequence[str],
    methods: Sequence[str],
    combinations: Sequence[str],
    count: int,
    seed: int,
    file: Path,
) -> dict:
    found = engine.load()
    setting = {
        "pictures_of_a_group": count,
        "seed": seed,
        "trace_core": trace_core.__version__,
        "torch": torch.__version__,
        "engine": found.version,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    data = json.loads(file.read_text()) if file.exists() else {"setting": setting, "judge": {}, "results": {}}
    for name in models:
        todo = [
            (c, m)
            for c in combinations
            for m in ("none", *methods)
            if f"{name}/{m}/{c}" not in data["results"]
        ]
        if not todo:
            continue
        bench = Bench(name, seed, count)
        if name not in data["judge"]:
            data["judge"][name] = bench.colour_judge()
            print(
                f"{name}: background colour right on {100 * data['judge'][name]['accuracy']:.1f} %",
                flush=True,
            )
        for line, method in todo:
            concepts, made = parse_concepts(line), {}
            model = bench.model
            if method != "none":
                result = Eraser(method, seed=seed).fit(bench.model, bench.clip, concepts)
                model, made = apply(bench.model, result.lora), {"rank": result.lora.rank}
            scores = data["results"][f"{name}/{method}/{line}"] = bench.measure(model, concepts[0]) | made
            write_text(file, json.dumps(data, indent=1) + "\n")
            print(f"{name}/{method}/{line}: {brief(scores)}", flush=True)
    return data


def brief(scores: dict) -> str:
    """One line of figures."""
    percent = lambda v: "–" if v is None else f"{100 * v:.0f}"  # noqa: E731
    groups = " | ".join(
        f"{g} " + "/".join(percent(scores[g][h]) for h in ("object", "style", "colour"))
        for g in ("both", "first", "second", "neither")
    )
    return (
        f"together {percent(scores['both']['both'])} | {groups} | drift {scores['drift']['latent_mse']:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(loader.MODELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["projection", "trace"])
    parser.add_argument("--combinations", nargs="+", default=COMBINATIONS)
    parser.add_argument("--count", type=int, default=40, help="pictures of each group of prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    run(args.models, args.methods, args.combinations, args.count, args.seed, args.out)


if __name__ == "__main__":
    main()
