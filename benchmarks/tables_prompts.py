"""The table of prompts by length and place of the concept."""

from __future__ import annotations

import json

from table_text import RESULTS, markdown, named, percent


def places() -> str:
    """A row for every model, method and kind of prompt, a mean over concepts; see ``prompts.py --places``."""
    data = json.loads((RESULTS / "prompts.json").read_text())["places"]
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for key, cells in data["results"].items():
        model, method, concept = key.split("/")
        for cell, found in cells.items():
            groups.setdefault((model, method, cell), []).append(found | {"concept": concept})
    rows = []
    for (model, method, cell), found in groups.items():
        worst = max(found, key=lambda f: f["erased"] - f["base, without"])
        means = [sum(f[k] for f in found) / len(found) for k in ("erased", "base, without", "base")]
        chunks = str(max(f["chunks"] for f in found))
        rows.append(
            [
                model,
                named(method),
                cell,
                chunks,
                *map(percent, means),
                f"{worst['concept']} {percent(worst['erased'])}",
            ]
        )
    concepts = dict.fromkeys(key.split("/")[2] for key in data["results"])
    note = (
        f"Percent of {data['samples']} pictures of each concept that show it, seed {data['seed']}, mean over "
        f"{', '.join(concepts)}. Without: the unerased model on the same prompts without the concept, which "
        "draw it by chance. Worst: the concept that exceeds it most."
    )
    head = ["model", "method", "prompt", "chunks", "erased", "without", "unerased", "worst"]
    return markdown(head, rows) + f"\n\n{note}"
