"""Write the README's tables from ``benchmarks/results/*.json``: ``python benchmarks/tables.py``
(``--check`` only compares).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from statistics import fmean, median, stdev

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MODELS = ("demo-sd", "demo-flux")
OURS = ("projection", "trace", "trace-fused")
RANKED_BY = {"object": "h_o", "style": "h_c", "12 objects": "h_o"}
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


def results(model: str, seed: int = 0) -> dict:
    return json.loads((RESULTS / f"erasure-{model}{f'-seed{seed}' if seed else ''}.json").read_text())


def seeds(model: str) -> list[int]:
    return [n for n in range(10) if (RESULTS / f"erasure-{model}{f'-seed{n}' if n else ''}.json").exists()]


def mean_and_spread(values: list[float], show=percent) -> str:
    """The mean over seeds, with the sample standard deviation where there are several."""
    return show(fmean(values)) + (f" ± {show(stdev(values))}" if len(values) > 1 else "")


def brought_back(model: str, method: str) -> str:
    """What the attacks make of the method's erasure of one object, see :func:`recoverability`."""
    found = json.loads((RESULTS / "recoverability.json").read_text())["results"].get(f"{model}/{method}/cat")
    return (
        f"{percent(found['adversarial_rows'])} / {found['inversion']['recovered_at'] or 'no'}"
        if found
        else "–"
    )


def erased() -> dict[tuple[str, str], dict[str, list[dict]]]:
    """Means over concepts of every seed, by ``(model, task)`` and method."""
    out: dict = {(model, task): {} for model in MODELS for task in TASKS}
    for model in MODELS:
        for seed in seeds(model):
            found = results(model, seed)
            for name, r in found["means"].items():
                _, method, task = name.split("/")
                each = [v for k, v in found["results"].items() if k.startswith(name + "/")]
                more = {k: fmean(e.get(k, 0) for e in each) for k in ("evaluations", "bytes")}
                seconds = median(e.get("cpu_seconds", e["erase_seconds"]) for e in each)
                out[model, task].setdefault(method, []).append(r | more | {"seconds": seconds})
    return {group: dict(sorted(methods.items())) for group, methods in out.items() if methods}


def best_of(task: str, methods: dict[str, list[dict]]) -> str:
    """The method with the highest H."""
    return max(methods, key=lambda m: fmean(r[RANKED_BY[task]] for r in methods[m]))


def named(method: str) -> str:
    return f"**{method}**" if method in OURS else method


def summary(leave_out: tuple[str, ...] = ()) -> str:
    """H and drift of every method, a column for each model and task."""
    groups = erased()
    rows = []
    for method in sorted({m for methods in groups.values() for m in methods} - set(leave_out)):
        cells = []
        for (_, task), methods in groups.items():
            runs = methods.get(method)
            h = mean_and_spread([r[RANKED_BY[task]] for r in runs]) if runs else ""
            h = f"**{h}**" if runs and best_of(task, methods) == method else h
            cells.append(f"{h}, {fmean(r['latent_mse'] for r in runs):.3f}" if runs else "–")
        rows.append([named(method), *cells])
    short = {"object": "objects", "style": "styles", "12 objects": "12 objects at once"}
    return markdown(["method: H ↑, drift ↓", *(f"{model}, {short[task]}" for model, task in groups)], rows)


def erasure() -> str:
    rows = []
    for (model, task), methods in erased().items():
        for method, runs in methods.items():
            figures = {
                k: mean_and_spread([r[k] for r in runs]) if runs[0][k] is not None else "–"
                for k in ("acc_e", "acc_s", "acc_g", "h_o", "h_c")
            }
            if method == best_of(task, methods):
                figures[RANKED_BY[task]] = f"**{figures[RANKED_BY[task]]}**"
            size, seconds = max(r["bytes"] for r in runs), min(r["seconds"] for r in runs)
            rows.append(
                [
                    model,
                    TASKS[task],
                    named(method),
                    *figures.values(),
                    f"{fmean(r['latent_mse'] for r in runs):.4f}",
                    f"{max(r['evaluations'] for r in runs):,.0f}" if runs[0]["evaluations"] else "–",
                    f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}",
                    f"{size / 1024:,.0f} KB" if size else "–",
                    brought_back(model, method) if task == "object" else "–",
                    str(len(runs)),
                ]
            )
    head = [
        "model",
        "erased",
        "method",
        "Acc_e ↓",
        "Acc_s ↑",
        "Acc_g ↓",
        "H_o ↑",
        "H_c ↑",
        "drift ↓",
        "evaluations",
        "seconds",
        "file",
        "brought back",
        "seeds",
    ]
    setting = results("demo-sd")["setting"]
    note = (
        f"{setting['samples_per_class']} pictures of an erased class and of each synonym (5 where 12 are "
        "erased at once), "
        f"{setting['samples_per_other_class']} of every other class. Seeds are of the training and of the "
        "pictures; ± is the sample standard "
        "deviation over them. In bold: ours, and the best H of its kind (H_o, for styles H_c). Evaluations "
        "of the model: forward 1, backward 2, a "
        "sample each. Seconds: median of the least disturbed seed, one thread, beside other work. Brought "
        'back, for "cat": Acc_e with adversarial '
        "rows / steps until an inversion finds it, see below."
    )
    return markdown(head, rows) + f"\n\n{note}"


