"""Tables of what an erasure erases, keeps and lets back in."""

from __future__ import annotations

import json
from statistics import fmean, median

from table_text import MODELS, OURS, RESULTS, TASKS, markdown, mean_and_spread, named, percent
from tables_attacks import brought_back

RANKED_BY = {"object": "h_o", "style": "h_c", "12 objects": "h_o"}


def results(model: str, seed: int = 0) -> dict:
    return json.loads((RESULTS / f"erasure-{model}{f'-seed{seed}' if seed else ''}.json").read_text())


def seeds(model: str) -> list[int]:
    return [n for n in range(10) if (RESULTS / f"erasure-{model}{f'-seed{n}' if n else ''}.json").exists()]


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


#: methods in the README's table: whole ones, one or two of each kind
SHOWN = ("ant", "esd", "mace", "oce", "projection", "trace", "trce", "uce")


def methods() -> str:
    """:func:`summary` for the README."""
    every = {m for found in erased().values() for m in found}
    return summary(leave_out=tuple(every - set(SHOWN)))


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
        'back, for "cat": Acc_e with RECE\'s rows; steps of an inversion / on the unerased model, '
        "see "
        "below."
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
    for model in (*MODELS, "demo-people"):
        data = json.loads((RESULTS / f"unerased-{model}.json").read_text())
        accuracy = data["accuracy"]
        drawn = accuracy.get("object") or accuracy["person"]
        worst = min(drawn["per_class"].items(), key=lambda kv: kv[1])
        rows.append(
            [
                model,
                percent(drawn["top1"]),
                percent(accuracy["style"]["top1"]),
                f"{worst[0]} {percent(worst[1])}",
                str(data["samples_per_class"]),
            ]
        )
    head = ["model", "object or person, top-1", "style, top-1", "weakest", "pictures a class"]
    return markdown(head, rows)


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


def similar() -> str:
    """The five classes nearest to an erased one, beside all others, a row for each model and method."""
    rows = []
    for model in MODELS:
        found: dict[str, list[dict]] = {}
        for seed in seeds(model):
            for key, r in results(model, seed)["results"].items():
                _, method, task, _ = key.split("/")
                if task == "object" and r.get("similar"):
                    found.setdefault(method, []).append(r)
        for method, runs in sorted(found.items()):
            near = [r["similar"] for r in runs]
            drifts = [fmean(n[k] for n in near) for k in ("latent_mse", "others_latent_mse")]
            accuracies = (fmean(n["acc"] for n in near), fmean(r["acc_s"] for r in runs))
            rows.append(
                [
                    model,
                    named(method),
                    *(percent(a) for a in accuracies),
                    *(f"{d:.4f}" for d in drifts),
                    f"{drifts[0] / drifts[1]:.1f}" if drifts[1] else "–",
                    str(len(runs)),
                ]
            )
    head = ["model", "method", "Acc_s, nearest five", "Acc_s, all", "drift, nearest five", "drift, others"]
    return markdown([*head, "ratio", "erasures"], rows)


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
