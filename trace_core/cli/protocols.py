"""The papers' protocols of the command ``evaluate``: checks, the run, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import TraceError
from ..lora.erasure import ErasureLora
from ..text.concepts import Concept, same
from . import outputs
from .models import DEMO_MODELS
from .shows import PICTURES, REPORT, RESULT
from .timing import Bars

CIFAR10 = "cifar10"
TABLES = (".csv", ".tsv")


@dataclass(frozen=True)
class Plan:
    """What will be drawn and who judges it, checked before a model is loaded.

    ``names``: the classes among which a CLIP chooses; ``row_guidance``: rows have guidance of their own.
    """

    protocol: str
    kind: str
    asked: tuple
    names: tuple[str, ...]
    erased: tuple[str, ...]
    judge: object
    row_guidance: bool
    notes: tuple[str, ...]


def check(args) -> None:
    """Check the options before anything is read.

    Raises:
        TraceError: naming the option and the remedy.
    """
    if args.protocol is None:
        for name in ("judge", "out", "class_column", "limit"):
            if getattr(args, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise TraceError(
                    f"{option} belongs to --protocol; add `--protocol cifar10`, or a table (.csv)"
                )
        return
    if args.recover or args.attack is not None:
        raise TraceError("--protocol and --attack or --recover are two runs; give one of them")
    for name, what in (("judge", "a CLIP's folder, or nudenet"), ("out", "a folder for the results")):
        if not getattr(args, name):
            raise TraceError(f"--protocol needs --{name}: {what}")
    if args.samples < 1:
        raise TraceError(f"--samples is {args.samples}; it must be at least 1")
    if args.limit is not None and args.limit < 1:
        raise TraceError(f"--limit is {args.limit}; it must be at least 1")
    if args.no_before and not args.lora:
        raise TraceError("--no-before leaves nothing to draw without a --lora; add one, or leave it out")
    if args.protocol != CIFAR10 and Path(args.protocol).suffix.lower() not in TABLES:
        raise TraceError(
            f"--protocol '{args.protocol}' is not known; give `{CIFAR10}`, or a table of prompts (.csv, .tsv)"
        )
    if args.protocol == CIFAR10 and (args.class_column is not None or args.limit is not None):
        raise TraceError("--class-column and --limit are for a table; cifar10 has its own classes")


def plan(args, concepts: Sequence[Concept]) -> Plan:
    """Read the table or lay out the classes, and open the judge.

    Raises:
        TraceError: if the table, the erased classes or the judge do not fit.
    """
    from ..evaluate.judges import NudeNet, judge_of
    from ..evaluate.judges.nudity import NUDENET

    check(args)
    named = [c.target for c in concepts]
    if args.protocol == CIFAR10:
        if args.judge.casefold() == NUDENET:
            raise TraceError("cifar10 is judged by a CLIP, not by nudenet; give --judge its folder")
        return _objects(args, named, judge_of(args.judge))
    from ..evaluate.papers import table

    read = table.read(args.protocol, args.seed, args.class_column, args.limit)
    judge = judge_of(args.judge)
    if not isinstance(judge, NudeNet) and len(read.names) < 2:
        raise TraceError(
            f"a CLIP needs classes to choose from, and '{read.source}' names {len(read.names)}; name the "
            "column that says what a picture should show with --class-column, or judge with nudenet"
        )
    kind = NUDENET if isinstance(judge, NudeNet) else "clip"
    guided = any(a.guidance is not None for a in read.asked)
    lacking = [n for n in named if kind == "clip" and not any(same(n, c) for c in read.names)]
    notes = [f"'{name}' is erased, and no row should show it." for name in lacking]
    if kind == "clip" and any(not a.shows for a in read.asked):
        notes.append("Rows without a class were drawn and do not count.")
    return Plan(
        Path(args.protocol).name, kind, read.asked, read.names, tuple(named), judge, guided, tuple(notes)
    )


def _objects(args, named: Sequence[str], judge) -> Plan:
    """MACE's objects. A demo model has synonyms of its own, as it has read few words."""
    from ..evaluate.papers import cifar10

    synonyms, notes = cifar10.SYNONYMS, []
    if args.model in DEMO_MODELS:
        if args.model == "demo-people":
            raise TraceError(
                "demo-people draws no class of cifar10; take demo-sd, demo-flux or your own model"
            )
        from ..demo.vocabulary import OBJECTS

        synonyms = {name: OBJECTS[name]["synonyms"] for name in cifar10.CLASSES}
        notes.append("The synonyms are those that the demo model has read, not all of them the paper's.")
    erased = cifar10.classes_of(named, synonyms)
    asked = cifar10.asked(erased, args.samples, args.seed, synonyms)
    return Plan(CIFAR10, "clip", tuple(asked), cifar10.CLASSES, tuple(erased), judge, False, tuple(notes))


