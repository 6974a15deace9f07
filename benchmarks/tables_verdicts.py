"""Table of how often Verify Erasure says what the judge says."""

from __future__ import annotations

import json

from table_text import RESULTS, markdown

STATES = ("PASS", "WARN", "FAIL")
CALLED = {"PASS": "good", "WARN": "between", "FAIL": "failed"}


def verdicts() -> str:
    """Verdicts by what the judge says; see ``benchmarks/verdicts.py``."""
    data = json.loads((RESULTS / "verdicts.json").read_text())
    rows, notes = [], []
    for model in data["summary"]:
        found = {k: r for k, r in data["results"].items() if k.startswith(model + "/")}
        for state in STATES:
            said = [r["verdict"] for r in found.values() if r["truth"] == state]
            rows.append([model, CALLED[state], str(len(said)), *(str(said.count(s)) for s in STATES)])
        s = data["summary"][model]
        wrong = [
            f"{k.partition('/')[2]} ({r['verdict']}, judge: {CALLED[r['truth']]})"
            for k, r in found.items()
            if r["truth"] not in (r["verdict"], "WARN")
        ]
        share = f"{100 * s['agree'] / s['erasures']:.0f} %"
        notes.append(
            f"On {model} {s['agree']} of {s['erasures']} verdicts agree ({share}), and "
            f"{s['passed_failed_ones']} failed ones passed. "
            + (f"Otherwise: {'; '.join(wrong)}." if wrong else "")
        )
    head = ["model", "by the judge", "erasures", *(f"verdict {s}" for s in STATES)]
    return "\n\n".join([markdown(head, rows), *(note.strip() for note in notes)])
