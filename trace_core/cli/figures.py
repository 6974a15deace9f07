"""Figures of an evaluation as text."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[tuple[str, dict]]) -> str:
    """Results as aligned text, percentages."""
    percent = lambda v: "     -" if v is None else f"{100 * v:6.1f}"  # noqa: E731
    width = max(8, *(len(name) for name, _ in rows))
    lines = [f"{'':{width}}  Acc_e  Acc_s  Acc_g    H_o    H_c  drift (latent MSE, PSNR)"]
    for name, r in rows:
        figures = " ".join(percent(r[k]) for k in ("acc_e", "acc_s", "acc_g", "h_o", "h_c"))
        lines.append(f"{name:{width}} {figures}  {r['drift']['latent_mse']:.4f}, {r['drift']['psnr']:.1f} dB")
    return "\n".join(lines)
