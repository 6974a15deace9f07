"""Reports as Markdown: a verdict, the figures with how each was measured, and the limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean, median

from ..trace_core.evaluate.markdown import escaped, percent, shortened, table
from ..trace_core.lora import ErasureLora

ERASING_TERMS = ("erase", "attention", "steer")  #: of the objectives; each has one of these

LIMITS = (
    "An erasure is no safety guarantee. Whoever has the base model can leave the LoRA out, and adversarial "
    "prompts can bring a concept back. Look at pictures before you share a result. Compare Erasure draws "
    "pictures side by side."
)


def _concept_names(concepts: Sequence[dict]) -> str:
    """The concepts in the grammar of the erase input."""
    names = [
        c["target"]
        + (f" -> {c['anchor']}" if c["anchor"] else "")
        + (f" @ {c['strength']:g}" if c.get("strength", 1) != 1 else "")
        for c in concepts
    ]
    return shortened(names, 8)


def _kinds_and_notes(report: dict) -> list[str]:
    """What was changed in the list, and which kind each concept was taken for and why."""
    kinds = report.get("kinds", [])
    notes = [f"> **Note:** {note}" for note in report.get("notes", [])]
    notes += [""] if notes else []
    if not kinds:
        return notes
    if len(kinds) <= 12:
        rows = [(k["concept"], k["kind"], k["why"]) for k in kinds]
        return [*notes, table(("concept", "kind", "why"), rows), ""]
    groups = Counter((k["kind"], k["why"]) for k in kinds)
    rows = [(f"{count:,} concepts", kind, why) for (kind, why), count in groups.most_common()]
    return [*notes, table(("concepts", "kind", "why"), rows), ""]


def _size(lora: ErasureLora) -> str:
    size = sum(f.nbytes for pair in lora.modules.values() for f in pair)
    return f"{len(lora.modules)} layers, rank {lora.rank}, {size / 1024:.0f} KB"


def _certificate(shares: dict[str, float]) -> tuple[str, str, str]:
    """What of the concept no single text row can bring back, by the weakest text stream."""
    share = min(shares.values(), default=0.0)
    value = percent(share) if share else "nothing: some row undoes the edit"
    return "out of reach of any one text row", value, "smallest residual over all rows and layers"


def _verdict(report: dict, middle: float, worst: float) -> str:
    """One sentence on what is left of the concept, from the residuals of the median and the worst layer."""
    difference = "of what tells the concept from its counterpart"
    if report["parameters"].get("robust"):
        share = percent(min(report["certificates"].values(), default=0.0))
        return f"No text row brings back {share} {difference}, over all layers."
    if report["solver"] == "projection" and report["parameters"]["strength"] == 1.0:
        return (
            f"The median layer lost {percent(1 - middle)} {difference}, and every layer that reads text lost "
            f"at least {percent(1 - worst)}."
        )
    return (
        f"The median layer keeps {percent(middle)} {difference}, and no layer keeps more than "
        f"{percent(worst)}."
    )


@escaped
def closed_form(report: dict, lora: ErasureLora) -> str:
    """The report of :func:`trace_core.closed_form.erase`."""
    layers = report["layers"]
    lines = [f"# Erased in closed form: {_concept_names(report['concepts'])}", ""]
    if not lora.modules:
        return "\n".join([*lines, "**The edit changes nothing** (strength 0?)."])
    worst, middle = (of(v["residual"] for v in layers.values()) for of in (max, median))
    keep_change = max(v["keep_change"] for v in layers.values())
    verdict = _verdict(report, middle, worst)
    figures = [
        (
            "residual, median and worst layer",
            f"{percent(middle, 2)}, {percent(worst, 2)}",
            "‖W'D‖ / ‖WD‖ over the concept's difference rows",
        ),
        (
            "change of the keep rows, worst layer",
            percent(keep_change, 2),
            f"‖ΔW P‖ / ‖W P‖ over {len(report['keep'])} kept things",
        ),
        _certificate(report["certificates"]),
        ("size", _size(lora), ""),
        ("method", f"{report['method']} ({report['solver']})", ""),
        ("model", report["model"], ""),
    ]
    lines += [f"**{verdict}**", "", table(("figure", "value", "measured as"), figures), ""]
    lines += _kinds_and_notes(report)
    lines += _substitutes(report)
    lines += _neighbours(report)
    lines += _hardened(report)
    lines += [f"> **Warning:** {warning}" for warning in report["warnings"]]
    lines += _side_effects(report)
    lines += [
        "",
        "## Limits",
        "",
        "These are figures of weights, not of pictures. The closed form removes what the text rows carry. "
        "What the network draws by other ways stays, and the finetune removes more of that. " + LIMITS,
    ]
    return "\n".join(lines)


def _side_effects(report: dict) -> list[str]:
    """How much the edit leaves of long and weighted prompts, and of words that share tokens with a name."""
    rows = []
    for target, found in report.get("side_effects", {}).items():
        forms = [
            ("a short prompt", "short"),
            ("a prompt of 20 words", "long"),
            (f"({target}:1.3)", "weighted"),
        ]
        rows += [
            (f"{target} in {title}", percent(found[key])) for title, key in forms if found[key] is not None
        ]
        rows += [
            (f"'{word}', {_why_named(word, target, report)}", percent(max(left, 0.0)))
            for word, left in found["words"].items()
        ]
    return ["", "## Side effects", "", table(("what", "is left"), rows)] if rows else []


def _why_named(word: str, target: str, report: dict) -> str:
    """Why the side effects name a word that shares tokens with a concept's name."""
    if word in report.get("contrast", {}).get(target, ()):
        return "a thing by itself and kept as one"
    return "kept" if word in report["keep"] else f"shares tokens with {target}"


