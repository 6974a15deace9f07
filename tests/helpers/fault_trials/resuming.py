"""A finetune that stops at a random step goes on to the same bytes, however often it stops."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st

from fault_trials import ChangedModel, Fault, stage
from trace_core.finetune import FinetuneConfig, finetune
from trace_core.finetune.resume import TrainingState
from trace_core.text.concepts import Concept
from trace_core.text.templates import TEMPLATES


class Stop(Exception):
    """What a caller raises to stop a run."""


@contextmanager
def few_templates():
    before = TEMPLATES["object"]
    TEMPLATES["object"] = stage.FEW
    try:
        yield
    finally:
        TEMPLATES["object"] = before


class Case:
    """A finetune of random options on a tiny model."""

    def __init__(self, draw):
        self.kind = draw(st.sampled_from(stage.KINDS))
        steps = draw(st.integers(2, 6))
        self.config = FinetuneConfig(
            steps=steps,
            refresh=draw(st.integers(1, steps)),
            batch=draw(st.integers(4, 6)),
            trajectories=draw(st.integers(1, 2)),
            keep_trajectories=1,
            sampling_steps=2,
            cfg=1.0,
            rank=draw(st.integers(1, 3)),
            lr=0.01,
            width=32,
            height=32,
            eta=0.5,
            neighbours=0,
            window=draw(st.sampled_from(((0.2, 1.0), (0.0, 1.0), "auto"))),
            seed=draw(st.integers(0, 1000)),
            objective=draw(st.sampled_from(("trace", "trace", "esd", "ant"))),
            checkpointing=draw(st.booleans()),
        )

    def run(self, **options) -> bytes:
        model, clip = stage.model(self.kind), stage.clip(self.kind)
        with few_templates():
            return finetune(
                model, clip, [Concept("cat", "dog")], ["bird"], self.config, **options
            ).lora.to_bytes()

    def ticks(self) -> int:
        heard = []
        self.whole = self.run(report=heard.append)
        return len(heard)


def resume(draw) -> None:
    case = Case(draw)
    ticks = case.ticks()
    with tempfile.TemporaryDirectory() as folder, stage.watched(stage.model(case.kind)):
        path = Path(folder) / "cat.state"
        for _ in range(draw(st.integers(1, 2))):
            state = TrainingState.load(path) if path.exists() else None
            left = draw(st.integers(0, ticks - 1))

            def listen(progress):
                nonlocal left
                left -= 1
                if left < 0:
                    raise Stop

            try:
                case.run(report=listen, checkpoint=lambda state: state.save(path), resume=state)
            except Stop:
                pass
        state = TrainingState.load(path) if path.exists() else None
        if case.run(resume=state) != case.whole:
            raise ChangedModel(f"resumed at step {state and state.step}, the run gives another file")


FAULTS = (Fault("stop and resume of a finetune", 9, resume),)
