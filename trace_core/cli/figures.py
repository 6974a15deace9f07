"""Figures of an evaluation as text."""

from __future__ import annotations

from collections.abc import Sequence

#: kinds of prompts of a trait, in words
KINDS = {"named": "name it", "implied": "imply it", "neither": "do neither"}
SHOWN = 8  #: concepts whose neighbours are printed


def table(rows: Sequence[tuple[str, dict]]) -> str:
    """Results as aligned text, percentages."""
    percent = lambda v: "     -" if v is None else f"{100 * v:6.1f}"  # noqa: E731
    width = max(8, *(len(name) for name, _ in rows))
    lines = [f"{'':{width}}  Acc_e  Acc_s  Acc_g    H_o    H_c  drift (latent MSE, PSNR)"]
    for name, r in rows:
        figures = " ".join(percent(r[k]) for k in ("acc_e", "acc_s", "acc_g", "h_o", "h_c"))
        lines.append(f"{name:{width}} {figures}  {r['drift']['latent_mse']:.4f}, {r['drift']['psnr']:.1f} dB")
    return "\n".join(lines)


def groups(result: dict) -> list[str]:
    """What an evaluation says of people who share a name, and of a trait's prompts, one line each."""
    lines, sharers = [], result.get("sharers")
    if sharers and sharers["classes"]:
        lines.append(
            f"people who share a name with an erased one ({sharers['classes']}): "
            f"{100 * sharers['acc']:.1f} % recognised"
        )
    for kind, found in result.get("trait", {}).items():
        shown, people = ([100 * found[f"{k}{when}"] for when in ("before", "after")] for k in ("", "people_"))
        lines.append(
            f"prompts that {KINDS[kind]}: shown in {shown[0]:.1f} % before and {shown[1]:.1f} % after; "
            f"the right person in {people[0]:.1f} and {people[1]:.1f} %"
        )
    return lines


def remarks(report: dict) -> list[str]:
    """What an erasure decided by itself, and its warnings, one line each."""
    parts = (report.get("closed_form", {}), report)
    chosen, near = (
        {k: v for p in parts for k, v in p.get(key, {}).items()} for key in ("substitutes", "neighbours")
    )
    return [
        *(
            f"{target} is steered to {other}; write `{target} -> something else` to choose another anchor"
            for target, other in chosen.items()
        ),
        *(f"kept near {target}: {', '.join(names)}" for target, names in list(near.items())[:SHOWN]),
        *([f"kept near {len(near) - SHOWN} more concepts: see --json"] if len(near) > SHOWN else []),
        *(f"warning: {w}" for part in (report, report.get("fusion", {})) for w in part.get("warnings", [])),
    ]
