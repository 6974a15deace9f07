"""The finetune from the command line."""

from __future__ import annotations

import json

import pytest
import torch

from trace_core.cli import main
from trace_core.finetune.options import PRESETS
from trace_core.finetune.trainer import Trainer
from trace_core.lora import ErasureLora


@pytest.fixture
def short(monkeypatch):
    """A preset of two steps on few trajectories."""
    values = dict(steps=2, batch=4, trajectories=2, keep_trajectories=2, refresh=1)
    monkeypatch.setitem(PRESETS, "fast", values)
    return [
        "erase",
        "--model",
        "demo-sd",
        "--erase",
        "cat -> dog",
        "--keep",
        "bird",
        "--preset",
        "fast",
        "--size",
        "32",
    ]


@pytest.mark.parametrize("method", ["trace", "ant", "esd"])
def test_command_writes_a_file_that_info_shows(engine, short, method, tmp_path, capsys):
    out, state = tmp_path / "cat.safetensors", tmp_path / "state"
    options = [
        "--method",
        method,
        "--steps",
        "2",
        "--window",
        "0.3",
        "--weight",
        "erase=2",
        "--resume",
        str(state),
    ]
    report = tmp_path / "r.json"
    assert main([*short, *options, "--rank", "3", "--out", str(out), "--json", str(report)]) == 0
    assert "wrote " in capsys.readouterr().out and not state.exists(), "a state is gone when the run is done"
    written = json.loads(report.read_text())
    assert written["method"] == method and written["window"] == [0.3, 1.0] and len(written["losses"]) == 2
    assert written["parameters"]["weights"]["erase"] == 2.0 and written["parameters"]["rank"] == 3
    assert ("closed_form" in written) == (method == "trace")
    assert main(["info", str(out)]) == 0
    shown = capsys.readouterr().out
    assert '[["cat", "dog", 1.0]]' in shown and "sd1" in shown


def test_command_goes_on_where_it_was_stopped(engine, short, tmp_path, capsys, monkeypatch):
    whole, out, state = (tmp_path / name for name in ("whole.safetensors", "cat.safetensors", "state"))
    assert main([*short, "--method", "ant", "--out", str(whole)]) == 0
    plain = Trainer.fill_bank

    def interrupt(self, role, *rest):
        if role == "erase" and self.step == 1:
            raise KeyboardInterrupt
        plain(self, role, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fill_bank", interrupt)
        assert main([*short, "--method", "ant", "--out", str(out), "--resume", str(state)]) == 130
    assert state.exists() and not out.exists()
    assert main([*short, "--method", "ant", "--out", str(out), "--resume", str(state)]) == 0
    assert "continuing from step 1" in capsys.readouterr().out and not state.exists()
    assert out.read_bytes() == whole.read_bytes()


WRONG = {
    "no window": (["--window", "late"], "--window 'late' is not a window; write START, START,END or auto"),
    "three ends": (["--window", "0,0.5,1"], "--window '0,0.5,1' is not a window"),
    "empty window": (["--window", "0.6,0.4"], "the window is 0.6 to 0.4; it must be 0 <= start < end <= 1"),
    "index": (["--window", "43"], "the window is 43.0 to 1.0"),
    "not a number": (["--window", "nan"], "the window is nan to 1.0"),
    "weight": (["--weight", "keep"], "--weight 'keep' is not TERM=NUMBER, such as keep=2"),
    "weight of nothing": (
        ["--weight", "nothing=1"],
        "objective trace has no term 'nothing'; it has erase, keep",
    ),
    "negative weight": (["--weight", "keep=-1"], "the weight of 'keep' is -1.0"),
    "steps": (["--steps", "0"], "steps is 0; it must lie between 1 and"),
    "lr": (["--lr", "7"], "lr is 7.0"),
    "damaged state": (["--resume", "BAD"], "cannot read 'bad.state' as a training state"),
    "foreign state": (["--resume", "LORA"], "'lora.safetensors' is not a training state of this library"),
    "no place for a state": (["--resume", "BAD/state"], "cannot write '"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_options_are_named_before_the_model_loads(short, name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "trace_core.cli.commands.open_model", lambda name: pytest.fail("the model was loaded")
    )
    bad, lora = tmp_path / "bad.state", tmp_path / "lora.safetensors"
    bad.write_bytes(b"\0" * 50)
    ErasureLora({"diffusion_model.a": (torch.ones(2, 1), torch.ones(1, 3))}).save(lora)
    arguments, message = WRONG[name]
    arguments = [a.replace("BAD", str(bad)).replace("LORA", str(lora)) for a in arguments]
    out = tmp_path / "x.safetensors"
    assert main([*short, "--method", "trace", "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err and not out.exists()
