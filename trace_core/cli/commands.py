"""Implementation of the commands."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from ..closed_form import ClosedFormConfig
from ..errors import TraceError, enough_memory
from ..lora.erasure import ErasureLora
from ..text.concepts import Concept, with_default_anchor
from ..text.synonyms import everyday
from . import attacking, belongs, jobs, outputs, protocols, training, verifying, workers
from . import inputs as intake
from .engine import PACK_ROOT, EngineNotFound, load
from .figures import groups, remarks, table
from .information import info
from .models import DEMO_MODELS, Source, open_model
from .outputs import may_replace, write_text
from .timing import Bars, Clock

__all__ = ["open_model", "run", "write_text"]


def run(args) -> None:
    """Run a command and its reports. A missing engine becomes a user error."""
    outputs.check(args)
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    action = {
        "demo": demo,
        "erase": erase,
        "generate": generate,
        "evaluate": evaluate,
        "verify": verify,
        "info": info,
        "bench": bench,
        "fuse": fuse,
        "export": export,
    }
    args.clock = Clock()
    try:
        result = action[args.command](args)
    except EngineNotFound as error:
        raise TraceError(str(error)) from error
    if args.command not in ("info", "bench", "export"):
        print(args.clock.line())
        if isinstance(result, dict):
            result = result | {"phases": args.clock.seconds()}
    if args.json and result is not None:
        written = result.get("file") if isinstance(result, dict) else None
        outputs.write_json(
            args.json, json.dumps(result, indent=1, ensure_ascii=False) + "\n", written, may_replace(args)
        )
        print(f"wrote {args.json}")


# ------------------------------------------------------------------------------------------- shared parts


def sampler_of(args, model, demo: bool):
    """Sampler settings: command-line options over the defaults of the model family."""
    from ..backbones.sampling import SamplerConfig

    chosen = {
        k: v
        for k, v in (("steps", args.steps), ("cfg", args.cfg), ("guidance", args.guidance))
        if v is not None
    }
    if args.size:
        chosen |= {"width": args.size, "height": args.size}
    return SamplerConfig.for_model(model, **chosen)


def with_loras(
    model, files: Sequence[str], strength: float, start: float | None = None, end: float | None = None
):
    """The model with every file applied in turn. ``start`` and ``end``: the window; None: the file's own."""
    from ..lora.gating import apply

    for file in files:
        model = apply(model, ErasureLora.load(file), strength, start, end)
    return model


# ------------------------------------------------------------------------------------------- the commands


def erase(args) -> dict:
    from ..methods import METHODS

    read = intake.read(args)
    lists_report = intake.report(read, args.kind, _default_keep(args, read.concepts))
    print(
        "\n".join(intake.lines(lists_report) + (intake.table(lists_report) if args.dry_run else [])),
        flush=True,
    )
    method = METHODS[args.method]
    belongs.check(args, method)
    if args.dry_run:
        print("--dry-run: no model was loaded and nothing was written")
        return lists_report
    concepts, keep = read.concepts, read.keep
    separate = jobs.check(args, method, concepts)
    closed, tuned = _closed_form_options(args, method), training.options(args, method)
    if Path(args.out).suffix != ".safetensors":
        raise TraceError(f"--out '{args.out}' must end in .safetensors")
    if args.model in DEMO_MODELS:
        from ..demo.world import defaults

        own = defaults(args.model)
        closed, tuned = closed | {"contexts": own.contexts}, own.finetune | tuned
        keep = keep or own.keep_list(concepts)
    if args.jobs is not None:
        result, path = jobs.run(args, _setup(args, concepts, keep, closed, tuned), args.clock)
    else:
        result, path = _erase_here(args, method, concepts, keep, closed, tuned, separate)
    print(
        f"erased {_listed(concepts)}: {len(result.lora.modules)} layers, rank {result.lora.rank}, "
        f"{_done(result.report)}; wrote {path} ({path.stat().st_size / 1024:.0f} KB)"
    )
    print("\n".join(remarks(result.report)), end="\n" if remarks(result.report) else "")
    return result.report | {
        "read": lists_report,
        "model": args.model,
        "file": str(path),
        "bytes": path.stat().st_size,
    }


def _listed(concepts: Sequence[Concept]) -> str:
    return ", ".join(map(str, concepts[:20])) + (
        f" and {len(concepts) - 20:,} more" if len(concepts) > 20 else ""
    )


