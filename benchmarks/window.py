"""What the start of the window does: ``python benchmarks/window.py``. One concept of demo-sd, starts 0 to
0.9.

With the closed form first (the ``trace`` method), and the finetune alone. Writes ``results/window.json`` and
the plot ``docs/window.svg``; a run goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import trace_core
from trace_core import engine
from trace_core.cli.commands import write_text
from trace_core.demo import domain, loader
from trace_core.evaluate import Evaluator
from trace_core.finetune import FinetuneConfig, finetune
from trace_core.lora.gating import apply
from trace_core.methods import Eraser
from trace_core.text.grammar import parse_concepts

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "window.json"
PLOT = ROOT / "docs" / "window.svg"
STARTS = [i / 10 for i in range(10)]
FORMS = {"trace": "closed form, then finetune", "alone": "finetune alone"}


def one(evaluator: Evaluator, concept: str, form: str, window) -> dict:
    """Erase in a window and measure; ``window`` may be ``auto``."""
    concepts = parse_concepts(concept)
    keep, options = domain.keep_list(concepts), domain.FINETUNE["demo-sd"] | {"window": window}
    if form == "trace":
        result = Eraser("trace", keep, finetune=options).fit(evaluator.model, evaluator.clip, concepts)
    else:
        result = finetune(evaluator.model, evaluator.clip, concepts, keep, FinetuneConfig(**options))
    scores = evaluator.evaluate(apply(evaluator.model, result.lora), concepts)
    return {k: scores[k] for k in ("acc_e", "acc_s", "acc_g", "h_o", "drift")} | {
        "window": result.report["window"]
    }


def run(concept: str, samples: int, others: int) -> dict:
    found = engine.load()
    setting = {
        "concept": concept,
        "samples": samples,
        "others": others,
        "torch": torch.__version__,
        "engine": found.version,
        "trace_core": trace_core.__version__,
    }
    data = json.loads(RESULT.read_text()) if RESULT.exists() else {"setting": setting, "results": {}}
    model, clip, vae = loader.load("demo-sd")
    evaluator = Evaluator(model, clip, vae, domain.domain(), samples, others=others)
    for form in FORMS:
        for start in ["auto", *STARTS]:
            key = f"{form}/{start}"
            if key not in data["results"]:
                data["results"][key] = one(
                    evaluator, concept, form, start if start == "auto" else (start, 1.0)
                )
                write_text(RESULT, json.dumps(data, indent=1) + "\n")
                print(key, data["results"][key], flush=True)
    return data


# ------------------------------------------------------------------------------------------------ the plot

WIDTH, HEIGHT, LEFT, TOP = 340, 220, 46, 40
CURVES = {
    "acc_e": ("#c0392b", "Acc_e"),
    "acc_g": ("#d98c2b", "Acc_g"),
    "acc_s": ("#2471a3", "Acc_s"),
    "drift": ("#7d6608", "drift (of the largest)"),
}


def plot(data: dict) -> str:
    """Two panels side by side as SVG: figures in percent over the start of the window, the measured start
    dashed.
    """
    largest = max(r["drift"]["latent_mse"] for r in data["results"].values())
    panels = [
        panel(data, form, title, largest, LEFT + i * (WIDTH + 60))
        for i, (form, title) in enumerate(FORMS.items())
    ]
    size = f'width="{2 * WIDTH + 140}" height="{HEIGHT + 110}"'
    style = 'font-family="sans-serif" font-size="12" fill="#444"'
    legend = "".join(
        f'<line x1="{LEFT + i * 150}" x2="{LEFT + i * 150 + 24}" y1="{HEIGHT + 92}" y2="{HEIGHT + 92}" '
        f'stroke="{colour}" stroke-width="3"/><text x="{LEFT + i * 150 + 30}" '
        f'y="{HEIGHT + 96}">{name}</text>'
        for i, (colour, name) in enumerate(CURVES.values())
    )
    body = "".join(panels) + legend
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}><rect width="100%" height="100%" '
        f'fill="white"/>{body}</svg>\n'
    )


def panel(data: dict, form: str, title: str, largest: float, left: int) -> str:
    x = lambda start: left + start / 0.9 * WIDTH  # noqa: E731
    y = lambda value: TOP + (1 - value) * HEIGHT  # noqa: E731
    rows = {
        float(k.split("/")[1]): r
        for k, r in data["results"].items()
        if k.startswith(form) and not k.endswith("auto")
    }
    out = [f'<text x="{left}" y="{TOP - 16}" font-size="14" fill="#222">{title}</text>']
    for value in (0, 0.25, 0.5, 0.75, 1):
        out.append(f'<line x1="{left}" x2="{left + WIDTH}" y1="{y(value)}" y2="{y(value)}" stroke="#ddd"/>')
        out.append(f'<text x="{left - 6}" y="{y(value) + 4}" text-anchor="end">{value:.0%}</text>')
    for start in rows:
        out.append(f'<text x="{x(start)}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{start:g}</text>')
    out.append(
        f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 36}" text-anchor="middle">start of the '
        "window</text>"
    )
    auto = data["results"][f"{form}/auto"]["window"][0]
    out.append(
        f'<line x1="{x(auto)}" x2="{x(auto)}" y1="{TOP}" y2="{TOP + HEIGHT}" stroke="#888" '
        'stroke-dasharray="4 3"/>'
    )
    out.append(f'<text x="{x(auto) + 4}" y="{TOP + 12}">auto: {auto:g}</text>')
    for name, (colour, _) in CURVES.items():
        figure = (
            (lambda r: r["drift"]["latent_mse"] / largest) if name == "drift" else (lambda r, n=name: r[n])
        )
        points = " ".join(f"{x(start):.1f},{y(figure(r)):.1f}" for start, r in sorted(rows.items()))
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
    return "".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concept", default="cat")
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--others", type=int, default=2)
    args = parser.parse_args()
    write_text(PLOT, plot(run(args.concept, args.samples, args.others)))
    print(f"wrote {PLOT}")


if __name__ == "__main__":
    main()
