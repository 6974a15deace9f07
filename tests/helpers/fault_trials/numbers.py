"""NaN and infinity from the model, the text encoder or the weights: a run stops and says so."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from hypothesis import strategies as st

from fake_clip import FakeClip
from fault_trials import ChangedModel, Fault, UnclearError, attempt, stage

VALUES = st.sampled_from((float("nan"), float("inf"), float("-inf")))
KIND = st.sampled_from(stage.KINDS)


@contextmanager
def poisoned_model(model, value: float, after: int, only_training: bool = False):
    """From a call of the network on, its output holds a value that is no number."""
    calls = [0]

    def hook(module, given, out):
        counts = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        calls[0] += counts or not only_training
        if calls[0] > after and (counts or not only_training):
            flat = out.clone()
            flat.view(-1)[0] = value
            return flat
        return out

    handle = model.model.diffusion_model.register_forward_hook(hook)
    try:
        yield calls
    finally:
        handle.remove()


@contextmanager
def poisoned_encoder(value: float, after: int):
    encode, calls = FakeClip.encode_from_tokens, [0]

    def poisoned(self, *given, **options):
        found = encode(self, *given, **options)
        calls[0] += 1
        if calls[0] > after:
            rows = (
                found["cond"] if isinstance(found, dict) else found[0] if isinstance(found, tuple) else found
            )
            rows.view(-1)[0] = value
        return found

    FakeClip.encode_from_tokens = poisoned
    try:
        yield calls
    finally:
        FakeClip.encode_from_tokens = encode


def while_training(draw) -> None:
    """The finetune stops with the last good state, from which the same run goes on to the same file."""
    from fault_trials import resuming
    from trace_core.finetune import Diverged

    case = resuming.Case(draw)
    whole = case.run()
    states, model = [], stage.model(case.kind)
    after = draw(st.integers(0, case.config.steps - 1))
    with stage.watched(model), poisoned_model(model, draw(VALUES), after, True):
        _, error = attempt(lambda: case.run(checkpoint=states.append), "nan", "inf")
    if not isinstance(error, Diverged):
        raise UnclearError(f"a loss that is no number ended as {error!r}")
    state = error.state
    good = [t for own in (state.adapter, state.mean, state.square) for t in own]
    if state.step > after or not all(t.isfinite().all() for t in good):
        raise ChangedModel(f"the last good state is of step {state.step}, and has no numbers")
    if case.run(resume=state) != whole:
        raise ChangedModel("the last good state goes on to another file")


def from_the_model(draw) -> None:
    """Any run on a model that gives no numbers: a finite result, or a sentence."""
    name, kind = draw(st.sampled_from(list(stage.RUNS))), draw(KIND)
    stage.undisturbed(name, kind)
    with stage.watched(stage.model(kind)):
        with poisoned_model(stage.model(kind), draw(VALUES), draw(st.integers(0, 12))) as calls:
            finite(name, kind, calls)
    stage.same_again(name, kind)


def from_the_encoder(draw) -> None:
    name, kind = draw(st.sampled_from(list(stage.RUNS))), draw(KIND)
    stage.undisturbed(name, kind)
    with stage.watched(stage.model(kind)):
        with poisoned_encoder(draw(VALUES), draw(st.integers(0, 30))) as calls:
            finite(name, kind, calls)
    stage.same_again(name, kind)


def finite(name: str, kind: str, calls: list[int]) -> None:
    result, error = attempt(lambda: stage.RUNS[name](kind), "NaN", "nan", "inf", "finite")
    values = [] if error else [result] if isinstance(result, torch.Tensor) else list(result.values())
    if not all(v.isfinite().all() for v in values):
        raise UnclearError(f"{name} gives values that are no numbers, and does not say so")


def from_the_weights(draw) -> None:
    """A weight of the model file is no number."""
    name, kind = draw(st.sampled_from(("closed form", "fusion", "apply"))), draw(KIND)
    stage.undisturbed("fusion", kind)
    model = stage.model(kind)
    weight = [
        p for n, p in model.model.named_parameters() if n.endswith(("attn2.to_k.weight", "txt_in.weight"))
    ]
    place = draw(st.integers(0, weight[0].numel() - 1))
    before = weight[0].detach().view(-1)[place].item()
    with torch.no_grad():
        weight[0].view(-1)[place] = draw(VALUES)
    try:
        work = stage.RUNS.get(name, stage.evaluation)
        result, error = attempt(lambda: work(kind), "NaN", "nan", "inf", "finite")
        values = [] if error else [result] if isinstance(result, torch.Tensor) else list(result.values())
        if not all(v.isfinite().all() for v in values):
            raise UnclearError(f"{name} gives values that are no numbers, and does not say so")
    finally:
        stage.unload()
        with torch.no_grad():
            weight[0].view(-1)[place] = before


FAULTS = (
    Fault("NaN at a step of a finetune", 8, while_training),
    Fault("NaN from the model", 8, from_the_model),
    Fault("NaN from the text encoder", 8, from_the_encoder),
    Fault("NaN in a weight", 6, from_the_weights),
)
