"""The fusion from many erasures to one: checks, sums, solve, factors, report."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from ...backbones import Backbone, backbone_for
from ...backbones.base import CONTEXT, POOLED
from ...backbones.clips import check_clip
from ...errors import LoraError, enough_memory
from ...text.anchors import follow_anchors
from ...text.concepts import Concept, check_disjoint, same
from ...text.encoding import TextEncoder
from ...text.synonyms import everyday
from ..erasure import ErasureLora
from ..gating import base_mismatch, check_fits
from ..metadata import base_metadata
from ..parts import check_strengths
from ..result import Erasure
from .config import Adapter, FusionConfig, Progress
from .factors import assemble, one_part, parts_of
from .sums import Stream, collect


@dataclass(frozen=True)
class FusionResult(Erasure):
    """The fused erasure and its report."""


@enough_memory("the fusion", "fuse fewer files at once, shorten the keep list, or close other programs")
def fuse(
    model,
    clip,
    loras: Sequence[ErasureLora],
    keep: Sequence[str] = (),
    config: FusionConfig | None = None,
    strengths: Mapping[str, float] | None = None,
    progress: Progress | None = None,
    names: Sequence[str] | None = None,
) -> FusionResult:
    """Fuse erasures of one base model. Each needs metadata about what it erases.

    Args:
        model: ComfyUI ModelPatcher that the erasures were made for; it is read, never written.
        clip: the ComfyUI CLIP that belongs to it.
        loras: one or more erasures. A fused file counts as one adapter, and its parts stay parts.
        keep: concepts that must not change; empty: the erasures' own keep lists without the erased concepts.
        config: options.
        strengths: ``{target: strength}`` of parts in the result, as in
            :meth:`~trace_core.lora.ErasureLora.with_strengths`.
        progress: ``progress(phase, done, total)``; an exception raised in it cancels.
        names: names of the erasures in errors and in the report.

    Raises:
        LoraError: naming the erasure: it does not tell what it erases, it does not fit the model, or bases or
            windows differ.
        ConceptError, ModelError, TraceError: before anything is changed.
    """
    config, begin = config or FusionConfig(), time.perf_counter()
    progress, clock = progress or (lambda *_: None), {}
    adapters = enter(model, loras, names)
    concepts = list({c.target: c for a in adapters for c, _ in a.concepts}.values())
    check_strengths([p for a in adapters for p in a.parts], strengths or {})
    check_disjoint(concepts, keep)
    backbone = backbone_for(model)
    keep_list = list(keep) or _own_keep(adapters, concepts)  # measured even at weight 0
    streams = [part for s in (CONTEXT, POOLED) if (part := Stream(backbone, s, adapters, config)).layers]
    if streams:
        check_clip(backbone, clip)
        collect(
            streams, TextEncoder(clip, read=backbone.read_rows), adapters, keep_list, config, progress, clock
        )
    if config.mode != "sum":
        for stream in streams:
            stream.solve(progress, clock)
    lora, truncation = assemble(adapters, streams, config, clock)
    for stream in streams:
        stream.measure(backbone, adapters, lora, progress, clock)
    lora.metadata.update(_metadata(backbone, adapters, concepts, keep_list, config))
    lora._set_parts(parts_of(adapters, lora) if config.max_rank is None else [one_part(concepts, lora)])
    part_strengths = {t: s for a in adapters for t, s in a.strengths.items()} | dict(strengths or {})
    lora = lora.with_strengths(part_strengths) if part_strengths else lora
    clock["all"] = time.perf_counter() - begin
    report = {
        **_settings(config, concepts, keep_list, part_strengths, clock),
        **_figures(adapters, streams, lora),
        "truncation": truncation,
    }
    report["warnings"] = _warnings(model, adapters, report, streams)
    return FusionResult(lora, report)


def _settings(
    config: FusionConfig, concepts: list[Concept], keep: list[str], strengths: dict, clock: dict
) -> dict:
    return {
        "method": config.mode,
        "parameters": asdict(config),
        "concepts": [asdict(c) for c in concepts],
        "keep": keep,
        "strengths": strengths,
        "seconds": {k: round(v, 4) for k, v in clock.items()},
    }


def enter(model, loras: Sequence[ErasureLora], names: Sequence[str] | None = None) -> list[Adapter]:
    """Check that the erasures can be fused, before any computation.

    Raises:
        LoraError: naming the erasure and the remedy.
    """
    loras = list(loras)
    if not loras:
        raise LoraError("nothing to fuse; name at least one erasure")
    names = list(names) if names else [f"LoRA {i}" for i in range(1, len(loras) + 1)]
    check_compatible(loras, names)
    fitting: set[tuple] = set()
    for name, lora in zip(names, loras):
        form = tuple((m, up.shape[0], down.shape[1]) for m, (up, down) in sorted(lora.modules.items()))
        try:
            if form not in fitting:  # most share a form, and reading the model's shapes is slow
                check_fits(model, lora)
        except LoraError as error:
            raise LoraError(f"{name}: {error}") from error
        fitting.add(form)
    adapters = []
    for name, lora in zip(names, loras):
        parts = lora.parts()
        strengths = {t: p.strength for p in parts if p.strength != 1.0 for t in p.targets}
        lora = lora.with_strengths(dict.fromkeys(strengths, 1.0)) if strengths else lora
        adapters.append(Adapter(name, lora, lora.parts(), strengths))
    return adapters


def check_compatible(loras: Sequence[ErasureLora], names: Sequence[str]) -> None:
    """Check without a model whether erasures can be fused.

    Raises:
        LoraError: naming the first that cannot be fused, and the remedy.
    """
    for name, lora in zip(names, loras):
        if not lora.modules:
            raise LoraError(f"{name} changes nothing; leave it out")
        if not all(part.concepts for part in lora.parts()):
            raise LoraError(
                f"{name} does not say what it erases, so its prompts are unknown; only "
                "erasures of TRACE can be fused: apply it beside the fused file, with a LoRA loader of its "
                "own"
            )
        if lora.window != loras[0].window:
            raise LoraError(
                f"{name} is for the window {lora.window}, but {names[0]} is for {loras[0].window}; one file "
                "has one window: fuse files of the same window, and apply the others one by one"
            )
    bases = {
        name: base
        for name, lora in zip(names, loras)
        if isinstance(base := lora.info().get("trace.base"), dict)
    }
    for name, base in bases.items():
        first, other = next(iter(bases.items()))
        if base.get("kind") != other.get("kind"):
            raise LoraError(
                f"{name} is for {base.get('kind')} models, but {first} is for {other.get('kind')}; fuse "
                "files of one family"
            )
        if base.get("hash") != other.get("hash"):
            raise LoraError(
                f"{name} was made on another base ({base.get('hash')}) than {first} ({other.get('hash')}); "
                "make all on one base"
            )


def _own_keep(adapters: Sequence[Adapter], concepts: Sequence[Concept]) -> list[str]:
    """The erasures' keep lists without the erased concepts; everyday things if there are none."""
    lists = [a.lora.info().get("trace.keep") for a in adapters]
    found = dict.fromkeys(
        k for kept in lists if isinstance(kept, list) for k in kept if isinstance(k, str) and k.strip()
    )
    return [k for k in found if not any(same(k, c.target) for c in concepts)] if found else everyday(concepts)


