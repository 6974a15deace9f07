"""Options of the finetune: presets, checks, and defaults for None."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..backbones.base import SCOPES
from ..backbones.families import KINDS as KINDS_OF_MODEL
from ..backbones.kinds import Kind
from ..errors import TraceError
from ..text.kinds import KINDS
from .hardening import LEVELS
from .objectives import OBJECTIVES
from .windows import check_window

LEARNING_RATE = 5e-4  #: for objectives without their own (ANT's value)
SAMPLING_STEPS = 12  #: of a trajectory, unless the model needs fewer for a whole picture
WHOLE = 0.3  #: factor of the learning rate for full matrices, where a step moves every entry by the rate
AUTO = "auto"  #: a window measured on the base model's own trajectories

PRESETS: dict[str, dict] = {
    "fast": {"steps": 30, "batch": 32, "trajectories": 16, "keep_trajectories": 32, "refresh": 15},
    "balanced": {"steps": 60, "batch": 32, "trajectories": 16, "keep_trajectories": 48, "refresh": 20},
    "thorough": {"steps": 400, "batch": 64, "trajectories": 32, "keep_trajectories": 192, "refresh": 40},
}


@dataclass(frozen=True)
class FinetuneConfig:
    """Options of the finetune. None selects the value of the preset, the objective or the model family."""

    objective: str = field(default="trace", metadata={"help": "loss: " + ", ".join(OBJECTIVES)})
    preset: str = field(default="balanced", metadata={"help": "training length: " + ", ".join(PRESETS)})
    kind: str = field(default="auto", metadata={"help": "kind of concept: auto, " + ", ".join(KINDS)})
    window: tuple[float, float] | str | None = field(
        default=None,
        metadata={"help": "start and end of the erasure, 0..1 of the schedule, or auto to measure it"},
    )
    steps: int | None = field(
        default=None,
        metadata={
            "help": "optimiser steps; None: the preset's; trace takes twice as many for a style and three "
            "times as many for a combination"
        },
    )
    batch: int | None = field(default=None, metadata={"help": "samples per step, over all terms"})
    trajectories: int | None = field(
        default=None, metadata={"help": "trajectories with the concept's prompts, per refresh"}
    )
    keep_trajectories: int | None = field(
        default=None,
        metadata={
            "help": "trajectories with keep prompts, sampled once; trace uses four times the preset's for a "
            "combination"
        },
    )
    refresh: int | None = field(
        default=None, metadata={"help": "steps between two samplings of the concept's trajectories"}
    )
    rank: int = field(default=8, metadata={"help": "rank of the trained adapter"})
    lr: float | None = field(default=None, metadata={"help": "peak learning rate of AdamW"})
    lr_scale: float = field(
        default=1.0,
        metadata={
            "help": "factor of the objective's own learning rate; small networks learn at higher rates"
        },
    )
    eta: float | None = field(default=None, metadata={"help": "overshoot past neutral; 0 stops at neutral"})
    scope: str | None = field(default=None, metadata={"help": "adapted layers: " + ", ".join(SCOPES)})
    saliency: float = field(
        default=0.0,
        metadata={"help": "share of each layer's weights in a saliency map (ANT); 0 trains a plain LoRA"},
    )
    saliency_maps: int = field(
        default=4, metadata={"help": "maps, one per prompt and seed; a trained weight must be in all of them"}
    )
    weights: Mapping[str, float] = field(
        default_factory=dict, metadata={"help": "weights of the objective's terms by name"}
    )
    sampling_steps: int | None = field(
        default=None, metadata={"help": "steps of a trajectory (12, or fewer for a model of few steps)"}
    )
    cfg: float | None = field(
        default=None, metadata={"help": "guidance of the trajectories (3; 1, none, for a distilled model)"}
    )
    guidance: float = field(default=3.0, metadata={"help": "strength for a network that embeds guidance"})
    width: int = field(default=512, metadata={"help": "width of the training pictures in pixels"})
    height: int = field(default=512, metadata={"help": "height of the training pictures in pixels"})
    checkpointing: bool = field(default=False, metadata={"help": "less memory, a third slower"})
    seed: int = field(default=0, metadata={"help": "seed of noise, prompts and adapters"})
    preview_every: int = field(default=0, metadata={"help": "steps between previews; 0 for none"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are clipped to this norm"})
    bank_limit: int = field(
        default=2 << 30, metadata={"help": "largest size of cached latents and predictions in bytes"}
    )
    neighbours: int = field(
        default=5,
        metadata={"help": "keep this many near neighbours of each concept too; 0: none (trace)"},
    )
    robust: int = field(
        default=0,
        metadata={"help": "harden trace against attacks: 0 off; 1, 2 and 3 resist more and cost more"},
    )
    implied: Sequence[str] = field(
        default=(),
        metadata={"help": "prompts that draw the concept without naming it; trace takes it out of them too"},
    )
    contexts: Mapping[str, Sequence[str]] = field(
        default_factory=dict,
        metadata={"help": "additional templates by kind of concept; {} is the place of the concept"},
    )

    def __post_init__(self):
        for name, value, known in (
            ("objective", self.objective, OBJECTIVES),
            ("preset", self.preset, PRESETS),
            ("kind", self.kind, ("auto", *KINDS)),
        ):
            if value not in known:
                raise TraceError(f"{name} '{value}' is unknown; use one of {', '.join(known)}")
        for name, low, high in (
            ("steps", 1, 100_000),
            ("batch", 4, 4096),
            ("trajectories", 1, 10_000),
            ("keep_trajectories", 1, 100_000),
            ("refresh", 1, 100_000),
            ("rank", 1, 1024),
            ("sampling_steps", 2, 1000),
            ("lr", 1e-8, 1.0),
            ("lr_scale", 1e-3, 1e3),
            ("eta", 0.0, 10.0),
            ("cfg", 0.0, 30.0),
            ("guidance", 0.0, 30.0),
            ("width", 16, 4096),
            ("height", 16, 4096),
            ("max_grad_norm", 1e-6, 1e6),
            ("saliency", 0.0, 1.0),
            ("saliency_maps", 1, 1000),
            ("preview_every", 0, 100_000),
            ("neighbours", 0, 64),
            ("robust", 0, max(LEVELS)),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise TraceError(f"{name} is {value}; it must lie between {low} and {high}")
        if self.robust and self.objective != "trace":
            raise TraceError(
                f"robust is {self.robust}, but objective {self.objective} cannot be hardened; use trace, or 0"
            )
        if self.implied:
            self._check_implied()
        self._check_weights()
        if self.checkpointing and any(t.attention for t in OBJECTIVES[self.objective].terms):
            raise TraceError(
                f"objective {self.objective} needs attention maps, which checkpointing discards; turn "
                "checkpointing off"
            )
        if self.window is not None and self.window != AUTO:
            check_window(*self.window)

    def _check_implied(self) -> None:
        if isinstance(self.implied, str) or not all(isinstance(p, str) and p.strip() for p in self.implied):
            raise TraceError("implied must be a list of prompts, none of them empty")
        if self.objective != "trace":
            raise TraceError(
                f"objective {self.objective} does not train on prompts that imply the concept; use trace, or "
                "leave implied out"
            )
        if self.robust > 1:
            raise TraceError(
                f"implied and robust {self.robust} are two trainings; set robust to 0 or 1, or leave implied "
                "out"
            )

    def _check_weights(self) -> None:
        """Refuse weights of unknown terms, weights below 0, and weights that leave nothing to learn."""
        unknown = set(self.weights) - {t.name for t in OBJECTIVES[self.objective].terms}
        if unknown:
            raise TraceError(
                f"objective {self.objective} has no term '{min(unknown)}'; "
                f"it has {', '.join(t.name for t in OBJECTIVES[self.objective].terms)}"
            )
        weights = {t.name: self.weights.get(t.name, t.weight) for t in OBJECTIVES[self.objective].terms}
        wrong = [k for k, v in weights.items() if not 0 <= v < math.inf]
        if wrong:
            raise TraceError(
                f"the weight of '{wrong[0]}' is {weights[wrong[0]]}; it must be a number from 0 up"
            )
        if not any(weights.values()):
            raise TraceError(
                f"every term of objective {self.objective} has weight 0, so there is nothing to learn; give "
                "one a weight"
            )

    def resolved(
        self, kind: str, model: Kind | str, anchored: bool = False, combined: bool = False
    ) -> FinetuneConfig:
        """The options with every None replaced, except that a window to be measured stays ``auto``.

        ``model``: its kind, or the kind's name. ``anchored``: an anchor needs no overshoot.
        """
        values = {k: v for k, v in PRESETS[self.preset].items() if getattr(self, k) is None}
        objective, traits = (
            OBJECTIVES[self.objective],
            KINDS_OF_MODEL[model] if isinstance(model, str) else model,
        )
        paper = {
            **objective.kinds[kind],
            **(objective.transformer.get(kind, {}) if traits.transformer else {}),
            **(objective.combined if combined else {}),
        }
        weights = {**paper.pop("weights", {}), **self.weights}
        more = {"steps": paper.pop("longer", 1), "keep_trajectories": paper.pop("wider", 1)}
        if self.robust:
            level = LEVELS[self.robust]
            paper |= {"scope": level.scope} | ({"refresh": level.refresh} if level.refresh else {})
            more["steps"] *= level.longer
            more["keep_trajectories"] *= level.wider
        values |= {k: v for k, v in paper.items() if getattr(self, k) is None}
        values |= {k: values[k] * times for k, times in more.items() if k in values}
        if anchored and self.eta is None and self.objective == "trace":
            values["eta"] = 0.0
        # distilled guidance already amplifies p0(c) - p0(g)
        if traits.embeds_guidance and objective.overshoot and "eta" in values:
            values["eta"] /= max(1.0, self.guidance)
        if self.window is None:
            values.setdefault("window", AUTO)
        if self.lr is None:
            values["lr"] = values.get("lr", LEARNING_RATE) * self.lr_scale * (WHOLE if self.saliency else 1.0)
        if self.scope is None:
            values.setdefault("scope", "text")
        if self.cfg is None:
            values["cfg"] = traits.training_cfg
        if self.sampling_steps is None:
            values.setdefault("sampling_steps", min(SAMPLING_STEPS, traits.steps))
        return replace(self, kind=kind, weights=weights, **values)
