"""What the tables share: where the results are, and how a figure and a table are written."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, stdev

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MODELS = ("demo-sd", "demo-flux")
OURS = ("projection", "trace", "trace-fused")
TASKS = {
    "object": "10 CIFAR objects, one at a time",
    "style": "5 styles, one at a time",
    "12 objects": "12 objects at once",
}


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def mean_and_spread(values: list[float], show=percent) -> str:
    """The mean over seeds, with the sample standard deviation where there are several."""
    return show(fmean(values)) + (f" ± {show(stdev(values))}" if len(values) > 1 else "")


def named(method: str) -> str:
    return f"**{method}**" if method in OURS else method
