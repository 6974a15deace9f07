"""Methods by name: which closed form, which finetune, or both in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Method:
    """A method as its paper has it.

    Attributes:
        closed_form: options of :class:`~trace_core.closed_form.ClosedFormConfig`, or None for no closed form.
        finetune: options of :class:`~trace_core.finetune.FinetuneConfig`, or None for no finetune.
    """

    name: str
    help: str
    closed_form: Mapping | None = None
    finetune: Mapping | None = None


@dataclass
class Erasure:
    """One file's worth of erasure, and the reports of what made it."""

    lora: object
    report: dict = field(default_factory=dict)


#: In ``trace`` the closed form takes the main directions and does not overshoot: what is left is the finetune's, which drifts
#: less for the same erasure.
METHODS: dict[str, Method] = {m.name: m for m in (
    Method("projection", "TRACE's closed form alone: seconds", {"policy": "trace"}),
    Method("trace", "closed form, then late-stage finetune", {"policy": "trace", "eta": 0.0, "energy": 0.9}, {"objective": "trace"}),
    Method("uce", "UCE's closed form", {"policy": "uce"}),
    Method("mace-cfr", "MACE's closed form, its first stage", {"policy": "mace"}),
    Method("mace", "MACE: closed form, then attention suppression", {"policy": "mace"}, {"objective": "mace"}),
    Method("trce-eot", "TRCE's closed form, its first stage", {"policy": "trce"}),
    Method("trce", "TRCE: closed form, then early contrastive steering", {"policy": "trce"}, {"objective": "trce"}),
    Method("ant", "ANT's finetune", None, {"objective": "ant"}),
    Method("esd", "ESD-x's finetune", None, {"objective": "esd"}),
)}  # fmt: skip


def erase(name: str, model, clip, concepts: Sequence, keep: Sequence[str], closed_form: Mapping, finetune: Mapping, seed: int = 0,
          progress: Callable | None = None, **hooks) -> Erasure:  # fmt: skip
    """Erase by a method's name.

    Args:
        closed_form, finetune: options over the method's own; not used where it has no such part.
        progress: of the closed form.
        hooks: ``report``, ``preview``, ``resume``, ``checkpoint`` of :func:`trace_core.finetune.finetune`.

    Raises:
        TraceError: as the two parts do.
    """
    from .closed_form import ClosedFormConfig
    from .closed_form import erase as erase_closed_form

    method, first = METHODS[name], None
    if method.closed_form is not None:
        config = ClosedFormConfig(**{**method.closed_form, **closed_form})
        first = erase_closed_form(model, clip, concepts, keep, config, progress, seed)
        if method.finetune is None:
            return Erasure(first.lora, first.report)
    from .finetune import FinetuneConfig
    from .finetune import finetune as run

    config = FinetuneConfig(**{**method.finetune, "seed": seed, **finetune})
    result = run(model, clip, concepts, keep, config, first.lora if first else None, **hooks)
    report = result.report | ({"closed_form": first.report} if first else {})
    return Erasure(result.lora, report)
