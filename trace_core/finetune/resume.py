"""The state of a stopped finetune as a safetensors file: adapter, optimiser and step.

Everything else follows from the seed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..backbones.numerics import is_finite
from ..errors import LoraError
from ..lora.files import read_tensors, why, write_whole
from ..lora.parts import listed

FORMAT = "trace-training-1"


@dataclass
class TrainingState:
    """The state from which :func:`trace_core.finetune.finetune` continues as if it had not stopped."""

    adapter: list[Tensor]
    mean: list[Tensor]
    square: list[Tensor]
    step: int
    window: tuple[float, float] | str
    history: list[dict]
    run: str  #: JSON identity of the run, to refuse the state of another run
    scale: dict = field(default_factory=dict)  #: gradient scale of a float16 network
    adversary: list[Tensor] = field(default_factory=list)  #: adversarial rows and what belongs to them

    @classmethod
    def take(cls, adapters, optimiser, trainer) -> TrainingState:
        """A copy of a trainer's state between two steps."""
        moments = [optimiser.state.get(p, {}) for p in adapters.parameters()]

        def copy(p, state, name: str):
            return (state[name] if name in state else torch.zeros_like(p)).detach().cpu().clone()

        pairs = list(zip(adapters.parameters(), moments))
        return cls(
            adapters.state(),
            [copy(p, m, "exp_avg") for p, m in pairs],
            [copy(p, m, "exp_avg_sq") for p, m in pairs],
            trainer.step,
            trainer.config.window,
            list(trainer.history),
            trainer.identity,
            trainer.scaler.state_dict(),
            trainer.adversary.state(),
        )

    def put(self, adapters, optimiser, scaler) -> int:
        """Restore the state. Returns the step to continue with."""
        adapters.restore(self.adapter)
        if self.scale:
            scaler.load_state_dict(self.scale)
        for p, mean, square in zip(adapters.parameters(), self.mean, self.square):
            if self.step:
                optimiser.state[p] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": mean.to(p.device, copy=True),
                    "exp_avg_sq": square.to(p.device, copy=True),
                }
        return self.step

    def check(self, trainer) -> None:
        """Refuse the state of another run.

        Raises:
            LoraError: naming the first difference in one sentence.
        """
        mine, theirs = json.loads(trainer.identity), json.loads(self.run)
        if "concepts" in theirs:
            _check_targets(theirs["concepts"], mine.get("concepts", []))
        different = {k for k in {**mine, **theirs} if mine.get(k) != theirs.get(k)} - {"concepts"}
        if different:
            raise LoraError(
                f"cannot resume: {_difference(min(different), theirs, mine)}; use the same settings, or "
                "start over"
            )

    def check_concepts(self, concepts) -> None:
        """Refuse the state of a run with other concepts, before a model is loaded.

        Raises:
            LoraError: naming the concepts of both runs.
        """
        theirs = json.loads(self.run).get("concepts")
        if theirs is not None:
            _check_targets(theirs, [c.target for c in concepts])

    def save(self, path: str | Path) -> None:
        """Write a file completely, or leave the existing file unchanged.

        Raises:
            LoraError: if the path cannot be written.
        """
        tensors = {
            f"{name}.{i}": t.contiguous()
            for name in ("adapter", "mean", "square", "adversary")
            for i, t in enumerate(getattr(self, name))
        }
        rest = {
            "format": FORMAT,
            "step": self.step,
            "window": self.window,
            "history": self.history,
            "run": self.run,
            "scale": self.scale,
        }
        try:
            write_whole(path, lambda file: save_file(tensors, file, {"trace.training": json.dumps(rest)}))
        except OSError as error:
            raise LoraError(f"cannot write '{path}': {why(error)}") from error
        except SafetensorError as error:  # safetensors reports disk errors this way
            raise LoraError(
                f"cannot write '{path}': {error}; make room there, or choose another folder"
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> TrainingState:
        """Read a file written by :meth:`save`.

        Raises:
            LoraError: if it is missing, damaged, or no training state.
        """
        path = Path(path)
        try:
            with safe_open(path, framework="pt") as file:
                rest = json.loads((file.metadata() or {}).get("trace.training", "{}"))
                if (
                    not isinstance(rest, dict) or "run" not in rest
                ):  # before reading gigabytes of a checkpoint
                    raise LoraError(
                        f"'{path.name}' is not a training state of this library; use a file that --resume "
                        "wrote"
                    )
            tensors, _ = read_tensors(path)
        except LoraError:
            raise
        except (OSError, SafetensorError, ValueError, RecursionError) as error:
            raise LoraError(
                f"cannot read '{path.name}' as a training state: {error}; give another --resume file, or "
                "remove this one to start over"
            ) from error
        names = ("adapter", "mean", "square")
        rows = sum(key.startswith("adversary.") for key in tensors)
        count = (len(tensors) - rows) // 3
        try:
            expected = {f"{name}.{i}" for name in names for i in range(count)}
            expected |= {f"adversary.{i}" for i in range(rows)}
            if rest["format"] != FORMAT or set(tensors) != expected:
                raise ValueError
            lists = [[tensors[f"{name}.{i}"] for i in range(count)] for name in names]
            window = rest["window"] if isinstance(rest["window"], str) else tuple(rest["window"])
            adversary = [tensors[f"adversary.{i}"] for i in range(rows)]
            step, history = rest["step"], list(rest["history"])
            found = cls(*lists, step, window, history, rest["run"], dict(rest["scale"]), adversary)
            if not found._is_whole():
                raise ValueError
            return found
        except (KeyError, TypeError, ValueError, RecursionError):
            raise LoraError(
                f"'{path.name}' is not a training state of this library, or is damaged; use a file that "
                "--resume wrote, or remove this one to start over"
            ) from None

    def _is_whole(self) -> bool:
        """Whether the values are those of a state; anybody can change a file."""
        run = json.loads(self.run)
        named = isinstance(run, dict) and isinstance(run.get("concepts", []), list)
        window = self.window == "auto" or (
            isinstance(self.window, tuple) and len(self.window) == 2 and all(map(_is_share, self.window))
        )
        lists = (self.adapter, self.mean, self.square)
        shapes = [[t.shape for t in own] for own in lists]
        return (
            named
            and all(isinstance(name, str) for name in run.get("concepts", []))
            and window
            and type(self.step) is int
            and self.step >= 0
            and all(isinstance(entry, dict) for entry in self.history)
            and shapes[0] == shapes[1] == shapes[2]
            and (not self.scale or {"scale", "_growth_tracker"} <= self.scale.keys())
            and all(t.is_floating_point() and is_finite(t) for own in lists for t in own)
        )


def _is_share(value) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 1


def identity(trainer) -> str:
    """JSON of everything that the result of a run depends on: model, prompts, start, options.

    It excludes the window, which may have been measured, and the learning rate, which may be lowered after a
    divergence.
    """
    free = ("window", "contexts", "preview_every", "checkpointing", "lr", "lr_scale")
    options = {k: v for k, v in asdict(trainer.config).items() if k not in free}
    for later in ("robust", "implied"):
        if not options[later]:
            del options[later]  # states of before the option fit a run without it
    options["start"] = trainer.start.fingerprint if trainer.start else None
    options["concepts"] = trainer.concepts
    return json.dumps(
        {"base": trainer.backbone.model_hash(), "prompts": trainer.prompts.texts, **options}, sort_keys=True
    )


def _check_targets(theirs: list[str], mine: list[str]) -> None:
    if sorted(theirs) != sorted(mine):
        raise LoraError(
            f"cannot resume: the training state was made for {listed(theirs)}, but this run erases "
            f"{listed(mine)}; give the same concepts, or another --resume file"
        )


def _difference(name: str, theirs: dict, mine: dict) -> str:
    """One difference in a few words, because a list of prompts has thousands of entries."""
    was, now = theirs.get(name), mine.get(name)
    if isinstance(was, list) and isinstance(now, list):
        removed, added = ([x for x in a if x not in b] for a, b in ((was, now), (now, was)))
        shown = lambda only, all_: f"with '{str(only[0])[:60]}'" if only else f"of {len(all_)} entries"  # noqa: E731
        return (
            f"{name} was a list {shown(removed, was)} and is a list {shown(added, now)} (it follows from "
            "concepts, anchors and keep list)"
        )
    return f"{name} was {str(was)[:80]} and is {str(now)[:80]}"