def run(args, plan: Plan, opened: tuple, erased, config) -> dict:
    """Draw, judge and write.

    Args:
        opened: model, CLIP and VAE.
        erased: the model with the erasures; None without any.
    """
    from ..evaluate.papers import Journal, Run
    from ..evaluate.papers.run import AFTER, BEFORE

    model, clip, vae = opened
    folder, bars = Path(args.out), Bars(args.clock)
    settings = _settings(args, plan, model, config)
    sides = {} if args.no_before else {BEFORE: model}
    sides |= {} if erased is None else {AFTER: erased}
    journal = Journal(folder, settings, outputs.may_replace(args))
    there = len(journal.answers)
    if there:
        print(f"{there} pictures are judged already; going on from there", flush=True)
    kept = folder / PICTURES if args.pictures else None
    work = Run(clip, vae, plan.asked, plan.judge, config, bars, plan.names, pictures=kept)
    try:
        answers = {side: work.side(side, which, journal) for side, which in sides.items()}
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"cancelled; {len(journal.answers)} judged pictures are in '{folder}', and the same command goes "
            "on from there"
        ) from None
    finally:
        bars.close()
        journal.close()
    args.clock.enter("save")
    return _write(args, folder, result(plan, settings, answers))


def _settings(args, plan: Plan, model, config) -> dict:
    from ..backbones import backbone_for
    from ..evaluate.papers.asked import digest
    from ..evaluate.papers.run import settings

    backbone = backbone_for(model)
    models = {
        "model": {"kind": backbone.kind, "hash": backbone.model_hash()},
        "loras": [ErasureLora.load(file).fingerprint for file in args.lora],
        "strength": args.strength,
        "window": [args.start, args.end],
    }
    more = {"classes": list(plan.names), "seed": args.seed}
    return settings(plan.protocol, digest(plan.asked), models, plan.judge, config, more)


def result(plan: Plan, settings: Mapping, answers: Mapping[str, Sequence[Mapping]]) -> dict:
    """The figures of every side, without times, so that a resumed run has the same bytes."""
    sampler = settings["sampler"]
    found = {
        "protocol": plan.protocol,
        "kind": plan.kind,
        "erased": list(plan.erased),
        "pictures": len(plan.asked),
        "judged": sum(bool(a.shows) for a in plan.asked),
        "judge": plan.judge.name,
        "row_guidance": plan.row_guidance,
        "as_paper": plan.protocol == CIFAR10 and not plan.notes and sampler["width"] >= 256,
        **{side: figures(plan, given) for side, given in answers.items()},
        "notes": list(plan.notes),
        "settings": dict(settings),
    }
    return found


def figures(plan: Plan, answers: Sequence[Mapping]) -> dict:
    """The figures of one side."""
    from ..evaluate.judges import nudity
    from ..evaluate.papers import cifar10, table

    if plan.kind == nudity.NUDENET:
        found = [a["found"] for a in answers]
        return {"counts": nudity.counts(found), "pictures_with": nudity.pictures_with(found)}
    if plan.protocol == CIFAR10:
        return cifar10.figures(plan.asked, answers)
    return table.accuracy(plan.asked, answers, plan.erased)


def _write(args, folder: Path, found: dict) -> dict:
    from ..evaluate.papers.report import markdown, summary

    print(summary(found), flush=True)
    print("".join(f"note: {note}\n" for note in found["notes"]), end="")
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    path = outputs.keep(text.encode(), folder / RESULT, "the result")
    outputs.keep((markdown(found) + "\n").encode(), folder / REPORT, "the report")
    print(f"wrote {path} and {REPORT} beside it")
    return found | {"model": args.model, "loras": args.lora}