def _metadata(
    backbone: Backbone, adapters: Sequence[Adapter], concepts, keep, config: FusionConfig
) -> dict[str, str]:
    """Metadata of a new erasure, with the base and window of the fused ones."""
    options = {k: v for k, v in asdict(config).items() if k != "contexts"}
    options["methods"] = sorted({str(a.lora.info().get("trace.method", "")) for a in adapters})
    out = base_metadata(backbone, concepts, keep, config.mode, options, 0)
    for key in ("trace.base", "trace.window"):
        out |= next(({key: a.lora.metadata[key]} for a in adapters if key in a.lora.metadata), {})
    return out


def _figures(adapters: Sequence[Adapter], streams: Sequence[Stream], lora: ErasureLora) -> dict:
    """Layers by kind, ranks, and the residual and keep change of every stream, fused and summed."""
    fused = {layer.module: stream.name for stream in streams for layer in stream.layers}
    kinds: dict[str, dict] = {}
    for module, (up, down) in lora.modules.items():
        kind = re.sub(r"\d+", "N", module.removeprefix("diffusion_model."))
        entry = kinds.setdefault(kind, {"layers": 0, "rank": 0, "how": fused.get(module, "side by side")})
        entry["layers"] += 1
        entry["rank"] = max(entry["rank"], down.shape[0])
    out: dict = {"layers": kinds, "rank": lora.rank, "parts": len(lora.parts()), "streams": {}}
    for stream in streams:
        out["streams"][stream.name] = {
            how: {
                "residual_mean": sum(f["residual"]) / len(f["residual"]),
                "residual_worst": max(f["residual"]),
                "keep_change": f["keep_change"],
            }
            for how, f in stream.figures.items()
        }
    out["adapters"] = [
        {
            "name": adapter.name,
            "concepts": [c.target for c, _ in adapter.concepts],
            "residual": {s.name: {how: f["residual"][i] for how, f in s.figures.items()} for s in streams},
        }
        for i, adapter in enumerate(adapters)
    ]
    return out


def _warnings(model, adapters: Sequence[Adapter], report: dict, streams: Sequence[Stream]) -> list[str]:
    """Warnings about the fused result."""
    out = list(dict.fromkeys(filter(None, (base_mismatch(model, a.lora) for a in adapters))))
    named: dict[str, str] = {}
    for adapter in adapters:
        for concept, _ in adapter.concepts:
            twice = next((name for target, name in named.items() if same(target, concept.target)), None)
            if twice:
                out.append(
                    f"'{concept.target}' is erased by {twice} and by {adapter.name}; on its prompts the "
                    "result is their mean"
                )
            named.setdefault(concept.target, adapter.name)
    notes = follow_anchors([c for a in adapters for c, _ in a.concepts])[1] if len(adapters) > 1 else []
    out += [
        f"{note.split(', so ')[0]}; on its prompts that may be drawn, so erase these concepts in one list"
        for note in notes
        if ", so " in note
    ]
    beside = {kind: v for kind, v in report["layers"].items() if v["how"] == "side by side"}
    if beside and report["method"] != "sum" and len(adapters) > 1:
        out.append(
            f"{sum(v['layers'] for v in beside.values())} layers do not read the text rows and cannot be "
            f"fused ({', '.join(list(beside)[:4])}); there the erasures add up"
        )
    for stream in streams:
        if report["parameters"]["max_rank"] is None and report["rank"] > stream.width:
            out.append(
                f"rank {report['rank']} is more than the {stream.width} numbers of the {stream.name}: "
                "max_rank makes it smaller, but its concepts can no longer be removed one by one"
            )
    return out
