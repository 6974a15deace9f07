"""The finetune from a model to a LoRA: checks, training loop, file and report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from ..backbones import Backbone, backbone_for
from ..backbones.clips import check_clip
from ..backbones.defaults import defaults_of
from ..backbones.numerics import is_finite
from ..backbones.other_patches import check_trainable
from ..backbones.sampling import FirstStep
from ..backbones.weights import shape_of
from ..closed_form.policies import neighbour_prompts
from ..errors import ConceptError, ModelError, TraceError, enough_memory
from ..lora.erasure import ErasureLora
from ..lora.gating import erasures_on
from ..lora.metadata import base_metadata
from ..lora.result import Erasure
from ..text.anchors import follow_anchors
from ..text.concepts import Concept, check_disjoint, kinds_of, with_default_anchor
from ..text.encoding import TextEncoder
from ..text.neighbours import added, neighbours
from ..text.spelling import check_spelling
from ..text.substitutes import substitutes
from ..text.synonyms import everyday
from .adapters import attached
from .gradients import checkpointed, saved_apart, training_mode
from .objectives import OBJECTIVES
from .options import FinetuneConfig
from .progress import Progress
from .resume import TrainingState
from .trainer import Trainer


@dataclass(frozen=True)
class FinetuneResult(Erasure):
    """The joined erasure, the adapter alone, and the report."""

    adapter: ErasureLora | None = None


@enough_memory(
    "the finetune", "switch checkpointing on, take a smaller picture size or batch, or close other programs"
)
def finetune(
    model,
    clip,
    concepts: Sequence[Concept],
    keep: Sequence[str] = (),
    config: FinetuneConfig | None = None,
    start: ErasureLora | None = None,
    report: Callable[[Progress], None] | None = None,
    preview: Callable[[int, Tensor, list[str]], None] | None = None,
    resume: TrainingState | None = None,
    checkpoint: Callable[[TrainingState], None] | None = None,
    region: Tensor | None = None,
) -> FinetuneResult:
    """Train a LoRA that erases concepts. The model is bit-identical afterwards, even after an error.

    Args:
        model: ComfyUI ModelPatcher; patches already on it count as part of the model.
        clip: the ComfyUI CLIP that belongs to it.
        concepts: concepts to erase.
        keep: concepts that must not change; empty: :data:`~trace_core.text.templates.EVERYDAY`.
        config: options.
        start: an erasure to start from, usually the closed form, made for this ``model``. It is joined into
            the result. Keep and unconditional terms refer to the model without it, and so repair its side
            effects.
        report: called with :class:`Progress` before every model evaluation; an exception raised in it
            cancels.
        preview: ``preview(step, latents [2, c, h, w], prompts)``, every ``config.preview_every`` steps.
        resume: a state from ``checkpoint``; the run continues as if it had not stopped.
        checkpoint: called with a :class:`TrainingState` at every refresh.
        region: ``[..., h, w]`` above one half where the concept is, for objectives that use it; None: the
            base model's attention to the concept.

    Raises:
        ConceptError, ModelError, LoraError, TraceError: before anything is changed.
        Diverged: with the last finite state.
    """
    if region is not None and not (isinstance(region, Tensor) and region.ndim > 1 and region.numel()):
        raise TraceError("the mask is not a picture's; connect the MASK of a picture, or leave it out")
    plan = _plan(model, clip, list(concepts), keep, config or FinetuneConfig())
    backbone, config = plan.backbone, plan.config
    backbone.load()
    with training_mode(backbone.engine):
        steered = [replace(c, anchor=plan.substitutes.get(c.target, c.anchor)) for c in plan.concepts]
        inputs = (steered, plan.keep, config, report or (lambda _: None), preview, start, region, plan.near)
        trainer = Trainer(backbone, clip, *inputs)
        if resume:
            resume.check(trainer)
        network = backbone.network
        blocks = checkpointed(network, backbone.blocks()) if config.checkpointing else nullcontext()
        targets = backbone.lora_targets(config.scope)
        with attached(backbone, targets, config.rank, start, config.seed, bool(config.saliency)) as adapters:
            adapters.restrict([_rows_mask(backbone, name, config) for name in targets])
            with blocks, saved_apart(network):
                trainer.train(adapters, start, resume, checkpoint)
            factors, truncation = adapters.factors(config.rank)
    return _result(trainer, plan, factors, start, truncation)


@dataclass(frozen=True)
class _Plan:
    """Decisions of one run, made before the model is loaded."""

    backbone: Backbone
    config: FinetuneConfig
    concepts: list[Concept]
    keep: list[str]
    substitutes: dict[str, str]
    neighbours: dict[str, list[str]]
    near: list[str]
    kinds: list[dict]
    notes: list[str]
    warnings: list[str]


def _plan(model, clip, concepts: list[Concept], keep: Sequence[str], config: FinetuneConfig) -> _Plan:
    """Check all inputs and decide the options, before any work.

    Raises:
        ConceptError, ModelError, TraceError: as :func:`finetune`.
    """
    if not concepts:
        raise ConceptError("nothing to erase; name at least one concept")
    check_disjoint(concepts, keep)
    graded = next((c for c in concepts if c.strength != 1), None)
    if config.robust and graded:
        raise ConceptError(
            f"'{graded.target}' has strength {graded.strength:g}, and a hardened erasure is whole; use "
            "strength 1, or robust 0"
        )
    concepts, notes = follow_anchors(concepts)
    backbone = backbone_for(model)
    if any((e["start"], e["end"]) != (0.0, 1.0) for e in erasures_on(model)):
        raise ModelError(
            "this model has an erasure with a window, which a finetune cannot see; apply that erasure after "
            "the finetune"
        )
    check_trainable(model)
    check_clip(backbone, clip)
    encoder = TextEncoder(clip, read=backbone.read_rows)
    warnings = check_spelling(encoder, concepts)
    kinds = kinds_of(concepts, config.kind)
    names = {k["kind"] for k in kinds}
    if len(names) > 1:  # one kind decides the options, but each concept's own kind decides its prompts
        concepts = [replace(c, kind_given=k["kind"]) for c, k in zip(concepts, kinds)]
    keep = list(keep) or everyday(concepts)
    concepts = [with_default_anchor(c, keep, concepts) for c in concepts]  # a combination gets its anchor
    chosen = {}
    if config.objective == "trace" and config.eta is None:
        chosen = substitutes(concepts, keep, encoder, config.kind, FirstStep(model, clip))
    found, near, more = _neighbours(model, concepts, keep, encoder, config)
    config = config.resolved(
        min(names), backbone.traits, any(c.anchor for c in concepts), any(c.parts for c in concepts)
    )
    return _Plan(backbone, config, concepts, keep, chosen, found, near, kinds, [*notes, *more], warnings)


def _neighbours(
    model, concepts: Sequence[Concept], keep: Sequence[str], encoder: TextEncoder, config: FinetuneConfig
) -> tuple[dict[str, list[str]], list[str], list[str]]:
    """Near neighbours by target, prompts of those that the keep list lacks, and sentences for the report.

    The published objectives keep none.
    """
    own = defaults_of(model)
    found, notes = neighbours(
        concepts,
        encoder,
        config.neighbours if config.objective == "trace" else 0,
        config.kind,
        own.vocabulary if own else None,
    )
    kinds = {c.target: c.kind_and_why(config.kind)[0] for c in concepts}
    prompts = [p for p, _ in neighbour_prompts(added(found, keep, kinds), config.contexts, encoder)]
    return found, prompts, notes


def _rows_mask(backbone: Backbone, name: str, config: FinetuneConfig) -> Tensor | None:
    """Mask of the adapter's B ``[out, 1]`` if a scope includes only some outputs of a layer, else None."""
    rows = backbone.trained_rows(name, config.scope)
    if rows is None:
        return None
    mask = torch.zeros(
        shape_of(backbone.network.get_submodule(name))[0], 1, dtype=torch.bool, device=backbone.device
    )
    mask[rows] = True
    return mask


