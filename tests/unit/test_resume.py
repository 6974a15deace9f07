"""The file of a finetune that stopped: it holds all of it, and nothing else is taken for it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trace_core.errors import LoraError
from trace_core.finetune.adversarial import Adversary
from trace_core.finetune.resume import FORMAT, TrainingState
from trace_core.lora import ErasureLora

RUN = json.dumps({"base": "00ff", "prompts": ["", "a cat"], "lr": 0.002, "rank": 2})


class Adapters:
    """Two layers of rank 2."""

    def __init__(self, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.layers = [
            nn.Parameter(torch.randn(s, generator=generator)) for s in ((2, 5), (2, 3), (7, 2), (4, 2))
        ]

    def parameters(self):
        return self.layers

    def state(self):
        return [p.detach().clone() for p in self.layers]

    def restore(self, state):
        with torch.no_grad():
            for p, saved in zip(self.layers, state):
                p.copy_(saved)


class Scaler:
    """As much of a GradScaler as a state needs."""

    def __init__(self):
        self.state = {"scale": 1024.0, "_growth_tracker": 3}

    def state_dict(self):
        return dict(self.state)

    def load_state_dict(self, state):
        self.state = dict(state)


def steps(adapters, optimiser, numbers) -> None:
    for number in numbers:
        optimiser.zero_grad()
        sum(((p - number) ** 2).sum() for p in adapters.parameters()).backward()
        optimiser.step()


def optimiser_of(adapters):
    return torch.optim.AdamW(adapters.parameters(), lr=0.1, weight_decay=0.0)


def taken(adapters, optimiser, step: int, window=(0.25, 1.0)) -> TrainingState:
    history = [{"step": i, "erase": 0.1 * i, "keep": 1e-7} for i in range(step)]
    config, scaler = SimpleNamespace(window=window), Scaler()
    trainer = SimpleNamespace(
        step=step,
        config=config,
        history=history,
        identity=RUN,
        scaler=scaler,
        adversary=Adversary(None, None),
    )
    return TrainingState.take(adapters, optimiser, trainer)


def trained(step: int = 4, **options):
    adapters = Adapters()
    optimiser = optimiser_of(adapters)
    steps(adapters, optimiser, range(step))
    return adapters, optimiser, taken(adapters, optimiser, step, **options)


def same(a: TrainingState, b: TrainingState) -> bool:
    lists = all(
        torch.equal(x, y) for k in ("adapter", "mean", "square") for x, y in zip(getattr(a, k), getattr(b, k))
    )
    return lists and [getattr(a, k) for k in ("step", "window", "history", "run", "scale")] == [
        getattr(b, k) for k in ("step", "window", "history", "run", "scale")
    ]


# ------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("window", [(0.25, 1.0), (0.1, 0.7000000001), "auto"])
def test_file_holds_the_whole_state(tmp_path, window):
    state = trained(window=window)[2]
    state.save(tmp_path / "deep" / "state.bin")
    assert same(TrainingState.load(tmp_path / "deep" / "state.bin"), state)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["state.bin"], "no temporary file stays"


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_optimiser_goes_on_as_if_it_had_not_stopped(tmp_path, stop):
    adapters, optimiser, state = trained(stop)
    state.save(tmp_path / "state")
    steps(adapters, optimiser, range(stop, stop + 5))
    other = Adapters(seed=1)
    second = optimiser_of(other)
    scaler = Scaler()
    scaler.state = {}
    assert TrainingState.load(tmp_path / "state").put(other, second, scaler) == stop
    assert scaler.state == Scaler().state
    steps(other, second, range(stop, stop + 5))
    assert all(torch.equal(p, q) for p, q in zip(adapters.parameters(), other.parameters()))


def test_state_is_a_copy(tmp_path):
    adapters, optimiser, state = trained()
    before = [t.clone() for t in (*state.adapter, *state.mean, *state.square)]
    steps(adapters, optimiser, range(3))
    assert all(torch.equal(a, b) for a, b in zip(before, (*state.adapter, *state.mean, *state.square)))
    other = Adapters(1)
    second = optimiser_of(other)
    state.put(other, second, Scaler())
    steps(other, second, range(3))
    assert all(torch.equal(a, b) for a, b in zip(before, (*state.adapter, *state.mean, *state.square)))


def test_a_later_state_takes_the_place_of_an_earlier_one(tmp_path):
    for step in (1, 3):
        trained(step)[2].save(tmp_path / "state")
    assert TrainingState.load(tmp_path / "state").step == 3


# ------------------------------------------------------------------------------------- another run's


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"rank": 4}, "cannot resume: rank was 2 and is 4; use the same settings, or start over"),
        ({"base": "1234"}, "base was 00ff and is 1234"),
        ({"prompts": ["", "a dog"]}, "prompts was"),
        ({"new": 1}, "new was None and is 1"),
    ],
)
def test_the_option_that_differs_is_named(change, message):
    state = trained()[2]
    trainer = SimpleNamespace(identity=json.dumps({**json.loads(RUN), **change}))
    if message is None:
        state.check(trainer)
        return
    with pytest.raises(LoraError, match=message):
        state.check(trainer)


# ------------------------------------------------------------------------------------- no state at all


def written(folder, name: str):
    """A file that is no training state, by what is wrong with it."""
    path = folder / "state"
    state = trained()[2]
    state.save(path)
    data = path.read_bytes()
    tensors = {f"{n}.{i}": torch.ones(1) for n in ("adapter", "mean", "square") for i in range(2)}
    rest = {"format": FORMAT, "step": 1, "window": [0.0, 1.0], "history": [], "run": "{}"}

    def with_metadata(metadata, held=tensors):
        save_file(
            held, path, {"trace.training": metadata if isinstance(metadata, str) else json.dumps(metadata)}
        )

    make = {
        "cut short": lambda: path.write_bytes(data[: len(data) // 2]),
        "empty": lambda: path.write_bytes(b""),
        "text": lambda: path.write_text("not a state"),
        "a folder": lambda: (path.unlink(), path.mkdir()),
        "missing": lambda: path.unlink(),
        "no metadata": lambda: save_file(tensors, path),
        "broken metadata": lambda: with_metadata("{"),
        "a list": lambda: with_metadata([]),
        "another format": lambda: with_metadata({**rest, "format": "trace-training-0"}),
        "a tensor is missing": lambda: with_metadata(
            rest, {k: v for k, v in tensors.items() if k != "mean.1"}
        ),
        "no window": lambda: with_metadata({k: v for k, v in rest.items() if k != "window"}),
        "step is no number": lambda: with_metadata({**rest, "step": "many"}),
        "window is no pair": lambda: with_metadata({**rest, "window": 5}),
    }
    make[name]()
    return path


@pytest.mark.parametrize(
    "name",
    [
        "cut short",
        "empty",
        "text",
        "a folder",
        "missing",
        "no metadata",
        "broken metadata",
        "a list",
        "another format",
        "a tensor is missing",
        "no window",
        "step is no number",
        "window is no pair",
    ],
)
def test_what_is_no_training_state_is_refused(tmp_path, name):
    with pytest.raises(
        LoraError, match="cannot read 'state' as a training state|'state' is not a training state"
    ):
        TrainingState.load(written(tmp_path, name))


def test_an_erasure_is_no_training_state(tmp_path):
    path = ErasureLora({"diffusion_model.a": (torch.ones(2, 1), torch.ones(1, 3))}).save(
        tmp_path / "cat.safetensors"
    )
    with pytest.raises(
        LoraError, match="'cat.safetensors' is not a training state of this library; use a file that --resume"
    ):
        TrainingState.load(path)


def test_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LoraError, match="cannot write .*file/state"):
        trained()[2].save(tmp_path / "file" / "state")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_another_concept_is_told_in_one_sentence():
    state = trained()[2]
    state.run = json.dumps(
        {**json.loads(RUN), "concepts": ["cat"], "prompts": [f"a photo of a cat {i}" for i in range(500)]}
    )
    trainer = SimpleNamespace(
        identity=json.dumps({**json.loads(RUN), "concepts": ["dog"], "prompts": ["a dog"] * 500})
    )
    sentence = (
        "cannot resume: the training state was made for 'cat', but this run erases 'dog'; give the same "
        "concepts, or another --resume file"
    )
    for check in (
        lambda: state.check(trainer),
        lambda: state.check_concepts([SimpleNamespace(target="dog")]),
    ):
        with pytest.raises(LoraError) as error:
            check()
        assert str(error.value) == sentence
    state.check_concepts([SimpleNamespace(target="cat")])


def test_thousands_of_prompts_make_no_long_error():
    state = trained()[2]
    state.run = json.dumps({**json.loads(RUN), "prompts": [f"a photo of a cat {i}" for i in range(5000)]})
    trainer = SimpleNamespace(
        identity=json.dumps({**json.loads(RUN), "prompts": ["a dog", "a photo of a cat 7"]})
    )
    with pytest.raises(
        LoraError, match="prompts was a list with 'a photo of a cat 0' and is a list with 'a dog'"
    ) as error:
        state.check(trainer)
    assert len(str(error.value)) < 300
