"""What ``erase --method trace|ant|esd`` adds to the closed form."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

from ..errors import TraceError


def options(args, method) -> dict:
    """Options of :class:`~trace_core.finetune.FinetuneConfig` from the command line, checked before a model is loaded.

    Raises:
        TraceError: naming the option.
    """
    if method.finetune is None:
        return {}
    from ..finetune import FinetuneConfig

    given = {"rank": args.rank, "lr": args.lr, "scope": args.scope, "steps": args.steps, "eta": args.eta}
    found = {k: v for k, v in given.items() if v is not None}
    found |= {"preset": args.preset, "kind": args.kind, "checkpointing": args.checkpointing, "saliency": args.saliency,
              "weights": dict(_weight(w) for w in args.weight)}  # fmt: skip
    if args.window is not None:
        found |= {"window": _window(args.window)}
    if args.size:
        found |= dict.fromkeys(("width", "height"), args.size)
    FinetuneConfig(**{**method.finetune, **found})
    return found


def _window(text: str) -> tuple[float, float] | str:
    if text == "auto":
        return "auto"
    try:
        ends = [float(part) for part in text.split(",")]
    except ValueError:
        ends = []
    if len(ends) not in (1, 2):
        raise TraceError(f"--window '{text}' is no window; write START, START,END or auto, such as 0.2 or 0.1,0.9")
    return ends[0], ends[1] if len(ends) == 2 else 1.0


def _weight(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        return name, float(value)
    except ValueError:
        raise TraceError(f"--weight '{text}' is not TERM=NUMBER, such as keep=2") from None


def saved_state(args, method):
    """The training state of ``--resume``, or None if there is none yet.

    Raises:
        LoraError: if the file is something else.
    """
    from ..resume import TrainingState

    file = Path(args.resume) if args.resume and method.finetune is not None else None
    return TrainingState.load(file) if file and file.exists() else None


@contextmanager
def hooks(args, method, resume):
    """Live bar and training state of a finetune; the state is removed once the result is saved."""
    if method.finetune is None:
        yield {}
        return
    file, bar = Path(args.resume) if args.resume else None, Bar()
    if resume:
        print(f"going on from step {resume.step} of '{file}'")
    try:
        yield {"report": bar, "resume": resume, "checkpoint": (lambda state: state.save(file)) if file else None}
    finally:
        bar.close()
    if file:
        file.unlink(missing_ok=True)


class Bar:
    """One line: phase, steps, losses by term, steps per second, time left, cached latents."""

    def __init__(self):
        self._bar = None

    def __call__(self, progress) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=progress.steps, leave=False, dynamic_ncols=True)
        bar = self._bar
        phase = progress.phase if progress.phase == "train" else f"{progress.phase} {progress.done}/{progress.total}"
        bar.set_description(phase, refresh=False)
        terms = {k: f"{v:.4f}" for k, v in progress.losses.items()}
        bar.set_postfix({**terms, "bank": f"{progress.bank_bytes / 2**20:.0f} MB"}, refresh=False)
        bar.update(progress.step - bar.n)
        bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
