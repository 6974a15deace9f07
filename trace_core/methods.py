"""Methods by name: which closed form, which finetune, or both in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .errors import TraceError
from .text.anchors import followed
from .text.concepts import settled
from .text.synonyms import everyday

if TYPE_CHECKING:
    from .lora.erasure import ErasureLora


@dataclass(frozen=True)
class Method:
    """A method as its paper has it.

    Attributes:
        closed_form: options of :class:`~trace_core.closed_form.ClosedFormConfig`, or None for no closed form.
        finetune: options of :class:`~trace_core.finetune.FinetuneConfig`, or None for no finetune.
        apart: of several concepts each gets an adapter of its own, on top of one closed form of all, and the
            adapters are fused.
    """

    name: str
    help: str
    closed_form: Mapping | None = None
    finetune: Mapping | None = None
    apart: bool = False


@dataclass
class Erasure:
    """One file's worth of erasure, and the reports of what made it."""

    lora: object
    report: dict = field(default_factory=dict)


#: In ``trace`` the closed form takes the main directions: what is left is the finetune's, which drifts less
#: for the same erasure.
METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("projection", "TRACE's closed form alone: seconds", {"policy": "trace"}),
        Method(
            "trace",
            "closed form, then late-stage finetune",
            {"policy": "trace", "energy": 0.9},
            {"objective": "trace"},
        ),
        Method("uce", "UCE's closed form", {"policy": "uce"}),
        Method("mace-cfr", "MACE's closed form, its first stage", {"policy": "mace"}),
        Method(
            "mace",
            "MACE: closed form, then attention suppression",
            {"policy": "mace"},
            {"objective": "mace"},
            apart=True,
        ),
        Method("trce-eot", "TRCE's closed form, its first stage", {"policy": "trce"}),
        Method(
            "trce",
            "TRCE: closed form, then early contrastive steering",
            {"policy": "trce"},
            {"objective": "trce"},
        ),
        Method("ant", "ANT's finetune", None, {"objective": "ant"}),
        Method("esd", "ESD-x's finetune", None, {"objective": "esd"}),
    )
}


def erase(
    name: str,
    model,
    clip,
    concepts: Sequence,
    keep: Sequence[str],
    closed_form: Mapping,
    finetune: Mapping,
    seed: int = 0,
    progress: Callable | None = None,
    apart: bool | None = None,
    **hooks,
) -> Erasure:
    """Erase by a method's name.

    Args:
        closed_form, finetune: options over the method's own; not used where it has no such part.
        progress: of the closed form and the fusion.
        apart: of several concepts, make each alone and fuse them; None: as the method's paper does.
        hooks: ``report``, ``preview``, ``resume``, ``checkpoint`` of :func:`trace_core.finetune.finetune`.

    Raises:
        TraceError: as the parts do.
    """
    method = METHODS[name]
    if len(concepts) > 1 and (method.apart if apart is None else apart):
        if hooks.get("resume") or hooks.get("checkpoint"):
            raise TraceError(
                "a training state is of one concept's run; of several that are made apart, resume each alone"
            )
        concepts, notes = followed(concepts)  # while they are all in sight
        concepts = [settled(c, list(keep), concepts) for c in concepts]
        keep = list(keep) or everyday(concepts)  # no other concept is kept
        first = shared_start(name, model, clip, concepts, keep, closed_form, seed, progress)
        parts = [
            erase_part(name, model, clip, c, keep, closed_form, finetune, seed, first, progress, **hooks)
            for c in concepts
        ]
        fused = fuse_parts(model, clip, parts, keep, closed_form, first, progress)
        return Erasure(fused.lora, fused.report | {"notes": notes})
    first = _closed_form(method, model, clip, concepts, keep, closed_form, seed, progress)
    if method.finetune is None:
        return Erasure(first.lora, first.report)
    result = _finetune(
        method, model, clip, concepts, keep, finetune, seed, first.lora if first else None, hooks
    )
    report = result.report | ({"closed_form": first.report} if first else {})
    return Erasure(result.lora, report)


def shared_start(
    name: str,
    model,
    clip,
    concepts: Sequence,
    keep: Sequence[str],
    closed_form: Mapping,
    seed: int = 0,
    progress: Callable | None = None,
) -> ErasureLora | None:
    """What all parts of a method start from: the closed form of all concepts, where each part is but an
    adapter on it.
    """
    if not METHODS[name].apart:
        return None
    return _closed_form(METHODS[name], model, clip, concepts, keep, closed_form, seed, progress).lora


def erase_part(
    name: str,
    model,
    clip,
    concept,
    keep: Sequence[str],
    closed_form: Mapping,
    finetune: Mapping,
    seed: int = 0,
    start: ErasureLora | None = None,
    progress: Callable | None = None,
    **hooks,
) -> Erasure:
    """One concept of several, to be fused with the others.

    Args:
        start: of :func:`shared_start`; it is trained on, and is not in the result.
    """
    if start is None:
        return erase(name, model, clip, [concept], keep, closed_form, finetune, seed, progress, **hooks)
    result = _finetune(METHODS[name], model, clip, [concept], keep, finetune, seed, start, hooks)
    return Erasure(result.adapter, result.report)


def fuse_parts(
    model,
    clip,
    parts: Sequence[Erasure],
    keep: Sequence[str],
    closed_form: Mapping,
    start: ErasureLora | None = None,
    progress: Callable | None = None,
) -> Erasure:
    """The parts as one erasure, by MACE's closed-form fusion, with the start that they share."""
    from .lora.erasure import ErasureLora
    from .lora.fusion import FusionConfig, fuse

    config = FusionConfig(**({"contexts": closed_form["contexts"]} if "contexts" in closed_form else {}))
    fused = fuse(model, clip, [p.lora for p in parts], keep, config, progress=progress)
    lora = ErasureLora.join(start, fused.lora) if start else fused.lora
    evaluations = sum(p.report.get("evaluations", 0) for p in parts)
    return Erasure(
        lora, {"fusion": fused.report, "parts": [p.report for p in parts], "evaluations": evaluations}
    )


def _closed_form(method: Method, model, clip, concepts, keep, options: Mapping, seed: int, progress):
    """Its result, or None where the method has no such part."""
    if method.closed_form is None:
        return None
    from .closed_form import ClosedFormConfig
    from .closed_form import erase as run

    return run(
        model, clip, concepts, keep, ClosedFormConfig(**{**method.closed_form, **options}), progress, seed
    )


def _finetune(
    method: Method,
    model,
    clip,
    concepts,
    keep,
    options: Mapping,
    seed: int,
    start: ErasureLora | None,
    hooks: Mapping,
):
    from .finetune.run import FinetuneConfig
    from .finetune.run import finetune as run

    return run(
        model,
        clip,
        concepts,
        keep,
        FinetuneConfig(**{**method.finetune, "seed": seed, **options}),
        start,
        **hooks,
    )
