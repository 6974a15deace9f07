"""Cancel at any moment, once or many times: nothing stays, and the next run is what it would have been."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from fault_trials import Fault, UnclearError, stage

INFERENCE = st.booleans()  #: ComfyUI runs nodes in inference mode


def cancelled(name: str, kind: str, at: int, inference: bool) -> None:
    """One run that is cancelled when it asks for the ``at``-th time."""
    import comfy.model_management

    with torch.inference_mode(inference), stage.cancelled_at(at):
        try:
            stage.RUNS[name](kind)
        except comfy.model_management.InterruptProcessingException:
            return
        except Exception as error:
            raise UnclearError(f"cancel became {type(error).__name__}: {error}") from error
    raise UnclearError(f"{name} was cancelled at {at} and went on")


def once(draw) -> None:
    name, kind = draw(st.sampled_from(list(stage.RUNS))), draw(st.sampled_from(stage.KINDS))
    _, asked = stage.undisturbed(name, kind)
    with stage.watched(stage.model(kind)):
        cancelled(name, kind, draw(st.integers(0, asked - 1)), draw(INFERENCE))
    stage.same_again(name, kind)


RUN = st.tuples(st.sampled_from(list(stage.RUNS)), st.integers(0, 999), INFERENCE)


def storm(draw) -> None:
    """Several runs are cancelled one after another, and only then one is left alone."""
    kind, runs = draw(st.sampled_from(stage.KINDS)), draw(st.lists(RUN, min_size=2, max_size=6))
    asked = {name: stage.undisturbed(name, kind)[1] for name, *_ in runs}
    with stage.watched(stage.model(kind)):
        for name, at, inference in runs:
            cancelled(name, kind, at % asked[name], inference)
    stage.same_again(runs[-1][0], kind)


FAULTS = (
    Fault("cancel at a random moment", 16, once),
    Fault("cancel storms", 6, storm),
)