def prompts() -> str:
    """Negative and long prompts, a row for each model, method and concept; see ``benchmarks/prompts.py``."""
    data = json.loads((RESULTS / "prompts.json").read_text())
    found = data["results"]
    columns = {"negative": ("erased", "base, empty", "base"), "long": ("erased", "base", "base, without")}
    parts = [part for part in columns if any(r[part] for r in found.values())]
    titles = {
        "negative": ["as negative prompt: erased", "base, empty negative prompt", "base"],
        "long": ["long: erased", "base", "base, without it"],
    }
    rows = []
    for key, r in found.items():
        model, method, concept = key.split("/")
        cells = [
            " / ".join(str(of[k]) for of in r[part].values()) or "–" for part in parts for k in columns[part]
        ]
        rows.append([model, named(method), concept, r["substitute"] or "–", *cells])
    note = (
        f'How many of {data["setting"]["samples"]} pictures of "a photo" show the concept, at cfg '
        f"{', '.join(next(iter(found.values()))['negative'])}, seed {data['setting']['seed']}."
    )
    note += (
        " Long: the concept early / in the middle / late / late among words that the tokenizer spells by "
        "letters."
        if "long" in parts
        else ""
    )
    head = ["model", "method", "erased", "in its place", *(title for part in parts for title in titles[part])]
    return markdown(head, rows) + f"\n\n{note}"


def per_class() -> str:
    rows = []
    for model in MODELS:
        for key, r in results(model)["results"].items():
            _, method, task, concept = key.split("/")
            if method in OURS and task != "12 objects":
                figures = [percent(r[k]) for k in ("acc_e", "acc_s", "acc_g", "h_o", "h_c")]
                rows.append([model, method, concept, *figures, f"{r['drift']['latent_mse']:.4f}"])
    return markdown(["model", "method", "erased", "Acc_e", "Acc_s", "Acc_g", "H_o", "H_c", "drift"], rows)


def judge() -> str:
    rows = []
    for model in MODELS:
        data = json.loads((RESULTS / f"unerased-{model}.json").read_text())
        accuracy = data["accuracy"]
        worst = min(accuracy["object"]["per_class"].items(), key=lambda kv: kv[1])
        rows.append(
            [
                model,
                percent(accuracy["object"]["top1"]),
                percent(accuracy["style"]["top1"]),
                f"{worst[0]} {percent(worst[1])}",
                str(data["samples_per_class"]),
            ]
        )
    return markdown(["model", "object top-1", "style top-1", "weakest object", "pictures a class"], rows)


def methods() -> str:
    """:func:`summary` for the README: whole methods alone, without first stages and variants."""
    return summary(leave_out=("ant-saliency", "mace-cfr", "trce-eot", "trace-fused"))


TABLES = {"summary": summary, "methods": methods, "erasure": erasure, "per_class": per_class, "judge": judge}


def closed_form() -> str:
    """The speed table is written by the benchmark itself, as it knows what it ran."""
    data = json.loads((RESULTS / "closed_form.json").read_text())
    return data["markdown"]


TABLES["closed_form"] = closed_form


def gating() -> str:
    data = json.loads((RESULTS / "gating.json").read_text())
    rows = []
    for r in data["results"]:
        for name, v in r["variants"].items():
            added = f"{1000 * v['added_seconds']:.1f} ms, {100 * v['added_share']:.2f} %"
            rows.append(
                [
                    f"{r['latent']} x {r['latent']}",
                    f"{r['base_seconds']:.1f}",
                    name,
                    added,
                    f"{100 * (v['ratio_of_medians'] - 1):+.1f} %",
                ]
            )
    note = (
        f"{data['model']}, {data['layers']} layers edited, batch {data['batch']}, {data['threads']} thread, "
        f"torch {data['torch']}, {data['clock']}. `added`: measured on the edited layers alone. `whole "
        f"steps`: medians of {' and '.join(str(r['rounds']) for r in data['results'])} alternating steps, "
        "beside other work on the same cores, which is what their spread is."
    )
    return markdown(["latent", "step, s", "erasure", "added to a step", "whole steps"], rows) + f"\n\n{note}"


