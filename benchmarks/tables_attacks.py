"""Tables of what attacks bring back of an erasure."""

from __future__ import annotations

import json

from table_text import RESULTS, markdown, named, percent


def hardening() -> str:
    """What one removed direction reaches and costs, by its metric; see ``benchmarks/hardening.py``."""
    data = json.loads((RESULTS / "hardening.json").read_text())
    rows = [
        [
            *key.split("/"),
            f"{r['certificate']:.2f}",
            percent(r["rece"]),
            percent(r["acc_e"]),
            percent(r["acc_s"]),
            f"{r['latent_mse']:.3f}",
        ]
        for key, r in data["results"].items()
    ]
    head = ["model", "erased", "metric", "certificate ↑", "RECE's rows ↓", "Acc_e ↓", "Acc_s ↑", "drift ↓"]
    setting = data["setting"]
    note = f"{setting['samples']} pictures of the concept, {setting['others']} of every other class, seed 0."
    return markdown(head, rows) + f"\n\n{note}"


def attacks() -> str:
    """What attacks bring back, a row for each model and method; see ``benchmarks/recoverability.py``."""
    data = json.loads((RESULTS / "attacks.json").read_text())
    rows = []
    for key, r in data["results"].items():
        model, method, concept = key.split("/")
        found, spent = r["attacks"], r["erase_cpu_seconds"]
        rows.append(
            [
                model,
                named(method),
                f"{spent:.1f}" if spent < 10 else f"{spent:.0f}",
                *(_attack(found.get(name)) for name in ATTACKED),
            ]
        )
    first = next(iter(data["results"].values()))
    note = (
        f"{concept} erased, {first['samples']} pictures, seed {data['setting']['seed']}, "
        f"{data['setting']['threads']} thread. Share of pictures that show it. Inversions: steps until half "
        "of the pictures show it / the same on the unerased model, from the same neutral rows. Token search: "
        "in brackets what as many random tokens find. Image to image: at denoise 0.5 / what the picture "
        "alone brings. Latent inversion: text-free / on the unerased model."
    )
    return markdown(["model", "method", "CPU, s", *ATTACKED.values()], rows) + f"\n\n{note}"


#: attacks in the order of the table, with their titles
ATTACKED = {
    "rece": "RECE's rows",
    "token-inversion": "one token",
    "rows-inversion": "all rows",
    "token-search": "token search",
    "words": "other words",
    "conditioning": "mixed",
    "revival": "revival",
    "stacking": "stacking",
    "img2img": "image to image",
    "latent-inversion": "latent inversion",
}


def _attack(r: dict | None) -> str:
    if r is None:
        return "–"
    if "steps_unerased" in r:
        return " / ".join("never" if r[k] is None else str(r[k]) for k in ("steps", "steps_unerased"))
    if "random" in r:
        return f"{percent(r['rate'])} ({percent(r['random'])})"
    half = next((v for k, v in r.get("variants", {}).items() if "0.5" in k and "picture" in v), None)
    if half:
        return f"{percent(half['rate'])} / {percent(half['picture'])}"
    if "error_unerased" in r:
        return f"{percent(r['rate'])} / {percent(r['unerased'])}"
    return percent(r["rate"])


def recoverability() -> str:
    data = json.loads((RESULTS / "recoverability.json").read_text())
    rows = []
    for key, r in data["results"].items():
        model, method, concept = key.split("/")
        at = r["inversion"]["recovered_at"]
        seconds, spent = r["erase_cpu_seconds"], r["evaluations"]
        rows.append(
            [
                model,
                method,
                concept,
                f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}",
                f"{spent:,}" if spent else "–",
                percent(r["plain"]),
                percent(r["adversarial_rows"]),
                "none" if at is None else str(at),
            ]
        )
    head = [
        "model",
        "method",
        "erased",
        "CPU, s",
        "evaluations",
        "Acc_e, its prompts",
        "Acc_e, adversarial rows",
        "steps until an inversion finds it",
    ]
    note = (
        f"{next(iter(data['results'].values()))['samples']} pictures, seed {data['setting']['seed']}, "
        f"{data['setting']['threads']} thread. A concept is found where half of the pictures show it."
    )
    return markdown(head, rows) + f"\n\n{note}"


def brought_back(model: str, method: str) -> str:
    """RECE's rows, and the steps of an inversion of all rows, for one object; see :func:`attacks`."""
    found = json.loads((RESULTS / "attacks.json").read_text())["results"].get(f"{model}/{method}/cat")
    if not found:
        return "–"
    return "; ".join(_attack(found["attacks"].get(name)) for name in ("rece", "rows-inversion"))
