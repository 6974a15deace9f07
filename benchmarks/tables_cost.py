"""Tables of time and memory."""

from __future__ import annotations

import json

from table_text import RESULTS, markdown, percent


def closed_form() -> str:
    """The speed table is written by the benchmark itself, as it knows what it ran."""
    data = json.loads((RESULTS / "closed_form.json").read_text())
    return data["markdown"]


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


def verify_shapes() -> str:
    """Time, progress and cancel of a verification of real shapes."""
    rows = [
        [
            name,
            version,
            f"{case['seconds'] / 60:.0f}",
            str(case["progress_calls"]),
            f"{case['longest_silence']:.0f}",
            f"{case['cancel_seconds']:.1f}",
            "bit for bit" if case["base_identical"] else "changed",
            f"{case['peak'] / 2**30:.1f}",
        ]
        for version, found in json.loads((RESULTS / "verify_shapes.json").read_text()).items()
        for name, case in found["cases"].items()
    ]
    head = ["file", "ComfyUI", "minutes", "reports of progress", "longest silence, s", "cancelled after, s"]
    return markdown([*head, "base as it was", "peak, GB"], rows)


def families() -> str:
    """Seconds and memory of the transformer families at their real widths on the newest engine. The whole
    network is on paper: its weights, and the share of a block times its blocks.
    """
    found, rows = next(iter(json.loads((RESULTS / "real_shapes.json").read_text()).values())), []
    for name, case in found["cases"].items():
        if "parameters" not in case:
            continue
        width = 1 if "fp8" in name else 2  # bytes a weight
        closed, trained = (case["extra_bytes"][phase] for phase in ("closed form", "finetune step"))
        whole, blocks = case["parameters"] * width, case["parameters"] / case["parameters_here"]
        rows.append(
            [
                name,
                f"{case['parameters'] / 1e9:.1f} B",
                f"{case['parameters_here'] / 1e9:.1f} B",
                f"{case['seconds']['closed form']:.0f} s",
                *(f"{x / 2**30:.1f}" for x in (closed, whole + closed, trained, whole + trained * blocks)),
            ]
        )
    head = ["model", "parameters", "here", "closed form", "closed form, + GB", "whole, GB"]
    return markdown([*head, "finetune step, + GB", "whole at most, GB"], rows)
