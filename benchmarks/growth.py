"""Draw ``docs/growth.svg`` from the results: ``python benchmarks/growth.py``.

H_c over the number of people that are erased at once, one line a method (MACE, figure 5).
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parent))
from table_text import OURS, ROOT  # noqa: E402
from tables_people import CROWDS, of_seeds, runs  # noqa: E402

PLOT = ROOT / "docs" / "growth.svg"
WIDTH, HEIGHT, LEFT, TOP = 460, 260, 46, 20
COUNTS = (1, 10, 50, 100)
COLOURS = ("#7f8c8d", "#d98c2b", "#2471a3", "#7d6608", "#8e44ad", "#16a085", "#a04000", "#5d6d7e", "#b03a7a")
GAP = 13  #: pixels between the names beside the lines


def lines() -> dict[str, dict[int, float]]:
    """H_c by method and number of people, of the methods that have all numbers."""
    found: dict[str, dict[int, float]] = {}
    for task, count in zip(CROWDS, COUNTS):
        for method, seeds in runs(task).items():
            found.setdefault(method, {})[count] = fmean(of_seeds(seeds, lambda r: r["h_c"]))
    return {m: by for m, by in found.items() if len(by) == len(COUNTS)}


def plot(found: dict[str, dict[int, float]]) -> str:
    """The lines as SVG, their names at the right."""
    places = {count: LEFT + i * WIDTH / (len(COUNTS) - 1) for i, count in enumerate(COUNTS)}
    height = lambda share: TOP + (1 - share) * HEIGHT  # noqa: E731
    out = []
    for value in (0, 0.25, 0.5, 0.75, 1):
        out.append(f'<path d="M{LEFT} {height(value):.0f}h{WIDTH}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{height(value) + 4:.0f}" text-anchor="end">{value:.0%}</text>')
    for count, x in places.items():
        out.append(f'<text x="{x:.0f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{count}</text>')
    out.append(
        f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 38}" text-anchor="middle">people erased '
        "at once, of 200; H_c</text>"
    )
    others, free = iter(COLOURS), TOP - GAP
    for method, by in sorted(found.items(), key=lambda item: -item[1][COUNTS[-1]]):
        ours = method in OURS
        colour = "#c0392b" if ours else next(others)
        points = " ".join(f"{x:.1f},{height(by[count]):.1f}" for count, x in places.items())
        out.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{3 if ours else 1.5}"/>'
        )
        free = max(free + GAP, height(by[COUNTS[-1]]) + 4)
        weight = ' font-weight="bold"' if ours else ""
        out.append(f'<text x="{LEFT + WIDTH + 8}" y="{free:.0f}" fill="{colour}"{weight}>{method}</text>')
    size = f'width="{LEFT + WIDTH + 120}" height="{TOP + HEIGHT + 50}"'
    style = 'font-family="sans-serif" font-size="12" fill="#444"'
    body = f'<rect width="100%" height="100%" fill="white"/>{"".join(out)}'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{body}</svg>\n'


def main() -> None:
    PLOT.write_text(plot(lines()), encoding="utf-8")
    print(f"wrote {PLOT}")


if __name__ == "__main__":
    main()
