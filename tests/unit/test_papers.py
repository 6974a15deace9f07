"""The papers' protocols without a model: prompts, tables, journal, figures, judges, and what is refused."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path

import pytest
import torch

from trace_core.cli import main
from trace_core.errors import ConceptError, TraceError
from trace_core.evaluate.judges import FolderClip, NudeNet, judge_of, nudity
from trace_core.evaluate.judges.folder import Preparation
from trace_core.evaluate.papers import Asked, Journal, cifar10, table
from trace_core.evaluate.papers.asked import digest
from trace_core.evaluate.papers.report import markdown

CLIP = Path(__file__).resolve().parents[1] / "data" / "clip"
has_nudenet = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("nudenet") is None, reason="needs `pip install nudenet`"
)


# ------------------------------------------------------------------------------------------- cifar10


def test_the_protocol_asks_for_every_class_and_three_synonyms():
    asked = cifar10.asked(["cat"], 2)
    assert len(asked) == 2 * (10 + 3)
    assert asked[0] == Asked("a photo of the cat", 0, "cat", "erased", "cat")
    assert {a.word for a in asked if a.group == "synonym"} == {"feline", "kitty", "housecat"}
    assert all(a.shows == "cat" for a in asked if a.group != "kept")
    assert len({a.shows for a in asked if a.group == "kept"}) == 9
    assert [a.seed for a in cifar10.asked(["cat"], 2, seed=1)][:2] == [100003, 100004]
    assert all(len(words) == 3 for words in cifar10.SYNONYMS.values())


def test_a_synonym_names_its_class():
    assert cifar10.classes_of(["Kitty", "cat", "ship"]) == ["cat", "ship"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "needs an erased class"),
        (["Van Gogh"], "'Van Gogh' is no class of cifar10; it has airplane"),
        (list(cifar10.CLASSES), "nothing is left to keep"),
    ],
)
def test_other_classes_are_refused(names, message):
    with pytest.raises(ConceptError, match=message):
        cifar10.classes_of(names)


def test_the_figures_are_the_papers_formulas():
    asked = cifar10.asked(["cat"], 10)
    answers = []
    for at, entry in enumerate(asked):
        wrong = {"erased": at % 10 > 0, "synonym": at % 10 > 1, "kept": False}[entry.group]
        answers.append({"seen": "dog" if wrong else entry.shows, "prob": 0.2 if wrong else 0.8})
    found = cifar10.figures(asked, answers)
    assert (found["acc_e"], found["acc_s"]) == (0.1, 1.0)
    assert found["acc_g"] == pytest.approx(0.2)
    assert found["h_o"] == pytest.approx(3 / (1 / 0.9 + 1 + 1 / 0.8))
    assert found["mean_prob"]["acc_e"] == pytest.approx(0.1 * 0.8 + 0.9 * 0.2)
    assert found["per_word"]["kitty"]["class"] == "cat"


# ------------------------------------------------------------------------------------------- tables


def written(tmp_path, text: str) -> Path:
    file = tmp_path / "prompts.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_table_of_i2p(tmp_path):
    text = (
        ",prompt,categories,hard,evaluation_seed,evaluation_guidance,case_number\n"
        '0,"a,  b ","violence, self-harm",1,4261553411,13,0\n\n1,c,self-harm,0,12,7.5,1\n'
    )
    found = table.read(written(tmp_path, text))
    assert found.asked[0] == Asked(
        "a, b", 4261553411, "violence, self-harm", "row", "violence, self-harm", 13.0
    )
    assert found.names == ("violence, self-harm", "self-harm")
    assert found.columns["seed"] == "evaluation_seed"
    assert len(table.read(written(tmp_path, text), limit=1).asked) == 1


def test_a_table_of_prompts_alone(tmp_path):
    found = table.read(written(tmp_path, "Prompt\na cat\na dog\n"), seed=2)
    assert [a.seed for a in found.asked] == [200006, 200007]
    assert found.names == () and found.asked[0].guidance is None


def test_the_column_with_the_class_can_be_named(tmp_path):
    text = "prompt;category;what it is\nx;a;cat\ny;b;dog\n"
    assert table.read(written(tmp_path, text), class_column="What it is").names == ("cat", "dog")
    with pytest.raises(
        TraceError, match="--class-column 'kind': 'prompts.csv' has no such column; its columns"
    ):
        table.read(written(tmp_path, text), class_column="kind")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'prompts.csv' is empty; it needs a header"),
        ("\n\n", "is empty"),
        ("prompt,seed\n", "has no rows below its header"),
        ("text,seed\na,1\n", "has no column `prompt`; its columns are 'text', 'seed'"),
        ("prompt,seed\na,x\n", "line 2: 'x' in the column 'seed' is not a number"),
        ("prompt,seed\na,1\n ,2\n", "line 3: the prompt is empty"),
        ("prompt,guidance\na,-1\n", "line 2: '-1' in the column 'guidance'"),
    ],
)
def test_bad_tables_are_refused_by_line(tmp_path, text, message):
    with pytest.raises(TraceError, match=message):
        table.read(written(tmp_path, text))


def test_accuracy_by_class():
    asked = [Asked("x", 0, shows) for shows in ("cat", "cat", "dog", "")]
    answers = [{"seen": s, "prob": 0.5} for s in ("cat", "dog", "dog", "cat")]
    found = table.accuracy(asked, answers, ["Cat"])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert (found["acc_e"], found["acc_s"]) == (0.5, 1.0)
    assert table.accuracy(asked, answers)["acc_e"] is None


# ------------------------------------------------------------------------------------------- journal


def test_a_journal_goes_on_and_drops_what_was_cut_short(tmp_path):
    journal = Journal(tmp_path, {"seed": 1})
    journal.add("before", [0, 1], [{"seen": "cat"}, {"seen": "dog"}])
    journal.close()
    with journal.path.open("a") as file:
        file.write('{"side": "before", "at": 2, "ans')
    again = Journal(tmp_path, {"seed": 1})
    assert again.has("before", [0, 1]) and not again.has("before", [2])
    again.add("before", [1, 2], [{"seen": "x"}, {"seen": "ship"}])
    again.close()
    assert [a["seen"] for a in Journal(tmp_path, {"seed": 1}).of("before", 3)] == ["cat", "dog", "ship"]
    assert len(journal.path.read_text().splitlines()) == 4


def test_a_journal_of_another_run_is_refused(tmp_path):
    Journal(tmp_path, {"seed": 1, "judge": {"name": "a"}}).close()
    with pytest.raises(
        TraceError, match="pictures of another run: its seed is 1, not 2. Choose another --out"
    ):
        Journal(tmp_path, {"seed": 2, "judge": {"name": "a"}})
    anew = Journal(tmp_path, {"seed": 2, "judge": {"name": "a"}}, anew=True)
    anew.close()
    (tmp_path / "judged.jsonl").write_text("no JSON\nat all\n")
    with pytest.raises(TraceError, match="is damaged; remove it, or add --overwrite"):
        Journal(tmp_path, {"seed": 2})


def test_the_digest_changes_with_any_entry():
    asked = cifar10.asked(["cat"], 1)
    assert digest(asked) != digest(cifar10.asked(["cat"], 1, seed=1))
    assert digest(asked) == digest(cifar10.asked(["cat"], 1))


# ------------------------------------------------------------------------------------------- judges


def test_the_clip_tells_pictures_apart():
    judge = FolderClip(CLIP)
    rows = judge.text_rows(["a photo of the cat", "a photo of the ship"])
    assert rows.shape == (2, 64) and len(judge.fingerprint) == 16
    found = judge.probabilities(torch.rand(3, 80, 64, 3), ["a cat", "a ship", "a dog"])
    assert found.shape == (3, 3) and found.sum(-1).allclose(torch.ones(3))


def test_pictures_are_prepared_as_transformers_does():
    from transformers import CLIPImageProcessorPil as Processor

    picture = torch.rand(50, 90, 3).mul(255).round().div(255)
    ours = Preparation.of(CLIP, 64)(picture)
    array = (picture * 255).byte().numpy()
    theirs = Processor.from_pretrained(CLIP)(array, return_tensors="pt")["pixel_values"][0]
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-5


def test_the_preparation_is_read_however_it_was_saved(tmp_path):
    said = json.loads((CLIP / "preprocessor_config.json").read_text()) | {"size": {"shortest_edge": 80}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": said}))
    assert (Preparation.of(tmp_path, 64).size, Preparation.of(tmp_path, 64).crop) == (80, 64)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 72, "crop_size": 72}))
    assert (Preparation.of(tmp_path, 64).size, Preparation.of(tmp_path, 64).crop) == (72, 72)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(TraceError, match="cannot be read"):
        Preparation.of(tmp_path, 64)


@pytest.fixture
def copied(tmp_path):
    return Path(shutil.copytree(CLIP, tmp_path / "clip"))


@pytest.mark.parametrize(
    ("lacks", "message"),
    [
        (["config.json"], "has no config.json, so it is no CLIP"),
        (["model.safetensors"], "has no model.safetensors; save the CLIP with save_pretrained"),
        (["tokenizer.json"], "has no tokenizer"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused(copied, lacks, message):
    for name in lacks:
        (copied / name).unlink()
    with pytest.raises(TraceError, match=message):
        judge_of(str(copied))


def test_pickles_are_not_read(copied):
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(TraceError, match="pytorch_model.bin can run code"):
        judge_of(str(copied))


def test_other_folders_are_refused(copied, tmp_path):
    with pytest.raises(TraceError, match="'nowhere' is no folder; give `nudenet`, or the folder of a CLIP"):
        judge_of("nowhere")
    (copied / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(TraceError, match="a model of the type 'siglip', not a whole clip"):
        judge_of(str(copied))
    (copied / "config.json").write_text("{")
    with pytest.raises(TraceError, match="config.json' cannot be read"):
        judge_of(str(copied))


def test_a_damaged_file_is_refused(copied):
    (copied / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(TraceError, match="transformers cannot load the CLIP"):
        judge_of(str(copied))


def test_a_missing_nudenet_names_the_remedy_and_its_licence(monkeypatch):
    plain = builtins.__import__

    def without(name, *rest, **named):
        if name.split(".")[0] == "nudenet":
            raise ModuleNotFoundError("No module named 'nudenet'", name="nudenet")
        return plain(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(TraceError, match="pip install nudenet.*AGPL-3.0"):
        judge_of("NudeNet")


@has_nudenet
def test_nudenet_looks_at_pictures():
    found = NudeNet().found(torch.rand(2, 96, 64, 3))
    assert len(found) == 2 and all(0 <= score <= 1 for one in found for _, score in one)


def test_exposed_parts_are_counted_as_in_the_paper():
    found = [
        [["FEMALE_BREAST_EXPOSED", 0.7], ["FEMALE_BREAST_EXPOSED", 0.61], ["FACE_FEMALE", 0.9]],
        [["BELLY_EXPOSED", 0.59], ["ANUS_EXPOSED", 0.8]],
        [["BELLY_EXPOSED", 0.6]],
    ]
    counted = nudity.counts(found)
    assert counted["Breasts (F)"] == 2 and counted["Belly"] == 1
    assert counted["Total"] == 3 and counted["Anus"] == 1, "the paper's table has no such column"
    assert nudity.pictures_with(found) == 3
    assert len(nudity.row_of(counted)) == len(nudity.HEADINGS) == 10


# ------------------------------------------------------------------------------------------- report


def test_the_report_has_the_papers_columns_and_escapes_names():
    asked = cifar10.asked(["cat"], 1)
    answers = [{"seen": a.shows, "prob": 0.5} for a in asked]
    sampler = {"sampler": "ddim", "scheduler": "normal", "steps": 50, "cfg": 7.5, "width": 512, "height": 512}
    found = {
        "protocol": "cifar10",
        "kind": "clip",
        "erased": ["<b>cat"],
        "pictures": 13,
        "judge": "CLIP 'x'",
        "as_paper": True,
        "after": cifar10.figures(asked, answers),
        "notes": ["Something."],
        "settings": {"sampler": sampler},
    }
    text = markdown(found)
    assert "| MACE, in the paper | 8.49 | 97.35 | 10.53 | 92.61 |" in text
    assert "| with the erasure | 100.00 | 100.00 | 100.00 | 0.00 |" in text
    assert "<b>" not in text.replace("\\<b>", "") and "> **Note:** Something." in text


# ------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--judge nudenet", "--judge belongs to --protocol"),
        ("--out x", "--out belongs to --protocol"),
        ("--protocol cifar10 --out x", "--protocol needs --judge"),
        ("--protocol cifar10 --judge nudenet", "--protocol needs --out"),
        ("--protocol cifar10 --judge nudenet --out x", "cifar10 is judged by a CLIP, not by nudenet"),
        ("--protocol other --judge nudenet --out x", "--protocol 'other' is not known"),
        ("--protocol a.csv --judge nudenet --out x", "cannot read --protocol 'a.csv'"),
        ("--protocol a.csv --judge nudenet --out x --limit 0", "--limit is 0"),
        ("--protocol a.csv --judge nudenet --out x --no-before", "--no-before leaves nothing to draw"),
        ("--protocol cifar10 --judge x --out x --limit 3", "are for a table"),
        ("--protocol cifar10 --judge x --out x --attack all", "are two runs"),
        ("--protocol cifar10 --judge x --out y --erase cat", "judge 'x' is no folder"),
        (f"--protocol cifar10 --judge {CLIP} --out x", "needs an erased class"),
    ],
)
def test_options_that_do_not_fit_are_refused(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trace_core.cli.commands.open_model", lambda *_, **__: pytest.fail("work began"))
    assert main(["evaluate", "--model", "base.safetensors", *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_a_clip_needs_classes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trace_core.cli.commands.open_model", lambda *_, **__: pytest.fail("work began"))
    file = written(tmp_path, "prompt\na cat\n")
    words = ["--protocol", str(file), "--judge", str(CLIP), "--out", str(tmp_path / "o")]
    assert main(["evaluate", "--model", "base.safetensors", *words]) == 2
    assert "a CLIP needs classes to choose from" in capsys.readouterr().err


def test_the_table_is_not_written_over(tmp_path, capsys):
    out = tmp_path / "o"
    out.mkdir()
    file = out / "judged.jsonl"
    file.write_text("prompt\na cat\n")
    (out / "p.csv").symlink_to(file)
    words = ["--protocol", str(out / "p.csv"), "--judge", "nudenet", "--out", str(out), "--overwrite"]
    assert main(["evaluate", "--model", "base.safetensors", *words]) == 2
    assert "is the same file as --protocol" in capsys.readouterr().err
    assert file.read_text() == "prompt\na cat\n"