def _default_keep(args, concepts: Sequence[Concept]) -> int:
    """Number of entries in the default keep list."""
    if args.model in DEMO_MODELS:
        from ..demo.world import defaults

        return len(defaults(args.model).keep_list(concepts))
    return len(everyday(concepts))


def _erase_here(args, method, concepts, keep, closed, tuned, separate):
    """Erase in this process. Returns the erasure and the path of its file."""
    from ..methods import Eraser

    state, bars = training.saved_state(args, method, concepts), Bars(args.clock)
    model, clip, _ = open_model(Source.of(args), clock=args.clock)
    try:
        with training.Training(args, method, state, args.clock) as run:
            eraser = Eraser(args.method, keep, args.seed, closed, tuned, separate)
            result = eraser.fit(model, clip, concepts, progress=bars, **run.hooks())
            args.clock.enter("save")
            path = outputs.keep(
                result.lora.to_bytes(), args.out, "the erasure", run.left(), may_replace(args)
            )
            result.report.setdefault("warnings", []).extend(run.finish())
            return result, path
    finally:
        bars.close()


def _setup(args, concepts, keep, closed, tuned) -> workers.Setup:
    """Settings for the worker processes. The number of threads changes the last digits, so it is fixed."""
    load()
    source = Source.of(args)
    files = source.files()
    concepts = [with_default_anchor(c, keep, concepts) for c in concepts]  # needs all concepts
    keep = keep or everyday(concepts)
    return workers.Setup(
        args.model,
        args.method,
        tuple(concepts),
        tuple(keep),
        closed,
        tuned,
        args.seed,
        args.threads or 1,
        workers.forced_cpu(),
        files[0].stat().st_size if files else None,
        source.clip,
        source.vae,
        source.dtype,
    )


def _done(report: dict) -> str:
    """The number of model evaluations of a finetune, or what a closed form leaves."""
    if report.get("evaluations"):
        return f"{report['evaluations']} model evaluations"
    if report.get("parameters", {}).get("robust"):
        share = min(report["certificates"].values(), default=0.0)
        return f"{100 * share:.0f} % of the concept is out of reach of any text row"
    layers = [v for part in report.get("parts", [report]) for v in part["layers"].values()]
    return f"residual {100 * max((v['residual'] for v in layers), default=0.0):.1f} % at most"


def _closed_form_options(args, method) -> dict:
    """Closed-form options, checked before a model is loaded. A finetune uses --rank and --eta itself."""
    if method.closed_form is None:
        return {}
    given = [
        ("strength", args.strength),
        ("kind", args.kind),
        ("energy", args.energy),
        ("alpha", args.alpha),
        ("stream", args.stream),
        ("neighbours", args.neighbours),
    ]
    given += [("contrast", False)] if args.no_contrast else []
    given += [("exact", True)] if args.exact else []
    if method.finetune is None:
        given += [("eta", args.eta), ("max_rank", args.rank), ("robust", args.robust)]
    options = {k: v for k, v in given if v is not None}
    ClosedFormConfig(**{**method.closed_form, **options})
    return options


def generate(args) -> dict:
    from ..backbones.sampling import decode, sample
    from ..evaluate.grid import grid

    if Path(args.out).suffix.lower() != ".png":
        raise TraceError(f"--out '{args.out}' must end in .png")
    loras = [ErasureLora.load(f) for f in args.lora]
    model, clip, vae = open_model(Source.of(args), vae=True, clock=args.clock)
    config = sampler_of(args, model, args.model in DEMO_MODELS)
    bars, rows = Bars(args.clock), []
    variants = [("base", model)]
    if loras:
        names = " + ".join(Path(f).stem for f in args.lora)
        variants.append((names, with_loras(model, args.lora, args.strength, args.start, args.end)))
    for row in range(args.count):
        for label, variant in variants:
            seeds = [args.seed + row] * len(args.prompt)
            bars("sampling", 0, len(seeds))
            with enough_memory("drawing", "take a smaller --size or fewer prompts, or close other programs"):
                latents = sample(
                    variant, clip, args.prompt, seeds, config, lambda a, b: bars("sampling", a, b)
                )
                args.clock.enter("decode")
                rows.append((f"{label}\nseed {args.seed + row}", decode(vae, latents)))
    bars.close()
    args.clock.enter("save")
    sheet = grid(rows, args.prompt, scale=2 if config.width <= 128 else 1)
    picture = io.BytesIO()
    sheet.save(picture, "PNG")
    outputs.keep(picture.getvalue(), args.out, "the picture", overwrite=may_replace(args))
    print(f"wrote {args.out}")
    return {
        "model": args.model,
        "loras": args.lora,
        "prompts": args.prompt,
        "file": args.out,
        "sampler": vars(config),
    }


