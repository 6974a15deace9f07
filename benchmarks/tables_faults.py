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
        memory, drawn, jobs = run["memory"], run["pictures"], run["setting"]["jobs"]
        grown = f"{memory['first_mib']:.0f} → {memory['last_mib']:.0f} MiB, {memory['growth_percent']:+.1f} %"
        other = f"{drawn['different']} of {drawn['drawn']}"
        ends = f"{jobs}, {len(run['unexpected'])} of them"
        rows.append([version, ends, grown, other, *(str(n) for n in run["leaked"].values())])
    first = next(iter(engines.values()))
    head = ["ComfyUI", "jobs, unexpected ends", "memory, job 20 → last", "other pictures", *first["leaked"]]
    seconds = " and ".join(f"{run['cpu_seconds']} s" for run in engines.values())
    note = (
        f"Seed {first['setting']['seed']}, {first['setting']['threads']} thread; {seconds} of processor time."
    )
    return markdown(head, rows) + f"\n\n{note}"