TABLES["gating"] = gating


def conditional() -> str:
    data = json.loads((RESULTS / "conditional.json").read_text())
    rows = []
    for key, r in data["results"].items():
        model, method, combination = key.split("/")
        what = "style" if combination.endswith("style") else "colour"
        seen = lambda group, r=r, what=what: f"{percent(r[group]['object'])} / {percent(r[group][what])}"  # noqa: E731
        rows.append(
            [
                model,
                combination,
                "base" if method == "none" else method,
                percent(r["both"]["both"]),
                seen("first"),
                seen("second"),
                f"{r['drift']['latent_mse']:.4f}",
            ]
        )
    head = [
        "model",
        "erased together",
        "method",
        "both seen ↓",
        "the first elsewhere ↑",
        "others with the second ↑",
        "drift ↓",
    ]
    note = (
        f"{data['setting']['pictures_of_a_group']} pictures a group, seed {data['setting']['seed']}; "
        "before the stroke the object is right, behind it the background's colour or the style."
    )
    return markdown(head, rows) + f"\n\n{note}"


def recoverability() -> str:
    data = json.loads((RESULTS / "recoverability.json").read_text())
    rows = []
    for key, r in data["results"].items():
        model, method, concept = key.split("/")
        at = r["inversion"]["recovered_at"]
        seconds, spent = r["erase_cpu_seconds"], r["evaluations"]
        rows.append(
            [
                model,
                method,
                concept,
                f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}",
                f"{spent:,}" if spent else "–",
                percent(r["plain"]),
                percent(r["adversarial_rows"]),
                "none" if at is None else str(at),
            ]
        )
    head = [
        "model",
        "method",
        "erased",
        "CPU, s",
        "evaluations",
        "Acc_e, its prompts",
        "Acc_e, adversarial rows",
        "steps until an inversion finds it",
    ]
    note = (
        f"{next(iter(data['results'].values()))['samples']} pictures, seed {data['setting']['seed']}, "
        f"{data['setting']['threads']} thread. A concept is found where half of the pictures show it."
    )
    return markdown(head, rows) + f"\n\n{note}"


def mass() -> str:
    data = json.loads((RESULTS / "mass.json").read_text())
    ways = {
        "mean alone": "each alone, mean",
        "fuse": "fused",
        "sum": "summed",
        "together": "trained together",
    }
    found, rows = data["results"], []
    for key, r in found.items():
        method, _, way = key.partition("/")
        if way in ways:
            alone = [v for k, v in found.items() if k.startswith(f"{method}/alone/")]
            drift = (
                r["drift"]["latent_mse"] if "drift" in r else fmean(a["drift"]["latent_mse"] for a in alone)
            )
            rows.append(
                (
                    method,
                    list(ways).index(way),
                    [
                        ways[way],
                        *(percent(r[k]) for k in ("acc_e", "acc_s", "acc_g", "h_o", "h_c")),
                        f"{drift:.4f}",
                    ],
                )
            )
    rows = [[method, *row] for method, _, row in sorted(rows, key=lambda r: r[:2])]
    head = [
        "method",
        f"{len(data['setting']['concepts'])} of 24 objects",
        "Acc_e ↓",
        "Acc_s ↑",
        "Acc_g ↓",
        "H_o ↑",
        "H_c ↑",
        "drift ↓",
    ]
    return (
        markdown(head, rows)
        + f"\n\n{data['setting']['model']}, {data['setting']['samples_per_class']} pictures a class, seed "
        f"{data['setting']['seed']}."
    )