def evaluate(args) -> dict:
    from ..evaluate import Evaluator

    protocols.check(args)
    if args.protocol is not None:
        return _protocol(args)
    if args.model not in DEMO_MODELS:
        raise TraceError(
            f"evaluate needs a judge, and only the demo models ({', '.join(DEMO_MODELS)}) have one; for "
            "another model add --protocol and --judge"
        )
    if args.samples < 1:
        raise TraceError(f"--samples is {args.samples}; it must be at least 1")
    if args.others is not None and args.others < 1:
        raise TraceError(f"--others is {args.others}; it must be at least 1")
    concepts = intake.concepts_or_of_files(args, required=True)
    attacking.check(args, concepts)
    model, clip, vae = open_model(Source.of(args), vae=True, clock=args.clock)
    from ..demo.domain import domain

    bars, judged = Bars(args.clock), domain(args.model)
    config = sampler_of(args, model, True)
    if args.recover or args.attack is not None:
        return attacking.run(args, (model, clip, vae), judged, concepts, config, bars)
    evaluator = Evaluator(model, clip, vae, judged, args.samples, args.seed, config, bars, args.others)
    if not concepts:
        result = evaluator.unerased()
        bars.close()
        for head, part in result["accuracy"].items():
            print(f"{head}: {100 * part['top1']:.1f} % of {args.samples} samples a class")
        return result
    result = evaluator.evaluate(with_loras(model, args.lora, args.strength, args.start, args.end), concepts)
    bars.close()
    print(table([("", result)]))
    for line in groups(result):
        print(line)
    window = {"start": args.start, "end": args.end}
    return result | window | {"model": args.model, "loras": args.lora, "strength": args.strength}


def _protocol(args) -> dict:
    """A protocol of the papers on any model, with the user's own judge."""
    plan = protocols.plan(args, intake.concepts_or_of_files(args, required=False))
    opened = open_model(Source.of(args), vae=True, clock=args.clock)
    config = sampler_of(args, opened[0], args.model in DEMO_MODELS)
    erased = with_loras(opened[0], args.lora, args.strength, args.start, args.end) if args.lora else None
    return protocols.run(args, plan, opened, erased, config)


def verify(args) -> dict:
    verifying.check(args)
    lora = ErasureLora.load(args.lora)
    concepts, keep = intake.concepts(args)[0], intake.keep(args)[0]
    synonyms = verifying.synonyms(args.synonyms, concepts, lora)
    judge = verifying.judge_named(args)
    opened = open_model(Source.of(args), vae=judge is not None, clock=args.clock)
    config = sampler_of(args, opened[0], args.model in DEMO_MODELS)
    return verifying.run(args, opened, lora, concepts, keep, synonyms, config, judge)


def fuse(args) -> dict:
    from . import fuse as fusing

    return fusing.run(args, Bars(args.clock))


def export(args) -> dict:
    """Write an erasure in another key form."""
    lora = ErasureLora.load(args.file)
    if Path(args.out).suffix != ".safetensors":
        raise TraceError(f"--out '{args.out}' must end in .safetensors")
    path = outputs.keep(lora.to_bytes(form=args.format), args.out, "the file", overwrite=may_replace(args))
    print(f"wrote {path}: {len(lora.modules)} layers for {args.format} ({path.stat().st_size / 1024:.0f} KB)")
    return {
        "file": str(path),
        "from": args.file,
        "format": args.format,
        "modules": len(lora.modules),
        "bytes": path.stat().st_size,
    }


def bench(args) -> dict:
    load()
    script = PACK_ROOT / "benchmarks" / f"{args.what.replace('-', '_')}.py"
    if not script.is_file():
        raise TraceError("the benchmarks are not in the registry package; clone the repository to run them")
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.run()


def demo(args) -> dict:
    from . import demo as show

    return show.run(SimpleNamespace(**vars(args)), Bars(args.clock))
