"""``fuse``: fuse erasures into one file, remove parts, or change their strengths."""

from __future__ import annotations

from pathlib import Path

from ..errors import TraceError
from ..lora.erasure import ErasureLora
from ..lora.parts import check_strengths
from ..text.concepts import same
from . import inputs as intake
from .inputs import count
from .models import DEMO_MODELS, Source, open_model
from .outputs import keep as keep_file
from .outputs import may_replace


def run(args, bars) -> dict:
    """Check the inputs, then load the model and fuse. A single file needs no model and is not fused."""
    from ..lora.fusion import FusionConfig, check_compatible, compress, parse_strengths

    config = FusionConfig(
        mode="sum" if args.naive else "add" if args.add else "fuse",
        integration=args.integration,
        keep_weight=args.keep_weight,
        alpha=args.alpha,
        max_rank=args.max_rank,
    )
    strengths = parse_strengths("\n".join(args.strength), "--strength")
    keep, notes = intake.keep(args)
    for note in notes:
        print(f"note: {note}")
    if Path(args.out).suffix != ".safetensors":
        raise TraceError(f"--out '{args.out}' must end in .safetensors")
    names = [Path(f).name for f in args.files]
    names = args.files if len(set(names)) < len(names) else names
    loras = _without([ErasureLora.load(f) for f in args.files], args.without)
    left = [(name, lora) for name, lora in zip(names, loras) if lora is not None]
    if not left:
        raise TraceError("--without removes every concept of the files; there is nothing left to write")
    names, loras = zip(*left)
    check_compatible(loras, names)
    check_strengths([part for lora in loras for part in lora.parts()], strengths)
    if len(loras) == 1:
        lora, report = (
            loras[0].with_strengths(strengths) if strengths else loras[0],
            {"method": "parts", "warnings": []},
        )
        if args.max_rank:
            lora, report["truncation"] = compress(lora, args.max_rank)
    elif not args.model:
        raise TraceError(
            "--model is missing; name the model that the files were made for. Its text encoder makes the "
            "rows for the fusion"
        )
    else:
        result = _fused(args, names, loras, keep, config, strengths, bars)
        lora, report = result.lora, result.report
    args.clock.enter("save")
    path = keep_file(lora.to_bytes(), args.out, "the erasure", overwrite=may_replace(args))
    _show(report, lora, path, len(loras), config.max_rank)
    return report | {
        "model": args.model,
        "files": list(args.files),
        "file": str(path),
        "bytes": path.stat().st_size,
    }


def _show(report: dict, lora: ErasureLora, path: Path, files: int, max_rank: int | None) -> None:
    """Print what was fused and how accurately."""
    parts = lora.parts()
    known = sum(len(part.targets) for part in parts)
    print(
        f"{_done(report, files)}: {count(known, 'concept')} in {count(len(parts), 'part')}, "
        f"{len(lora.modules)} layers, rank {lora.rank}; wrote {path} ({path.stat().st_size / 1024:.0f} KB)"
    )
    for name, figures in report.get("streams", {}).items():
        fused, summed = figures["fused"], figures["sum"]
        print(
            f"{name}: residual {100 * fused['residual_mean']:.1f} % on average, "
            f"{100 * fused['residual_worst']:.1f} % at most (plain sum {100 * summed['residual_mean']:.1f} "
            f"%, {100 * summed['residual_worst']:.1f} %); keep rows change by "
            f"{100 * fused['keep_change']:.2f} % (plain sum {100 * summed['keep_change']:.2f} %)"
        )
    if report.get("truncation"):
        print(
            f"cut to rank {max_rank}: {100 * report['truncation']['worst']:.2f} % of a layer's edit "
            "lost at most"
        )
    for warning in report["warnings"]:
        print(f"warning: {warning}")


def _fused(args, names, loras, keep, config, strengths, bars):
    from dataclasses import replace

    from ..lora.fusion import fuse

    model, clip, _ = open_model(Source.of(args), clock=args.clock)
    if args.model in DEMO_MODELS:
        from ..demo.world import defaults

        own = defaults(args.model)
        config = replace(config, contexts=own.contexts)
        keep = keep or own.keep_list([c for lora in loras for part in lora.parts() for c in part.concepts])
    try:
        return fuse(model, clip, loras, keep, config, strengths, bars, names)
    finally:
        bars.close()


def _done(report: dict, files: int) -> str:
    return {
        "parts": "took 1 file",
        "sum": f"put {files} files side by side",
        "add": f"added to the first of {files} files",
    }.get(report["method"], f"fused {files} files")


def _without(loras: list[ErasureLora], targets: list[str]) -> list[ErasureLora | None]:
    """The files without the parts that erase ``targets``. None for a file with no other part.

    Raises:
        LoraError, TraceError: naming a concept that no file erases, or that cannot be removed alone.
    """
    erased = [[t for part in lora.parts() for t in part.targets] for lora in loras]
    for target in targets:
        if not any(same(target, t) for known in erased for t in known):
            known = ", ".join(dict.fromkeys(t for found in erased for t in found)) or "no named concept"
            raise TraceError(f"--without '{target}': the files do not erase it; they erase {known}")
    out = []
    for lora, known in zip(loras, erased):
        removed = [t for t in targets if any(same(t, k) for k in known)]
        removes_all = removed and all(any(same(t, k) for t in removed) for k in known)
        out.append(None if removes_all else lora.without(*removed) if removed else lora)
    return out