#: (claim, what the paper measured, groups of results to compare, measures)
CLAIMS = (
    (
        "MACE: fusion beats the plain sum",
        "100 celebrities: H_c 89.8 against 48.7",
        tuple(
            f"MACE/{k}" for k in ("focal times/fuse", "focal times/sum", "even times/fuse", "even times/sum")
        ),
        ("acc_e", "acc_s", "h_c", "drift"),
    ),
    (
        "MACE: focal times help",
        "100 celebrities: H_c 89.8 against 70.2",
        ("MACE/focal times", "MACE/even times", "MACE/focal times/fuse", "MACE/even times/fuse"),
        ("acc_e", "acc_s", "h_c", "drift"),
    ),
    (
        "ANT: late beats all times",
        "100 celebrities: H_c 88.2 against 86.8",
        ("ANT/erase late", "ANT/erase at all times"),
        ("acc_e", "acc_s", "h_c", "drift", "structure"),
    ),
    (
        "ANT: its other terms add",
        "H_c 88.2 late only, 88.7 with the unconditional late term, 88.1 with the early one, 91.7 with all",
        tuple(
            f"ANT/{k}"
            for k in ("erase late", "erase late, uncond late", "erase late, early", "all four terms")
        ),
        ("acc_e", "acc_s", "h_c", "drift", "structure"),
    ),
    (
        "ANT: reversing late keeps the structure",
        "seen in pictures: from step 35 of 50 on it is kept, from 45 broken",
        tuple(f"ANT/from {s}" for s in ("0.0", "0.06", "0.2", "0.3", "0.5")),
        ("acc_e", "structure", "drift"),
    ),
    (
        "TRCE: the end token catches paraphrases that the subject's own token misses, and the rest is "
        "unharmed",
        "shown on unsafe prompts",
        ("TRCE/subject token only", "TRCE/end token", "TRCE/end token and steering"),
        ("acc_e", "acc_g", "acc_s", "drift"),
    ),
)
NAMES = {"acc_e": "Acc_e", "acc_s": "Acc_s", "acc_g": "Acc_g", "h_o": "H_o", "h_c": "H_c"}


def claims() -> str:
    data = json.loads((RESULTS / "claims.json").read_text())
    found = data["results"] | data["means"]
    rows = []
    for claim, paper, groups, measures in CLAIMS:
        here = []
        if not any(key.startswith(groups[0].split("/")[0]) for key in found):
            continue  # this paper's runs are not done
        for group in groups:
            r = found.get(group) or found[group + "/cat"]
            figures = ", ".join(
                f"{NAMES[k]} {percent(r[k])}" if k in NAMES else f"{k} {r[k]:.3f}" for k in measures
            )
            here.append(f"{group.split('/', 1)[1]}: {figures}")
        rows.append([claim, paper, "<br>".join(here)])
    s = data["setting"]
    note = (
        f"{s['model']}, {s['samples_per_class']} pictures a class, {s['samples_per_other_class']} of the "
        f"others, seed {s['seed']}; MACE and TRCE on {', '.join(s['fused'])}."
    )
    if any(key.startswith("ANT") for key in found):
        note += (
            f" ANT's terms on {' and '.join(s['ablated'])}, its times on cat (share of the schedule); "
            "`structure`: correlation of the erased pictures with the base's at a quarter of the "
            "resolution, same prompts and seeds."
        )
    return markdown(["claim", "paper", "here"], rows) + f"\n\n{note}"


TABLES |= {"conditional": conditional, "recoverability": recoverability, "mass": mass, "claims": claims}


def finetune() -> str:
    data = json.loads((RESULTS / "finetune.json").read_text())
    parts = {"cost": finetune_cost, "memory": finetune_memory, "sizes": finetune_sizes}
    return "\n\n".join(table(data[name]) for name, table in parts.items() if name in data)


def finetune_cost(data: dict) -> str:
    rows, found = [], data["results"]
    for r in found["runs"]:
        spent, more = (r, "") if r["reached"] else (r["last"], "> ")
        figures = (
            f"{spent['step']}",
            f"{spent['evaluations']:,}",
            f"{r['evaluations_ratio']:.1f}x",
            f"{spent['cpu_seconds']:.0f}",
            f"{r['cpu_ratio']:.1f}x",
        )
        training = f"{3 * found['setting']['batch'] * spent['step']:,}"
        rows.append(
            [
                f"{r['loop']}, {r['trajectory_steps']} steps",
                *(more + f for f in figures),
                training,
                percent(spent["acc_e"]),
                percent(r["acc_s"]),
            ]
        )
    head = [
        "trajectories",
        "optimiser steps",
        "evaluations",
        "",
        "CPU, s",
        "",
        "evaluations in training",
        "Acc_e",
        "Acc_s",
    ]
    note = (
        f'demo-sd, until Acc_e of "{found["concept"]}" is at most {percent(found["target"])} in '
        f"{found['probes_in_a_row']} probes in a row ({found['pictures']} pictures every "
        f"{found['probe_every']} "
        f"optimiser steps; neither counted nor timed), batch {found['setting']['batch']}. A forward pass of "
        "one sample "
        f"counts 1, a backward pass 2. CPU time of {data['threads']} thread, torch {data['torch']}."
    )
    return markdown(head, rows) + f"\n\n{note}"


