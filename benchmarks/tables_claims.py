"""The table of what each paper says of itself."""

from __future__ import annotations

import json

from table_text import RESULTS, markdown, percent

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
