"""The table of what faults do."""

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
