"""Reports as Markdown: a verdict first, then the figures and how they were measured, then what they do not
say.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median

from ..trace_core.lora import ErasureLora

ERASING = ("erase", "attention", "steer")  #: the term of an objective that erases

LIMITS = (
    "This is no safety guarantee: whoever has the base model can leave the LoRA out, and adversarial "
    "prompts can bring a concept back. Look at pictures before you share a result: Compare Erasure draws "
    "them side by side."
)


def escaped(report: Callable[..., str]) -> Callable[..., str]:
    """A report in which names and warnings are text alone: no tags, links or pictures.

    ComfyUI's text preview draws Markdown with HTML in it, and names may come from a file that somebody
    shared.
    """

    @functools.wraps(report)
    def plain(*given, **named) -> str:
        return re.sub(r"\\(?=[\\<\]])|<|\](?=[(\[])", r"\\\g<0>", report(*given, **named))

    return plain


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _names(concepts: Sequence[dict]) -> str:
    shown = [
        c["target"]
        + (f" -> {c['anchor']}" if c["anchor"] else "")
        + (f" @ {c['strength']:g}" if c.get("strength", 1) != 1 else "")
        for c in concepts[:8]
    ]
    return ", ".join(shown) + (f" and {len(concepts) - 8} more" if len(concepts) > 8 else "")


def _kinds(report: dict) -> list[str]:
    """Which kind each concept was taken for, and why; what was changed in the list."""
    found = report.get("kinds", [])
    out = [f"> **Note:** {note}" for note in report.get("notes", [])]
    out += [""] if out else []
    if 0 < len(found) <= 12:
        return [
            *out,
            table(("concept", "kind", "why"), [(k["concept"], k["kind"], k["why"]) for k in found]),
            "",
        ]
    groups = Counter((k["kind"], k["why"]) for k in found)
    rows = [(f"{count:,} concepts", kind, why) for (kind, why), count in groups.most_common()]
    return [*out, table(("concepts", "kind", "why"), rows), ""] if rows else out


def _size(lora: ErasureLora) -> str:
    size = sum(f.nbytes for pair in lora.modules.values() for f in pair)
    return f"{len(lora.modules)} layers, rank {lora.rank}, {size / 1024:.0f} KB"


@escaped
def closed_form(report: dict, lora: ErasureLora) -> str:
    """The report of :func:`trace_core.closed_form.erase`."""
    layers = report["layers"]
    lines = [f"# Erased in closed form: {_names(report['concepts'])}", ""]
    if not lora.modules:
        return "\n".join([*lines, "**The edit changes nothing** (strength 0?)."])
    worst, middle = (of(v["residual"] for v in layers.values()) for of in (max, median))
    keep = max(v["keep_change"] for v in layers.values())
    if report["solver"] == "projection" and report["parameters"]["strength"] == 1.0:
        verdict = (
            f"Of what tells the concept from its counterpart, {100 * (1 - middle):.0f} % is gone from "
            "the median layer"
        )
        verdict += f", and at least {100 * (1 - worst):.0f} % from every layer that reads text."
    else:
        verdict = (
            f"Of what tells the concept from its counterpart, {100 * middle:.0f} % is left in the "
            "median layer"
        )
        verdict += f", and at most {100 * worst:.0f} % in any."
    lines += [
        f"**{verdict}**",
        "",
        table(
            ("figure", "value", "measured as"),
            [
                (
                    "residual, median and worst layer",
                    f"{100 * middle:.2f} %, {100 * worst:.2f} %",
                    "‖W'D‖ / ‖WD‖ over the concept's difference rows",
                ),
                (
                    "change of the keep rows, worst layer",
                    f"{100 * keep:.2f} %",
                    f"‖ΔW P‖ / ‖W P‖ over {len(report['keep'])} kept things",
                ),
                ("size", _size(lora), ""),
                ("method", f"{report['method']} ({report['solver']})", ""),
            ],
        ),
        "",
    ]
    lines += _kinds(report)
    lines += substituted(report)
    lines += [f"> **Warning:** {warning}" for warning in report["warnings"]]
    lines += _side_effects(report)
    lines += [
        "",
        "## Limits",
        "",
        "These are figures of the weights, not of pictures. The closed form removes what the rows of "
        "text carry; what the network finds by other ways stays, and is the finetune's work. " + LIMITS,
    ]
    return "\n".join(lines)


def _side_effects(report: dict) -> list[str]:
    """What the edit leaves of long and weighted prompts, and of words that share tokens with a name."""
    rows = []
    for target, found in report.get("side_effects", {}).items():
        forms = [
            ("a short prompt", "short"),
            ("a prompt of 20 words", "long"),
            (f"({target}:1.3)", "weighted"),
        ]
        rows += [
            (f"{target} in {title}", f"{100 * found[key]:.0f} %")
            for title, key in forms
            if found[key] is not None
        ]
        rows += [
            (f"'{word}', {_why(word, target, report)}", f"{100 * max(left, 0.0):.0f} %")
            for word, left in found["words"].items()
        ]
    return ["", "## Side effects", "", table(("what", "is left"), rows)] if rows else []


def _why(word: str, target: str, report: dict) -> str:
    """Why a word that shares tokens with a name should stay, if it should."""
    if word in report.get("contrast", {}).get(target, ()):
        return "a thing by itself and kept as one"
    return "kept" if word in report["keep"] else f"shares tokens with {target}"


def substituted(report: dict) -> list[str]:
    """What takes the place of concepts that were given no anchor."""
    others = report.get("substitutes", {})
    if not others:
        return []
    shown = ", ".join(f"{other} for {target}" for target, other in list(others.items())[:8])
    more = f" and {len(others) - 8} more" if len(others) > 8 else ""
    return [
        f"Drawn in place of a concept without an anchor: {shown}{more}. Write `concept -> something else` "
        "to choose, or set eta to 0 for nothing in its place.",
        "",
    ]


@escaped
def finetune(report: dict, lora: ErasureLora, joined: bool) -> str:
    """The report of :func:`trace_core.finetune.finetune`."""
    options, history = report["parameters"], report["losses"]
    count = max(1, len(history) // 10)
    names = [n for n in (history[0] if history else {}) if n != "step"]
    mean = lambda part, n: sum(entry[n] for entry in part) / len(part)  # noqa: E731
    rows = [(n, f"{mean(history[:count], n):.5f}", f"{mean(history[-count:], n):.5f}") for n in names]
    erasing = next((n for n in ERASING if n in names), None)
    first, last = (
        mean(part, erasing) if erasing else 0.0
        for part in (history[:count] or [{}], history[-count:] or [{}])
    )
    verdict = f"Trained {len(history)} steps in {report['seconds']:.0f} s."
    if erasing and len(history) >= 20:  # of fewer steps the means are noise
        verdict += f" The {erasing} term went from {first:.4f} to {last:.4f}" + (
            "." if last < first else ": it did not fall, train longer."
        )
    window = f"{report['window'][0]:.2f} to {report['window'][1]:.2f}"
    salient = []
    if options["saliency"]:
        salient = [
            ("trained, by saliency", f"{100 * report['trained_share']:.1f} % of the layers' weights"),
            ("cut off to the rank", f"{100 * report['truncation']:.1f} % of the edit's norm"),
        ]
    lines = [
        f"# Finetuned: {_names(report['concepts'])}",
        "",
        f"**{verdict}**",
        "",
        table(("term", f"first {count} steps", f"last {count} steps"), rows),
        "",
        table(
            ("figure", "value"),
            [
                ("objective", f"{report['method']}: {report['source']}"),
                ("window, in shares of the sampling schedule", window),
                ("model evaluations", report["evaluations"]),
                ("cached latents and predictions", f"{report['bank_bytes'] / 2**20:.1f} MB"),
                ("learning rate, rank, seed", f"{options['lr']:g}, {options['rank']}, {options['seed']}"),
                *salient,
                ("result", _size(lora) + (", the closed form joined in" if joined else "")),
            ],
        ),
        "",
        *_kinds(report),
        *substituted(report),
    ]
    lines += [line for w in report.get("warnings", []) for line in (f"> **Warning:** {w}", "")]
    lines += ["## Limits", ""]
    lines.append(
        "Losses are of the training's own samples: they say that it learned, not that the concept is gone. "
        + LIMITS
    )
    return "\n".join(lines)


@escaped
def fusion(report: dict, lora: ErasureLora) -> str:
    """The report of :func:`trace_core.lora.fusion.fuse`."""
    count = len(report["adapters"])
    lines = [f"# {'Fused' if report['method'] == 'fuse' else 'Added up'}: {_names(report['concepts'])}", ""]
    percent = lambda x: f"{100 * x:.2f} %"  # noqa: E731
    stream = report["streams"].get("context") or next(iter(report["streams"].values()), None)
    if stream is None:
        verdict = (
            "No layer of these erasures reads the text directly: they are added up, nothing could be fused."
        )
    else:
        mine, other = (stream[k] for k in ("fused", "sum"))
        verdict = (
            f"On its own prompts each of {count} erasures is met to {100 * (1 - mine['residual_mean']):.0f} %"
        )
        if report["method"] == "fuse":
            verdict += (
                f" (plain sum: to {100 * (1 - other['residual_mean']):.0f} %), and the kept things "
                f"change by {percent(mine['keep_change'])}"
            )
            verdict += f" (plain sum: {percent(other['keep_change'])})"
        verdict += "."
    lines += [f"**{verdict}**", ""]
    rows = []
    for name, figures in report["streams"].items():
        reads = {"context": "rows of tokens", "pooled": "pooled vector"}[name]
        for key, title in (
            ("residual_mean", "residual, mean"),
            ("residual_worst", "residual, worst"),
            ("keep_change", "change of the keep rows"),
        ):
            rows.append((f"{reads}: {title}", percent(figures["fused"][key]), percent(figures["sum"][key])))
    if rows:
        lines += [
            table(("figure", "this file", "plain sum"), rows),
            "",
            "Residual: ‖(ΔW − ΔWᵢ) Cᵢ‖ / ‖ΔWᵢ Cᵢ‖ over the rows Cᵢ of an erasure's own "
            f"prompts, all layers together; keep rows: ‖ΔW P‖ / ‖W P‖ over {len(report['keep'])} kept "
            "things.",
            "",
        ]
    name = next(iter(report["streams"]), None)
    if name:
        ordered = sorted(report["adapters"], key=lambda a: -a["residual"][name]["fused"])[:12]
        lines += [
            table(
                ("erasure", "of", "residual", "plain sum"),
                [
                    (
                        a["name"],
                        _short(a["concepts"]),
                        percent(a["residual"][name]["fused"]),
                        percent(a["residual"][name]["sum"]),
                    )
                    for a in ordered
                ],
            ),
            *([f"The worst 12 of {count}."] if count > 12 else []),
            "",
        ]
    lines += [
        table(
            ("layers", "number", "rank", "fused by"),
            [(k, v["layers"], v["rank"], v["how"]) for k, v in report["layers"].items()],
        ),
        "",
        f"{_size(lora)}, {report['parts']} parts; {report['seconds']['all']:.1f} s.",
    ]
    if report["truncation"]:
        lost = report["truncation"]
        lines.append(
            f"Cut to rank {lost['max_rank']}: of a layer's edit {percent(lost['mean'])} is lost on average, "
            f"{percent(lost['worst'])} at most."
        )
    lines += ["", *(f"> **Warning:** {warning}" for warning in report["warnings"])]
    lines += [
        "",
        "## Limits",
        "",
        "These are figures of the weights, not of pictures, and of the erasures as they came in: what one "
        "of them misses, the fused file misses too. " + LIMITS,
    ]
    return "\n".join(lines)


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


@escaped
def compare(parts: Sequence[dict], judged: Sequence[dict], settings: str) -> str:
    """Of Compare Erasure.

    Args:
        parts: ``name, drift`` (as of :func:`trace_core.evaluate.metrics.drift`) of a group of prompts each.
        judged: ``concept, before, after, pictures`` counts of the demo judge; empty on real models.
        settings: how it was sampled.
    """
    lines = ["# Before and after", ""]
    if judged:
        gone = all(j["after"] <= j["pictures"] // 10 for j in judged)
        some = any(j["after"] < j["before"] for j in judged)
        verdict = "Erased" if gone else "Partly erased" if some else "Not erased"
        seen = "; ".join(
            f"'{j['concept']}' is recognised in {j['before']} of {j['pictures']} pictures before, "
            f"{j['after']} after"
            for j in judged
        )
        lines += [f"**{verdict}.** {seen} (the demo models' judge).", ""]
    else:
        lines += [
            "**Judge by the pictures:** no classifier that comes with the pack knows what was erased here.",
            "",
        ]
    rows = [
        (p["name"], p["drift"]["samples"], f"{p['drift']['latent_mse']:.4f}", f"{p['drift']['psnr']:.1f} dB")
        for p in parts
    ]
    lines += [
        table(("prompts", "pictures", "latent mean square distance", "PSNR"), rows),
        "",
        f"Same prompts, seeds and noise on both models; {settings}. PSNR 100 means equal pictures.",
        "",
        "## Limits",
        "",
        "A few prompts and seeds: a sample, not a proof. " + LIMITS,
    ]
    return "\n".join(lines)
