"""The tables of what faults do, and of what many jobs leave behind."""

from __future__ import annotations

import json

from table_text import RESULTS, markdown

COUNTED = ("trials", "lost files", "changed base models", "unclear errors")


def faults() -> str:
    """Trials and problems of every fault; see ``benchmarks/faults.py``.

    Those of faults that need no ComfyUI are the same on each, and count once.
    """
    engines = json.loads((RESULTS / "faults.json").read_text())["engines"]
    sums: dict[str, list[int]] = {}
    for measured in engines.values():
        for row in measured["faults"]:
            if row["fault"] in sums and not row["engine"]:
                continue
            counts = sums.setdefault(row["fault"], [0] * len(COUNTED))
            sums[row["fault"]] = [a + row[name] for a, name in zip(counts, COUNTED)]
    rows = [[title, *(f"{n:,}" for n in counts)] for title, counts in sums.items()]
    rows.append(["**all**", *(f"**{sum(c):,}**" for c in zip(*sums.values()))])
    setting = next(iter(engines.values()))["setting"]
    seconds = " and ".join(
        f"{sum(row['seconds'] for row in measured['faults']):.0f} s on {version}"
        for version, measured in engines.items()
    )
    note = f"ComfyUI {' and '.join(engines)}, seed {setting['seed']}, {setting['threads']} thread; {seconds}."
    return markdown(["fault", *COUNTED], rows) + f"\n\n{note}"


def soak() -> str:
    """What many jobs in one server leave behind; see ``benchmarks/soak.py``."""
    engines = json.loads((RESULTS / "soak.json").read_text())["engines"]
    rows = []
    for version, run in engines.items():
        drawn = run["pictures"]
        rows.append(
            [
                version,
                f"{run['setting']['jobs']}, {len(run['unexpected'])}",
                grown(run["memory"], ""),
                grown(run["memory"], "in_use_"),
                f"{drawn['different']} of {drawn['drawn']}",
                *(str(n) for n in run["leaked"].values()),
            ]
        )
    first = next(iter(engines.values()))
    after = first["memory"]["first_after"]
    head = ["ComfyUI", "jobs, unexpected ends", f"resident memory, job {after} → last", "of it given out"]
    head += ["other pictures", *first["leaked"]]
    setting = first["setting"]
    seconds = " and ".join(f"{run['cpu_seconds']} s" for run in engines.values())
    most = " and ".join(f"{run['memory']['most_mib']:.0f} MiB" for run in engines.values())
    note = (
        f"Seed {setting['seed']}, {setting['threads']} thread; {seconds} of processor time. At most {most} "
    )
    note += "were resident at a count."
    return markdown(head, rows) + f"\n\n{note}"


def grown(memory: dict, name: str) -> str:
    """MiB at the first and the last measurement, and the growth."""
    first, last, percent = (memory[f"{name}{k}"] for k in ("first_mib", "last_mib", "growth_percent"))
    return f"{first:.0f} → {last:.0f} MiB, {percent:+.1f} %"
