"""The tables of demo-people: people erased alone and together, one more of them, and an implied trait."""

from __future__ import annotations

import json
from statistics import fmean

from table_text import RESULTS, markdown, mean_and_spread, named, percent

CROWDS = ("person", "10 people", "50 people", "100 people")
KINDS = ("named", "implied", "neither")


def runs(task: str) -> dict[str, list[list[dict]]]:
    """Results of a task by method: one list for each seed."""
    found: dict[str, list[list[dict]]] = {}
    for file in sorted(RESULTS.glob("erasure-demo-people*.json"), key=lambda f: (len(f.name), f.name)):
        one: dict[str, list[dict]] = {}
        for key, result in json.loads(file.read_text())["results"].items():
            _, method, own, _ = key.split("/")
            if own == task:
                one.setdefault(method, []).append(result)
        for method, results in one.items():
            found.setdefault(method, []).append(results)
    return dict(sorted(found.items()))


def of_seeds(seeds: list[list[dict]], figure) -> list[float]:
    """A figure's mean over the concepts of every seed."""
    return [fmean(figure(result) for result in results) for results in seeds]


def people() -> str:
    """A row for every method and number of people."""
    rows = []
    for task in CROWDS:
        found = runs(task)
        best = max(found, key=lambda m: fmean(of_seeds(found[m], lambda r: r["h_c"])))
        for method, seeds in found.items():
            cell = lambda figure, seeds=seeds: mean_and_spread(of_seeds(seeds, figure))  # noqa: E731
            mean = lambda figure, seeds=seeds: fmean(of_seeds(seeds, figure))  # noqa: E731
            h = cell(lambda r: r["h_c"])
            rows.append(
                [
                    "1, mean of 3" if task == "person" else task.split()[0],
                    named(method),
                    *(cell(lambda r, k=k: r[k]) for k in ("acc_e", "acc_s")),
                    cell(lambda r: r["sharers"]["acc"]) if shared(seeds) else "–",
                    f"**{h}**" if method == best else h,
                    f"{mean(lambda r: r['drift']['latent_mse']):.3f}",
                    f"{mean(lambda r: r['cpu_seconds']):.1f}",
                    f"{mean(lambda r: r['bytes']) / 2**20:.1f}",
                    str(len(seeds)),
                ]
            )
    head = ["people", "method", "Acc_e ↓", "Acc_s ↑", "name shared ↑", "H_c ↑", "drift ↓", "CPU, s", "MB"]
    note = (
        "Name shared: Acc_s of those whose name shares a word with an erased one. In bold: ours, and the "
        "best H_c. MB: the file in float32."
    )
    return markdown([*head, "seeds"], rows) + f"\n\n{note}"


def shared(seeds: list[list[dict]]) -> bool:
    """Whether every erased person shares a word of the name with somebody who is kept."""
    return all(result["sharers"]["classes"] for results in seeds for result in results)


def trait() -> str:
    """A row for every method, and one for the unerased model."""
    rows = []
    for method, seeds in runs("trait").items():
        if not rows:
            before = lambda k, of, seeds=seeds: percent(  # noqa: E731
                fmean(of_seeds(seeds, lambda r: r["trait"][k][of]))
            )
            shown = fmean(of_seeds(seeds, lambda r: fmean(r["trait"][k]["people_before"] for k in KINDS)))
            rows.append(["unerased", *(before(k, "before") for k in KINDS), percent(shown), "–", "–", "–"])
        after = [mean_and_spread(of_seeds(seeds, lambda r, k=k: r["trait"][k]["after"])) for k in KINDS]
        rows.append(
            [
                named(method),
                *after,
                mean_and_spread(of_seeds(seeds, lambda r: r["acc_s"])),
                f"{fmean(of_seeds(seeds, lambda r: r['drift']['latent_mse'])):.3f}",
                f"{fmean(of_seeds(seeds, lambda r: r['cpu_seconds'])):.1f}",
                str(len(seeds)),
            ]
        )
    head = ["method", "prompts that name it ↓", "imply it ↓", "do neither ↓", "the right person ↑"]
    return markdown([*head, "drift ↓", "CPU, s", "seeds"], rows)


def one_more() -> str:
    """A row for every file."""
    names = {
        "hundred": "100 people",
        "added": "the 101st added to it",
        "taken out": "and taken out again",
        "fused": "both files fused anew",
        "solved anew": "101 people, solved anew",
    }
    found = json.loads((RESULTS / "one_more.json").read_text())
    rows = [
        [
            names[name],
            *(percent(r[k]) for k in ("newcomer", "erased", "kept")),
            f"{100 * r['mean_move']:+.1f}",
            str(r["people_moved"]),
            f"{r['drift']:.3f}",
            f"{r['seconds']:.1f}",
            f"{r['bytes'] / 2**20:.1f}",
        ]
        for name, r in found["results"].items()
    ]
    head = ["file", "the 101st ↓", "the 100 ↓", "the 99 others ↑", "mean change of the 199, points"]
    table = markdown([*head, "of them changed", "drift ↓", "seconds", "MB"], rows)
    pictures = found["setting"]["samples"]
    return f"{table}\n\n{pictures} pictures of every person, with the same noise for every file."
