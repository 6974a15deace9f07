"""The command line on the demo models: what it writes, and what bad input gets."""

import json

import pytest
from PIL import Image

from trace_core.cli import main
from trace_core.lora import ErasureLora


@pytest.fixture(scope="module")
def erased(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("erased")
    arguments = [
        "--model",
        "demo-sd",
        "--erase",
        "cat",
        "--out",
        str(folder / "cat.safetensors"),
        "--json",
        str(folder / "e.json"),
    ]
    assert main(["erase", *arguments]) == 0
    return folder


def test_erase_writes_a_lora_that_says_what_it_is(erased):
    info = ErasureLora.load(erased / "cat.safetensors").info()
    assert info["trace.concepts"] == [["cat", "", 1.0]]
    assert info["trace.base"]["kind"] == "sd1" and len(info["trace.base"]["hash"]) == 16
    report = json.loads((erased / "e.json").read_text())
    assert report["solved"]["context"]["rank"] == info["rank"] > 0
    assert "dog" in report["keep"] and "cat" not in report["keep"]


def test_the_same_command_writes_the_same_bytes(erased, tmp_path):
    again = tmp_path / "cat.safetensors"
    assert main(["erase", "--model", "demo-sd", "--erase", "cat", "--out", str(again)]) == 0
    assert again.read_bytes() == (erased / "cat.safetensors").read_bytes()


def test_evaluate_measures_the_erasure(erased, tmp_path):
    out = tmp_path / "eval.json"
    arguments = [
        "--model",
        "demo-sd",
        "--lora",
        str(erased / "cat.safetensors"),
        "--erase",
        "cat",
        "--samples",
        "2",
        "--steps",
        "6",
    ]
    assert main(["evaluate", *arguments, "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert {"acc_e", "acc_s", "acc_g", "h_o", "drift", "per_class"} <= set(result)
    assert result["acc_e"] <= 0.5 and result["acc_s"] >= 0.85
    assert 0 < result["drift"]["latent_mse"] < 0.2
    assert set(result["synonyms"]) == {"kitty", "feline", "kitten"}


def test_generate_draws_a_grid(erased, tmp_path):
    out = tmp_path / "grid.png"
    arguments = [
        "--model",
        "demo-flux",
        "--prompt",
        "a cat",
        "--prompt",
        "a dog",
        "--steps",
        "2",
        "--out",
        str(out),
    ]
    assert main(["generate", *arguments]) == 0
    assert Image.open(out).size[0] > 2 * 128


def test_a_window_is_for_every_lora_of_the_command(erased, tmp_path, capsys):
    pictures = {}
    for name, window in {
        "whole": [],
        "late": ["--start", "0.3"],
        "last": ["--start", "0.5", "--end", "0.999"],
    }.items():
        out = tmp_path / f"{name}.png"
        lora = [
            "--lora",
            str(erased / "cat.safetensors"),
            "--prompt",
            "a cat",
            "--steps",
            "3",
            "--out",
            str(out),
        ]
        assert main(["generate", "--model", "demo-sd", *lora, *window]) == 0
        pictures[name] = out.read_bytes()
    assert len(set(pictures.values())) == 3
    wrong = ["--start", "0.6", "--end", "0.4", "--out", str(tmp_path / "x.png"), "--prompt", "a cat"]
    assert main(["generate", "--model", "demo-sd", "--lora", str(erased / "cat.safetensors"), *wrong]) == 2
    assert "start is 0.6 and end is 0.4: an empty window" in capsys.readouterr().err


def test_info_prints_the_metadata(erased, capsys):
    assert main(["info", str(erased / "cat.safetensors")]) == 0
    assert '[["cat", "", 1.0]]' in capsys.readouterr().out


BAD = {
    "empty list": (["--erase", " # nothing"], "nothing to erase"),
    "anchor equals concept": (["--erase", "cat -> Cat"], "the anchor equals the concept 'cat'"),
    "long": (["--erase", "x" * 10_000], "10000 characters"),
    "over one prompt": (["--erase", "q z " * 30], "does not fit into one prompt"),
    "unknown strength": (["--erase", "cat", "--strength", "99"], "strength is 99"),
    "keep what is erased": (
        ["--erase", "cat", "--keep", "cat"],
        "stands in the erase list and in the keep list",
    ),
    "no list file": (["--erase-file", "/nowhere/list.txt"], "cannot read '/nowhere/list.txt'"),
    "energy": (["--erase", "cat", "--energy", "2"], "energy is 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_leaves_nothing(engine, name, tmp_path, capsys):
    arguments, message = BAD[name]
    out = tmp_path / "out" / "x.safetensors"
    assert main(["erase", "--model", "demo-sd", "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*"))


UNKNOWN = {
    "--erase-list=x": "`erase` has no option --erase-list=x; did you mean --erase-file?",
    "--qqqq": "`erase` has no option --qqqq; `python -m trace_core erase --help`",
    "dog": "'dog' belongs to no option of `erase`; repeat the option before each value",
}


WRONG = {
    "--count=0": "error: argument --count: '0' is not a whole number from 1 up; `python -m trace",
    "--steps=0": "argument --steps: '0' is not a whole number",
    "--size=63": "argument --size: '63' is not a multiple of 8 from 16 up, such as 512",
    "--threads=-3": "argument --threads: '-3' is not a whole number",
    "--cfg=nan": "error: cfg is nan; it must be a finite number",
}


NO_EFFECT = {
    "--steps 5": "--steps belongs to a finetune, and `projection` has none; add `--method trace`, or leave",
    "--implied-file x.txt": "--implied-file belongs to a finetune",
    "--resume x.state": "--resume belongs to a finetune",
    "--preset fast --method uce": "--preset belongs to a finetune, and `uce` has none",
    "--energy 0.5 --method esd": "--energy belongs to a closed form, and `esd` has none",
    "--strength 0.5 --method ant": "--strength belongs to a closed form",
    "--neighbours 3 --method uce": "--neighbours belongs to the projection, and `uce` is a published method",
}


@pytest.mark.parametrize("words", NO_EFFECT)
def test_an_option_without_effect_is_refused(words, tmp_path, capsys):
    out = tmp_path / "x.safetensors"
    line = ["erase", "--model", "demo-sd", "--erase", "cat", "--out", str(out), *words.split()]
    assert main(line) == 2
    assert NO_EFFECT[words] in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", WRONG)
def test_a_number_that_cannot_be_drawn_with_is_named(engine, word, tmp_path, capsys):
    out = tmp_path / "x.png"
    try:
        code = main(["generate", "--model", "demo-sd", "--prompt", "a cat", "--out", str(out), word])
    except SystemExit as stop:  # the parser's own
        code = stop.code
    assert code == 2 and WRONG[word] in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("word", UNKNOWN)
def test_an_unknown_option_names_the_nearest(word, tmp_path, capsys):
    out = tmp_path / "x.safetensors"
    assert main(["erase", "--model", "demo-sd", "--out", str(out), "--erase", "cat", word]) == 2
    assert UNKNOWN[word] in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("concept", ["🐱", "قطة", "חתול", "(cat)", "cat's"])
def test_any_script_can_be_erased(engine, concept, tmp_path):
    out = tmp_path / "x.safetensors"
    assert main(["erase", "--model", "demo-sd", "--erase", concept, "--keep", "dog", "--out", str(out)]) == 0
    assert ErasureLora.load(out).info()["trace.concepts"][0][0] == concept


@pytest.mark.parametrize("out", ["missing.txt", "folder.safetensors", "file/x.safetensors", "."])
def test_unwritable_path_is_refused_before_the_work(engine, out, tmp_path, capsys):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").write_text("not a folder")
    before = sorted(tmp_path.rglob("*"))
    assert main(["erase", "--model", "demo-sd", "--erase", "cat", "--out", str(tmp_path / out)]) == 2
    assert "error: " in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_lora_for_another_architecture_is_refused(erased, tmp_path, capsys):
    arguments = ["--model", "demo-flux", "--lora", str(erased / "cat.safetensors"), "--prompt", "a cat"]
    assert main(["generate", *arguments, "--out", str(tmp_path / "x.png")]) == 2
    assert "made for Stable Diffusion 1.x and does not fit this FLUX.1 model" in capsys.readouterr().err


def test_a_model_that_is_no_model_is_refused(engine, tmp_path, capsys):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\x00" * 100)
    for name, message in (
        (str(file), "cannot load"),
        ("demo-xl", "is no demo model"),
        (__file__, "must be a .safetensors"),
    ):
        assert (
            main(["erase", "--model", name, "--erase", "cat", "--out", str(tmp_path / "x.safetensors")]) == 2
        )
        assert message in capsys.readouterr().err


def test_evaluate_asks_a_file_what_it_erases(erased, tmp_path, capsys):
    few = ["evaluate", "--model", "demo-sd", "--samples", "1", "--others", "1"]
    assert main([*few, "--lora", str(erased / "cat.safetensors"), "--json", str(tmp_path / "e.json")]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["acc_e"] == 0
    plain = ErasureLora.load(erased / "cat.safetensors")
    plain = ErasureLora(plain.modules, {})
    plain.save(tmp_path / "plain.safetensors")
    capsys.readouterr()
    assert main([*few, "--lora", str(tmp_path / "plain.safetensors")]) == 2
    assert "plain.safetensors' does not say what it erases; name it with --erase" in capsys.readouterr().err


def test_the_judge_knows_what_it_does_not_know(engine, capsys):
    assert main(["evaluate", "--model", "demo-sd", "--erase", "Van Gogh"]) == 2
    assert "the judge does not know 'Van Gogh'" in capsys.readouterr().err
    every = [f"{vendor} style" for vendor in ("google", "twitter", "fluent", "emojione", "android")]
    assert main(["evaluate", "--model", "demo-sd", *(f"--erase={name}" for name in every)]) == 2
    assert "every style that the judge knows is erased" in capsys.readouterr().err


def test_a_costly_edit_is_announced(engine, tmp_path, capsys):
    out = tmp_path / "x.safetensors"
    arguments = ["--model", "demo-flux", "--erase", "cat", "--energy", "1", "--out", str(out)]
    assert main(["erase", *arguments]) == 0
    assert "so little other text is left; lower the energy" in capsys.readouterr().out


def test_info_without_a_file_says_what_the_program_runs_on(engine, capsys):
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    assert f"ComfyUI: {engine.version}" in said and "torch: " in said and "trace_core: " in said


def test_info_of_a_file_is_in_order(erased, capsys):
    assert main(["info", str(erased / "cat.safetensors")]) == 0
    first, metadata = capsys.readouterr().out.split("\nmetadata\n")
    keys = [line.split(":")[0] for line in metadata.splitlines() if line.startswith("  trace.")]
    assert keys == sorted(keys) and "  trace.concepts" in keys
    assert first.startswith("erases: cat\n") and "made for: Stable Diffusion 1.x" in first
    assert "acts on: every step" in first