def _substitutes(report: dict) -> list[str]:
    """What the model draws in place of concepts that were given no anchor."""
    substitute_of = report.get("substitutes", {})
    if not substitute_of:
        return []
    shown = shortened([f"{other} for {target}" for target, other in substitute_of.items()], 8)
    return [
        f"Another thing takes the place of a concept without an anchor: {shown}. Write `concept -> anchor` "
        "to choose. Set eta to 0 to put nothing in a concept's place.",
        "",
    ]


def _neighbours(report: dict) -> list[str]:
    """Which near neighbours of the concepts are kept beside the keep list."""
    near = report.get("neighbours", {})
    if not near:
        return []
    shown = shortened([f"{', '.join(names)} (near {target})" for target, names in near.items()], 4)
    return [
        f"Near neighbours are kept too: {shown}. Set neighbours to 0 to keep none.",
        "",
    ]


def _hardened(report: dict) -> list[str]:
    """What a hardened erasure removes, and what it costs, by text stream."""
    found = {s: info["robust"] for s, info in report.get("solved", {}).items() if info.get("robust")}
    if not found:
        return []
    rows = []
    for stream, r in found.items():
        plain, robust = (percent(r["keep_change"][k], 2) for k in ("plain", "robust"))
        removed = f"{r['directions']}, {percent(r['share'])}"
        rows.append((stream, removed, f"{plain} → {robust}", f"{r['seconds']:.1f} s"))
    head = ("text stream", "directions removed, share of the concept", "change of the keep rows", "time")
    return [
        "The erasure is hardened: no text row reaches the removed directions of the layers.",
        "",
        table(head, rows),
        "",
    ]