def finetune_memory(data: dict) -> str:
    rows, mb = [], lambda n: f"{n / 2**20:,.0f}"
    for name, r in data["results"].items():
        plain, twice = r["training"], r["training, checkpointed"]
        longer = twice["cpu_seconds"] / plain["cpu_seconds"]
        peaks = (mb(part["increase"]) for part in (r["inference"], plain, twice))
        rows.append(
            [
                name,
                mb(plain["weights"]),
                mb(plain["trained"]),
                *peaks,
                f"{r['activations_ratio']:.1f}x",
                f"{longer:.2f}x",
            ]
        )
    head = [
        "shapes, random weights",
        "weights, MB",
        "adapters and optimiser",
        "inference",
        "training",
        "checkpointed",
        "activations",
        "time",
    ]
    note = (
        "What comes on top of the weights, at its peak: one picture of 512 x 512 pixels, float32, CPU, the "
        "resident memory of a process each. `activations`: how many times fewer with checkpointing; "
        "`time`: its CPU time."
    )
    return markdown(head, rows) + f"\n\n{note}"


def finetune_sizes(data: dict) -> str:
    rows, found = [], data["results"]
    for name, modes in found["models"].items():
        for mode, r in modes.items():
            if mode != "weights":
                speed, peak = r["steps_per_second"], r["peak"]
                figures = ("out of memory", "–") if speed is None else (f"{speed:.2f}", f"{peak / 2**30:.1f}")
                rows.append([name, mode, *figures])
    note = (
        f"{found['device']}, {found['dtype']}, batch {found['batch']}, {found['pixels']} pixels wide and "
        "high."
    )
    return markdown(["shapes, random weights", "", "steps a second", "peak, GB"], rows) + f"\n\n{note}"


TABLES["finetune"] = finetune


def real_shapes() -> str:
    """Format by what works on it, an engine a column; ``real_shapes.py`` made the files and ran every
    phase.
    """
    data = json.loads((RESULTS / "real_shapes.json").read_text())
    head = ["file"] + [
        f"{what}, {version}"
        for version in data
        for what in ("closed form", "finetune", "stock loader", "base as it was")
    ]
    names = list(dict.fromkeys(name for found in data.values() for name in found["cases"]))
    return markdown(
        head,
        [
            [name] + [mark for found in data.values() for mark in _marks(found["cases"].get(name))]
            for name in names
        ],
    )


def _marks(case: dict | None) -> list[str]:
    """Of one file on one engine: seconds, or what was found instead."""
    if case is None or "missing" in case or "failed" in case:
        return ["not run" if case is None else "–" if "missing" in case else "failed"] * 4
    took, keys = case["seconds"], case["stock_keys"]
    return [
        f"{took['closed form']:.0f} s",
        f"{took['finetune step']:.0f} s",
        "all keys" if keys[0] == keys[1] else f"{keys[0]} of {keys[1]}",
        "bit for bit" if case["base_identical"] else "changed",
    ]


def real_shapes_phases() -> str:
    """Seconds of every phase, the peak of memory beside the loaded model, and the keys that the loader
    left.
    """
    data, rows = json.loads((RESULTS / "real_shapes.json").read_text()), []
    labels: dict[str, None] = {}
    for version, found in data.items():
        for name, case in found["cases"].items():
            if "seconds" in case:
                labels |= dict.fromkeys(case["seconds"])
                rows.append((version, name, case))
    head = ["file", "ComfyUI", "kept as", *labels, "loaded, GB", "peak, GB", "keys left"]
    return markdown(
        head,
        [
            [
                name,
                version,
                case["storage"],
                *(f"{case['seconds'].get(k, 0):.0f}" for k in labels),
                f"{case['after_load'] / 2**30:.1f}",
                f"{case['peak'] / 2**30:.1f}",
                str(len(case["keys_left"])),
            ]
            for version, name, case in rows
        ],
    )


TABLES |= {"real_shapes": real_shapes, "real_shapes_phases": real_shapes_phases, "prompts": prompts}


def fill(text: str) -> str:
    """Replace what stands between ``<!-- table NAME -->`` and ``<!-- end -->``."""

    def table(match: re.Match) -> str:
        return f"<!-- table {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->.*?<!-- end -->", table, text, flags=re.S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a page is not what the results say")
    args = parser.parse_args()
    stale = 0
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        old = page.read_text(encoding="utf-8")
        new = fill(old)
        stale += new != old
        if not args.check:
            page.write_text(new, encoding="utf-8")
    return int(bool(stale and args.check))


if __name__ == "__main__":
    sys.exit(main())