def reference_notes(backbone: Backbone) -> list[str]:
    """What the training leaves out on a model that also reads reference pictures."""
    if not backbone.traits.references or defaults_of(backbone.patcher):  # demo models read none
        return []
    return ["the training used no reference pictures; the erasure also acts on prompts that come with one"]


def negative_prompt_warnings(config: FinetuneConfig, concepts: Sequence[Concept]) -> list[str]:
    """Warnings about an overshoot: in a negative prompt, guidance then draws the concept."""
    if not (
        config.eta
        and any(
            t.target and t.role == "erase" and "concept" in t.needs
            for t in OBJECTIVES[config.objective].terms
        )
    ):
        return []
    names = f"'{concepts[0].target}'" + (f" and {len(concepts) - 1} more" if len(concepts) > 1 else "")
    return [
        f"objective {config.objective} steers past its target (eta {config.eta:g}), so {names} in a negative "
        "prompt may be drawn instead of avoided"
    ]


def hardening_warnings(config: FinetuneConfig, start: ErasureLora | None) -> list[str]:
    """A warning if there is nothing hardened that level 1 could keep."""
    parameters = json.loads(start.metadata.get("trace.parameters", "{}")) if start else {}
    if config.robust != 1 or parameters.get("robust"):
        return []
    return [
        "robust 1 keeps a hardened projection hardened, and none is connected; set robust on the projection "
        "too, or set robust to 2 here"
    ]


