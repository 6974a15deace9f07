"""The fusion from the command line and as a node."""

from __future__ import annotations

import importlib
import importlib.util
import json

import pytest
import torch

from fused_models import KINDS, trained
from trace_core.cli import main
from trace_core.lora import ErasureLora


@pytest.fixture(scope="module")
def files(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for concept in ("cat", "truck"):
        assert (
            main(
                [
                    "erase",
                    "--model",
                    "demo-sd",
                    "--erase",
                    concept,
                    "--keep",
                    "house",
                    "--out",
                    str(folder / f"{concept}.safetensors"),
                ]
            )
            == 0
        )
    return folder


def test_command(files, tmp_path, capsys):
    both, report = tmp_path / "both.safetensors", tmp_path / "report.json"
    given = [str(files / f"{c}.safetensors") for c in ("cat", "truck")]
    assert (
        main(
            [
                "fuse",
                *given,
                "--model",
                "demo-sd",
                "--keep",
                "house",
                "--strength",
                "cat=0.5",
                "--out",
                str(both),
                "--json",
                str(report),
            ]
        )
        == 0
    )
    assert "fused 2 files: 2 concepts in 2 parts" in capsys.readouterr().out
    written = json.loads(report.read_text())
    assert (
        written["streams"]["context"]["fused"]["keep_change"]
        < written["streams"]["context"]["sum"]["keep_change"]
    )
    assert [p.strength for p in ErasureLora.load(both).parts()] == [0.5, 1.0]
    one = tmp_path / "one.safetensors"
    # no model is needed
    assert main(["fuse", str(both), "--without", "truck", "--strength", "cat=1", "--out", str(one)]) == 0
    assert [p.targets for p in ErasureLora.load(one).parts()] == [["cat"]]
    naive = tmp_path / "naive.safetensors"
    assert (
        main(["fuse", *given, "--model", "demo-sd", "--keep", "house", "--naive", "--out", str(naive)]) == 0
    )
    joined = ErasureLora.join(*map(ErasureLora.load, given))
    assert ErasureLora.load(naive).fingerprint == joined.fingerprint
    added = tmp_path / "added.safetensors"
    assert main(["fuse", *given, "--model", "demo-sd", "--keep", "house", "--add", "--out", str(added)]) == 0
    assert "added to the first of 2 files" in capsys.readouterr().out
    first = ErasureLora.load(given[0])
    assert ErasureLora.load(added).without("truck").fingerprint == first.fingerprint


BAD = {
    "no model": ([], "--model is missing"),
    "strength": (["--strength", "cat"], "--strength, line 1: 'cat' is not CONCEPT = NUMBER"),
    "unknown strength": (
        ["--strength", "elk=1"],
        "'elk' is not erased by this file; it erases 'cat', 'truck'",
    ),
    "unknown without": (
        ["--without", "elk"],
        "--without 'elk': the files do not erase it; they erase cat, truck",
    ),
    "nothing left": (["--without", "cat", "--without", "truck"], "there is nothing left to write"),
    "integration": (["--integration", "-1"], "integration is -1"),
    "rank": (["--max-rank", "0"], "max_rank is 0"),
    "no such model": (["--model", "nowhere"], "--model 'nowhere' is no demo model"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_leaves_nothing(files, name, tmp_path, capsys):
    arguments, message = BAD[name]
    given = [str(files / f"{c}.safetensors") for c in ("cat", "truck")]
    assert main(["fuse", *given, "--out", str(tmp_path / "out" / "x.safetensors"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*"))


# ------------------------------------------------------------------------------------------- the node


@pytest.fixture
def host(pack, tmp_path, monkeypatch):
    """LoRA files in a folder of the test's own."""
    host = importlib.import_module(f"{pack.__name__}.nodes.host")
    error = importlib.import_module(f"{pack.__name__}.trace_core.errors").LoraError

    def path(name):
        if not (tmp_path / name).is_file():
            raise error(f"'{name}' is in none of the LoRA folders")
        return tmp_path / name

    monkeypatch.setattr(host, "lora_path", path)
    return host


@pytest.mark.parametrize("kind", KINDS)
def test_node(families, pack, host, kind, tmp_path):
    """In inference mode, as ComfyUI runs nodes; two from wires and one from a file."""
    family, model = families[kind], families[kind].model()
    wire = importlib.import_module(f"{pack.__name__}.nodes.wire")
    first, second, third = (trained(family, model, c) for c in ("cat", "truck", "pizza"))
    third.save(tmp_path / "pizza.safetensors")
    node = pack.NODE_CLASS_MAPPINGS["TRACE_FuseErasureLoras"]
    with torch.inference_mode():
        answer = node().fuse(
            model,
            family.clip,
            "house\nsea",
            "fuse",
            lora_1=wire.LoraState(first),
            lora_4=wire.LoraState(second),
            files="pizza.safetensors\n# none.safetensors\n",
            strengths="cat = 0.5",
        )
    edited, lora, report = answer["result"]
    assert answer["ui"]["trace_report"] == [report]
    assert report.startswith("# Fused: cat, truck, pizza")
    assert (
        "plain sum" in report and "| lora_4 | truck |" in report and "| pizza.safetensors | pizza |" in report
    )
    assert ("Warning" in report) == (kind == "flux")
    back = wire.erasure_of(lora)
    assert [(p.targets, p.strength) for p in back.parts()] == [
        (["cat"], 0.5),
        (["truck"], 1.0),
        (["pizza"], 1.0),
    ]
    assert not torch.equal(family.sample(edited, "a cat"), family.sample(model, "a cat"))


def test_node_on_bad_input(families, pack, host, tmp_path):
    family, model = families["sd1"], families["sd1"].model()
    wire, errors = (
        importlib.import_module(f"{pack.__name__}.{m}") for m in ("nodes.wire", "trace_core.errors")
    )
    node = pack.NODE_CLASS_MAPPINGS["TRACE_FuseErasureLoras"]
    good = wire.LoraState(trained(family, model, "cat"))
    stock = dict(good)  # from the stock Train LoRA node: no metadata
    for given, message in (
        ({}, "nothing to fuse: connect"),
        ({"lora_1": good, "lora_2": stock}, "lora_2 does not say what it erases"),
        ({"lora_1": good, "lora_3": {}}, "lora_3: the LORA_MODEL that is connected is empty"),
        ({"lora_1": good, "strengths": "elk = 1"}, "'elk' is not erased"),
        ({"lora_1": good, "strengths": "cat"}, "strengths, line 1"),
        ({"lora_1": good, "files": "gone.safetensors"}, "gone.safetensors"),
    ):
        with pytest.raises(errors.TraceError, match=message):
            node().fuse(model, family.clip, "house", "fuse", **given)
    edited = importlib.import_module(f"{pack.__name__}.trace_core.lora.gating").apply(
        model, wire.erasure_of(good)
    )
    with pytest.raises(errors.LoraError, match="loader's"):
        node().fuse(edited, family.clip, "house", "fuse", lora_1=good)
    assert "gone.safetensors" in node.VALIDATE_INPUTS("gone.safetensors")
    assert node.VALIDATE_INPUTS("") is True
    (tmp_path / "x.safetensors").write_bytes(b"1")
    before = node.IS_CHANGED(files="x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"12")
    assert node.IS_CHANGED(files="x.safetensors") != before
