"""Methods by name, and the common entry to them: an eraser, fitted on a model, gives an erasure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .backbones.defaults import defaults_of
from .errors import TraceError
from .text.anchors import follow_anchors
from .text.concepts import Concept, with_default_anchor
from .text.grammar import parse_concepts
from .text.synonyms import everyday

if TYPE_CHECKING:
    from .lora import ErasureLora
    from .lora.result import Erasure


@dataclass(frozen=True)
class Method:
    """A method as its paper describes it.

    Attributes:
        closed_form: options of :class:`~trace_core.closed_form.ClosedFormConfig`; None: no closed form.
        finetune: options of :class:`~trace_core.finetune.FinetuneConfig`; None: no finetune.
        per_concept: train one adapter per concept on a shared closed form, then fuse the adapters.
    """

    name: str
    help: str
    closed_form: Mapping | None = None
    finetune: Mapping | None = None
    per_concept: bool = False


#: In ``trace`` the closed form removes the main directions, and the finetune removes the rest. This split
#: drifts less for the same erasure.
METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("projection", "TRACE's closed form alone: seconds", {"policy": "projection"}),
        Method(
            "trace",
            "closed form, then late-stage finetune",
            {"policy": "projection", "energy": 0.9},
            {"objective": "trace"},
        ),
        Method("uce", "UCE's closed form", {"policy": "uce"}),
        Method("mace-cfr", "MACE's closed form, its first stage", {"policy": "mace"}),
        Method(
            "mace",
            "MACE: closed form, then attention suppression",
            {"policy": "mace"},
            {"objective": "mace"},
            per_concept=True,
        ),
        Method("trce-eot", "TRCE's closed form, its first stage", {"policy": "trce"}),
        Method(
            "trce",
            "TRCE: closed form, then early contrastive steering",
            {"policy": "trce"},
            {"objective": "trce"},
        ),
        Method("rece", "RECE's closed form: UCE in rounds", {"policy": "rece"}),
        Method("double", "Double Projections' closed form", {"policy": "double"}),
        Method("speed", "SPEED's closed form", {"policy": "speed"}),
        Method("oce", "OCE's closed form: a rotation", {"policy": "oce"}),
        Method("ant", "ANT's finetune", None, {"objective": "ant"}),
        Method("esd", "ESD-x's finetune", None, {"objective": "esd"}),
        Method("gem", "GEM's finetune, which stops by itself", None, {"objective": "gem"}),
        Method("aegis", "AEGIS's finetune against adversarial embeddings", None, {"objective": "aegis"}),
    )
}

#: policy of a closed form -> the method that consists of this closed form alone
CLOSED_FORMS = {m.closed_form["policy"]: m.name for m in METHODS.values() if m.finetune is None}


@dataclass(frozen=True)
class Eraser:
    """A method and its options: :meth:`fit` erases concepts from a model.

    ::

        erasure = Eraser(method="projection").fit(model, clip, "Van Gogh")
        erased = erasure.apply(model)

    Attributes:
        method: a name of :data:`METHODS`.
        keep: concepts that must not change; empty: the model's own list, or everyday things.
        seed: seed of all random numbers; the same seed gives the same file.
        closed_form: options of :class:`~trace_core.closed_form.ClosedFormConfig` that override the method's;
            None leaves the closed form out.
        finetune: options of :class:`~trace_core.finetune.FinetuneConfig`, likewise.
        per_concept: erase each concept separately and fuse the results; None: as in the method's paper.

    Raises:
        TraceError: if the method is unknown.
    """

    method: str = "projection"
    keep: Sequence[str] = ()
    seed: int = 0
    closed_form: Mapping | None = field(default_factory=dict)
    finetune: Mapping | None = field(default_factory=dict)
    per_concept: bool | None = None

    def __post_init__(self):
        if self.method not in METHODS:
            raise TraceError(f"method '{self.method}' is unknown; use one of {', '.join(METHODS)}")

    @property
    def parts(self) -> Method:
        """The method without the parts that the options leave out."""
        method = METHODS[self.method]
        return replace(
            method,
            closed_form=None if self.closed_form is None else method.closed_form,
            finetune=None if self.finetune is None else method.finetune,
        )

    def fit(
        self,
        model,
        clip,
        concepts: str | Sequence[Concept],
        start: ErasureLora | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        **hooks,
    ) -> Erasure:
        """Erase concepts from a model. The model is read, never written.

        Args:
            model: ComfyUI ModelPatcher; patches already on it count as part of its weights.
            clip: the ComfyUI CLIP that belongs to it.
            concepts: text in the one-line grammar, or a list of concepts.
            start: an erasure from which the finetune continues, in place of a closed form.
            progress: ``progress(phase, done, total)``, called by the closed form and the fusion. An exception
                raised in it cancels.
            hooks: ``report``, ``preview``, ``resume``, ``checkpoint``, ``region`` of
                :func:`trace_core.finetune.finetune`.

        Raises:
            ConceptError, ModelError, LoraError, TraceError: before anything is changed.
        """
        concepts = parse_concepts(concepts) if isinstance(concepts, str) else list(concepts)
        eraser, method = self._for(model, concepts), self.parts
        if len(concepts) > 1 and (method.per_concept if self.per_concept is None else self.per_concept):
            return eraser._fit_each(model, clip, concepts, progress, hooks)
        if start is None:
            first = eraser._closed_form(model, clip, concepts, progress)
        else:
            first = None
        if method.finetune is None:
            if first is None:
                raise TraceError(f"method '{self.method}' has nothing to do without its closed form")
            return first
        start = first.lora if first else start
        result = eraser._finetune(model, clip, concepts, start, hooks)
        if not first:
            return result
        return replace(result, report=result.report | {"closed_form": first.report})

    def fit_start(
        self, model, clip, concepts: Sequence[Concept], progress: Callable | None = None
    ) -> ErasureLora | None:
        """The closed form of all concepts, if the method trains one adapter per concept on it; else None."""
        if not self.parts.per_concept:
            return None
        return self._for(model, concepts)._closed_form(model, clip, concepts, progress).lora

    def fit_part(
        self,
        model,
        clip,
        concept: Concept,
        start: ErasureLora | None = None,
        progress: Callable | None = None,
        **hooks,
    ) -> Erasure:
        """Erase one of several concepts, to be fused with the others by :meth:`fuse`.

        Args:
            start: the result of :meth:`fit_start`. The adapter is trained on it, and the result excludes it.
        """
        if start is None:
            return self.fit(model, clip, [concept], None, progress, **hooks)
        result = self._for(model, [concept])._finetune(model, clip, [concept], start, hooks)
        return replace(result, lora=result.adapter)

    def fuse(
        self,
        model,
        clip,
        parts: Sequence[Erasure],
        start: ErasureLora | None = None,
        progress: Callable | None = None,
    ) -> Erasure:
        """Fuse the parts by MACE's closed-form fusion, and join the start that they share."""
        from .lora import ErasureLora
        from .lora.fusion import FusionConfig, fuse
        from .lora.result import Erasure

        concepts = [c for part in parts for c in part.concepts]
        own = self._for(model, concepts)
        config = FusionConfig(**{k: v for k, v in (own.closed_form or {}).items() if k == "contexts"})
        fused = fuse(model, clip, [p.lora for p in parts], list(own.keep), config, progress=progress)
        lora = ErasureLora.join(start, fused.lora) if start else fused.lora
        evaluations = sum(p.report.get("evaluations", 0) for p in parts)
        reports = [p.report for p in parts]
        return Erasure(lora, {"fusion": fused.report, "parts": reports, "evaluations": evaluations})

    def _for(self, model, concepts: Sequence[Concept]) -> Eraser:
        """This eraser with the model's defaults for options that are not given."""
        own = defaults_of(model)
        if own is None:
            return self
        closed_form = None if self.closed_form is None else {"contexts": own.contexts, **self.closed_form}
        finetune = None if self.finetune is None else {**own.finetune, **self.finetune}
        keep = self.keep or own.keep_list(concepts)
        return replace(self, keep=keep, closed_form=closed_form, finetune=finetune)

    def _fit_each(self, model, clip, concepts: list[Concept], progress, hooks: Mapping) -> Erasure:
        """Erase every concept separately, then fuse the results."""
        if hooks.get("resume") or hooks.get("checkpoint"):
            raise TraceError(
                "a training state belongs to one concept, and here each concept is trained separately; "
                "resume each concept in a run of its own"
            )
        concepts, notes = follow_anchors(concepts)  # needs all concepts
        concepts = [with_default_anchor(c, list(self.keep), concepts) for c in concepts]
        # the default keep list excludes every erased concept
        each = replace(self, keep=list(self.keep) or everyday(concepts), per_concept=None)
        start = each.fit_start(model, clip, concepts, progress)
        parts = [each.fit_part(model, clip, c, start, progress, **hooks) for c in concepts]
        fused = each.fuse(model, clip, parts, start, progress)
        return replace(fused, report=fused.report | {"notes": notes})

    def _closed_form(self, model, clip, concepts: Sequence[Concept], progress):
        """The closed form's result, or None if the method has no closed form."""
        if self.parts.closed_form is None:
            return None
        from .closed_form import ClosedFormConfig, erase

        options = {**self.parts.closed_form, **self.closed_form}
        if self.parts.finetune and (self.finetune or {}).get("robust") == 1:  # it keeps what is hardened here
            options = {"robust": 1, **options}
        plain = ClosedFormConfig(**options)
        own = any(plain.takes(kind, concepts) for kind in ("person", "explicit"))
        if own and "energy" not in self.closed_form:
            options.pop("energy", None)  # the method's own, which is for other kinds
        config = ClosedFormConfig(**options)
        return erase(model, clip, concepts, self.keep, config, progress, self.seed)

    def _finetune(self, model, clip, concepts, start: ErasureLora | None, hooks: Mapping):
        from .finetune import FinetuneConfig, finetune

        config = FinetuneConfig(**{**self.parts.finetune, "seed": self.seed, **self.finetune})
        return finetune(model, clip, concepts, self.keep, config, start, **hooks)