@escaped
def finetune(report: dict, lora: ErasureLora, joined: bool) -> str:
    """The report of :func:`trace_core.finetune.finetune`."""
    options, history = report["parameters"], report["losses"]
    count = max(1, len(history) // 10)
    terms = [name for name in (history[0] if history else {}) if name != "step"]
    first, last = (
        {t: fmean(e[t] for e in part) for t in terms} for part in (history[:count], history[-count:])
    )
    verdict = f"Trained {len(history)} steps in {report['seconds']:.0f} s."
    erasing = next((t for t in ERASING_TERMS if t in terms), None)
    if erasing and len(history) >= 20:  # of fewer steps the means are noise
        verdict += f" The {erasing} term went from {first[erasing]:.4f} to {last[erasing]:.4f}."
        if last[erasing] >= first[erasing]:
            verdict += " That term did not fall: train longer."
    losses = [(t, f"{first[t]:.5f}", f"{last[t]:.5f}") for t in terms]
    figures = [
        ("objective", f"{report['method']}: {report['source']}"),
        ("model", report["model"]),
        ("window, in shares of the sampling schedule", "{:.2f} to {:.2f}".format(*report["window"])),
        ("model evaluations", report["evaluations"]),
        ("cached latents and predictions", f"{report['bank_bytes'] / 2**20:.1f} MB"),
        ("learning rate, rank, seed", f"{options['lr']:g}, {options['rank']}, {options['seed']}"),
    ]
    if options["saliency"]:
        figures += [
            ("trained, by saliency", f"{percent(report['trained_share'], 1)} of the layers' weights"),
            ("cut off to the rank", f"{percent(report['truncation'], 1)} of the edit's norm"),
        ]
    if "adversarial_steps" in report:
        figures.append(("steps on adversarial rows", report["adversarial_steps"]))
    if "implied" in report:
        shares = list(report["implied"].items())[:8]
        figures += [(f"drew it unasked: '{prompt}'", percent(share, 0)) for prompt, share in shares]
    figures.append(("result", _size(lora) + (", the closed form joined in" if joined else "")))
    lines = [
        f"# Finetuned: {_concept_names(report['concepts'])}",
        "",
        f"**{verdict}**",
        "",
        table(("term", f"first {count} steps", f"last {count} steps"), losses),
        "",
        table(("figure", "value"), figures),
        "",
        *_kinds_and_notes(report),
        *_substitutes(report),
        *_neighbours(report),
    ]
    lines += [text for w in report.get("warnings", []) for text in (f"> **Warning:** {w}", "")]
    lines += [
        "## Limits",
        "",
        "Losses are figures of the training's own samples. A low loss says that the LoRA learned, not that "
        "the concept is gone. " + LIMITS,
    ]
    return "\n".join(lines)


@escaped
def fusion(report: dict, lora: ErasureLora) -> str:
    """The report of :func:`trace_core.lora.fusion.fuse`."""
    title = "Added up" if report["method"] == "sum" else "Fused"
    lines = [
        f"# {title}: {_concept_names(report['concepts'])}",
        "",
        f"**{_fusion_verdict(report)}**",
        "",
        *_fusion_figures(report),
        *_fused_erasures(report),
        table(
            ("layers", "number", "rank", "fused by"),
            [(k, v["layers"], v["rank"], v["how"]) for k, v in report["layers"].items()],
        ),
        "",
        f"{_size(lora)}, {report['parts']} parts, made in {report['seconds']['all']:.1f} s.",
    ]
    if report["truncation"]:
        lost = report["truncation"]
        lines.append(
            f"The cut to rank {lost['max_rank']} loses {percent(lost['mean'], 2)} of a layer's edit on "
            f"average, and {percent(lost['worst'], 2)} at most."
        )
    lines += [
        "",
        *(f"> **Warning:** {warning}" for warning in report["warnings"]),
        "",
        "## Limits",
        "",
        "These are figures of weights, not of pictures. Each figure compares with the erasures as they came "
        "in: what one of the erasures misses, the fused file misses too. " + LIMITS,
    ]
    return "\n".join(lines)


def _fusion_verdict(report: dict) -> str:
    stream = report["streams"].get("context") or next(iter(report["streams"].values()), None)
    if stream is None:
        return "No layer of these erasures reads the text directly. The erasures are added up, not fused."
    fused, summed = stream["fused"], stream["sum"]
    verdict = f"The erasures keep {percent(1 - fused['residual_mean'])} of their effect on their own prompts"
    if report["method"] == "sum":
        return f"{verdict}."
    return (
        f"{verdict}, and {percent(1 - summed['residual_mean'])} in the plain sum. The kept things change by "
        f"{percent(fused['keep_change'], 2)}, and by {percent(summed['keep_change'], 2)} in the plain sum."
    )


def _fusion_figures(report: dict) -> list[str]:
    """Figures of this file and of the plain sum, for each way in which text enters the model."""
    titles = {
        "residual_mean": "residual, mean",
        "residual_worst": "residual, worst",
        "keep_change": "change of the keep rows",
    }
    inputs = {"context": "rows of tokens", "pooled": "pooled vector"}
    rows = [
        (f"{inputs[name]}: {title}", percent(figures["fused"][key], 2), percent(figures["sum"][key], 2))
        for name, figures in report["streams"].items()
        for key, title in titles.items()
    ]
    if not rows:
        return []
    return [
        table(("figure", "this file", "plain sum"), rows),
        "",
        "The residual is ‖(ΔW − ΔWᵢ) Cᵢ‖ / ‖ΔWᵢ Cᵢ‖ over the rows Cᵢ of an erasure's own prompts, all layers "
        f"together. The change of the keep rows is ‖ΔW P‖ / ‖W P‖ over {len(report['keep'])} kept things.",
        "",
    ]


def _fused_erasures(report: dict, most: int = 12) -> list[str]:
    """The erasures, the worst first."""
    name = next(iter(report["streams"]), None)
    if name is None:
        return []
    adapters = sorted(report["adapters"], key=lambda a: -a["residual"][name]["fused"])
    rows = [
        (
            a["name"],
            shortened(a["concepts"], 4),
            percent(a["residual"][name]["fused"], 2),
            percent(a["residual"][name]["sum"], 2),
        )
        for a in adapters[:most]
    ]
    lines = [table(("erasure", "of", "residual", "plain sum"), rows)]
    lines += [f"The worst {most} of {len(adapters)}."] if len(adapters) > most else []
    return [*lines, ""]


@escaped
def compare(parts: Sequence[dict], judged: Sequence[dict], settings: str) -> str:
    """The report of Compare Erasure.

    Args:
        parts: Groups of prompts, each as ``name, drift`` (of :func:`trace_core.evaluate.metrics.drift`).
        judged: Counts of the demo judge, as ``concept, before, after, pictures``. Empty on real models.
        settings: The sampler settings in words.
    """
    lines = ["# Before and after", ""]
    if judged:
        gone = all(j["after"] <= j["pictures"] // 10 for j in judged)
        fewer = any(j["after"] < j["before"] for j in judged)
        verdict = "Erased" if gone else "Partly erased" if fewer else "Not erased"
        seen = "; ".join(
            f"'{j['concept']}' is recognised in {j['before']} of {j['pictures']} pictures before, "
            f"{j['after']} after"
            for j in judged
        )
        lines += [f"**{verdict}.** {seen} (the demo models' judge).", ""]
    else:
        lines += [
            "**Judge by the pictures.** No classifier of the pack recognises what was erased here.",
            "",
        ]
    rows = [
        (p["name"], p["drift"]["samples"], f"{p['drift']['latent_mse']:.4f}", f"{p['drift']['psnr']:.1f} dB")
        for p in parts
    ]
    lines += [
        table(("prompts", "pictures", "latent mean square distance", "PSNR"), rows),
        "",
        f"Both models drew the same prompts with the same seeds and noise: {settings}. A PSNR of 100 dB "
        "means equal pictures.",
        "",
        "## Limits",
        "",
        "A few prompts and seeds are a sample, not a proof. " + LIMITS,
    ]
    return "\n".join(lines)
