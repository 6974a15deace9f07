"""The finetune part of ``erase``: options, live bar and training state."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import LoraError, TraceError
from ..text.concepts import Concept


def options(args, method) -> dict:
    """Options of :class:`~trace_core.finetune.FinetuneConfig`, checked before a model is loaded.

    Raises:
        TraceError: naming the option.
    """
    if method.finetune is None:
        return {}
    from ..finetune.run import FinetuneConfig

    given = {"rank": args.rank, "lr": args.lr, "scope": args.scope, "steps": args.steps, "eta": args.eta}
    given |= {"neighbours": args.neighbours, "robust": args.robust}
    given |= {"sampling_steps": args.sampling_steps, "cfg": args.sampling_cfg}
    found = {k: v for k, v in given.items() if v is not None}
    found |= {
        "preset": args.preset,
        "kind": args.kind,
        "checkpointing": args.checkpointing,
        "saliency": args.saliency,
        "weights": dict(_weight(w) for w in args.weight),
    }
    if args.window is not None:
        found |= {"window": _window(args.window)}
    if args.implied_file:
        found["implied"] = _prompts(args.implied_file)
    if args.size:
        found |= dict.fromkeys(("width", "height"), args.size)
    FinetuneConfig(**{**method.finetune, **found})
    return found


def _prompts(file: str) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"--implied-file '{file}' cannot be read: {error}") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise TraceError(f"--implied-file '{file}' has no line; write one prompt a line")
    return found


def _window(text: str) -> tuple[float, float] | str:
    if text == "auto":
        return "auto"
    try:
        ends = [float(part) for part in text.split(",")]
    except ValueError:
        ends = []
    if len(ends) not in (1, 2):
        raise TraceError(
            f"--window '{text}' is not a window; write START, START,END or auto, such as 0.2 or 0.1,0.9"
        )
    return ends[0], ends[1] if len(ends) == 2 else 1.0


def _weight(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        return name, float(value)
    except ValueError:
        raise TraceError(f"--weight '{text}' is not TERM=NUMBER, such as keep=2") from None


def saved_state(args, method, concepts: Sequence[Concept]):
    """The training state of ``--resume``, or None if the file does not exist.

    Raises:
        LoraError: if the file is no training state, or belongs to another run.
    """
    from ..finetune.resume import TrainingState

    file = Path(args.resume) if args.resume and method.finetune is not None else None
    if not file or not file.exists():
        return None
    state = TrainingState.load(file)
    state.check_concepts(concepts)
    return state


class Stopped(KeyboardInterrupt):
    """Ctrl-C, with a message on how to continue."""


class Training:
    """A finetune of the command line, with its live bar and its training-state file.

    A state that cannot be written does not stop the training. One warning is printed, and the last written
    state stays.
    """

    def __init__(self, args, method, resume, clock=None):
        self.wanted = method.finetune is not None
        self.file = Path(args.resume) if args.resume and self.wanted else None
        self.resume, self.steps = resume, resume.step if resume else None
        self.unwritten = ""  #: why the latest state could not be written
        self.bar = Bar(clock) if self.wanted else None
        if resume:
            print(f"continuing from step {resume.step} of '{self.file}'")

    def hooks(self) -> dict:
        """Arguments of :func:`trace_core.finetune.finetune`."""
        if not self.wanted:
            return {}
        return {"report": self.bar, "resume": self.resume, "checkpoint": self._keep if self.file else None}

    def _keep(self, state) -> None:
        try:
            state.save(self.file)
        except LoraError as error:
            if not self.unwritten:
                self.bar.say(f"warning: {error}. Training continues, {self.where()}")
            self.unwritten = str(error)
        else:
            self.steps, self.unwritten = state.step, ""

    def where(self) -> str:
        """Part of a sentence on the training state on disk."""
        return (
            f"the state of step {self.steps} stays in '{self.file}'"
            if self.steps is not None
            else "without a state on disk"
        )

    def left(self) -> str:
        """A sentence on how to recover a lost result; empty without a state."""
        if self.steps is None:
            return ""
        return (
            f"The training state of step {self.steps} is in '{self.file}'; make room, and run the same "
            "command to continue from there"
        )

    def finish(self) -> list[str]:
        """Delete the state after the result is written. Returns warnings for the report."""
        if self.file:
            self.file.unlink(missing_ok=True)
        return (
            [f"the training state could not be written ({self.unwritten}); the result is complete"]
            if self.unwritten
            else []
        )

    def __enter__(self) -> Training:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self.bar:
            self.bar.close()
        if not self.wanted or not isinstance(error, KeyboardInterrupt) or isinstance(error, Stopped):
            return
        if self.steps is not None:
            raise Stopped(
                f"stopped; the training state of step {self.steps} is in '{self.file}'; run the same command "
                "to continue from there"
            ) from None
        if self.file:
            because = f" ({self.unwritten})" if self.unwritten else ", because no training state was due yet"
            raise Stopped(f"stopped; nothing was written{because}") from None
        raise Stopped(
            "stopped; nothing was written. With --resume FILE a training saves its state, and the same "
            "command continues from it"
        ) from None


class Bar:
    """One progress line: phase, steps, losses by term, steps per second, time left, cached latents."""

    def __init__(self, clock=None):
        self._bar, self.clock = None, clock

    def __call__(self, progress) -> None:
        from tqdm import tqdm

        if self.clock:
            self.clock.enter(progress.phase)
        if self._bar is None:
            self._bar = tqdm(total=progress.steps, leave=False, dynamic_ncols=True)
        bar = self._bar
        phase = (
            progress.phase
            if progress.phase == "train"
            else f"{progress.phase} {progress.done}/{progress.total}"
        )
        bar.set_description(phase, refresh=False)
        terms = {k: f"{v:.4f}" for k, v in progress.losses.items()}
        bar.set_postfix({**terms, "bank": f"{progress.bank_bytes / 2**20:.0f} MB"}, refresh=False)
        bar.update(progress.step - bar.n)
        bar.refresh()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