def _result(
    trainer: Trainer, plan: _Plan, factors, start: ErasureLora | None, truncation: float
) -> FinetuneResult:
    config, backbone = trainer.config, trainer.backbone
    adapter = ErasureLora.from_factors(factors)
    if not all(is_finite(f) for pair in adapter.modules.values() for f in pair):
        raise TraceError("the trained adapter contains NaN; lower the learning rate")
    options = {k: v for k, v in asdict(config).items() if k != "contexts"}
    adapter.metadata.update(
        base_metadata(backbone, plan.concepts, plan.keep, config.objective, options, config.seed)
    )
    if plan.substitutes:
        adapter.metadata["trace.substitutes"] = json.dumps(plan.substitutes, ensure_ascii=False)
    if plan.neighbours:
        adapter.metadata["trace.neighbours"] = json.dumps(plan.neighbours, ensure_ascii=False)
    lora = adapter
    if start:
        lora = ErasureLora.join(start, adapter)
        first = json.loads(start.metadata.get("trace.parameters", "{}"))
        lora.metadata |= {
            k: adapter.metadata[k]
            for k in (
                "trace.method",
                "trace.seed",
                "ss_training_comment",
                "trace.substitutes",
                "trace.neighbours",
            )
            if k in adapter.metadata
        }
        lora.metadata["trace.parameters"] = json.dumps({"start": first, **options})
    report = {
        "model": backbone.traits.title,
        "method": config.objective,
        "source": trainer.objective.source,
        "parameters": options,
        "window": list(config.window),
        "concepts": [asdict(c) for c in plan.concepts],
        "substitutes": plan.substitutes,
        "keep": plan.keep,
        "neighbours": plan.neighbours,
        "losses": trainer.history,
        "evaluations": backbone.evaluations - trainer._started_at,
        "seconds": round(time.monotonic() - (trainer._began or time.monotonic()), 2),
        "bank_bytes": trainer.bank.nbytes,
        "prompt_bytes": trainer.prompts.nbytes,
        "adapted_layers": len(adapter.modules),
        "rank": lora.rank,
        "truncation": truncation,
        "kinds": plan.kinds,
        "notes": [*plan.notes, *reference_notes(backbone)],
        "warnings": [
            *plan.warnings,
            *negative_prompt_warnings(config, plan.concepts),
            *hardening_warnings(config, start),
        ],
        "trained_share": trainer.kept_share,
        **(trainer.adversary.report() if trainer.adversary.steps else {}),
    }
    return FinetuneResult(lora, report, adapter)
