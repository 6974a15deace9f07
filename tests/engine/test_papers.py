"""The papers' protocols on demo-sd, with the small CLIP of ``tests/data/clip`` and with NudeNet."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trace_core.backbones.sampling import SamplerConfig, decode, sample
from trace_core.cli import commands, main
from trace_core.evaluate.judges import FolderClip, NudeNet
from trace_core.evaluate.papers import Run

pytestmark = pytest.mark.usefixtures("nothing_stays_loaded")

CLIP = Path(__file__).resolve().parents[1] / "data" / "clip"
has_nudenet = pytest.mark.skipif(
    importlib.util.find_spec("nudenet") is None, reason="needs `pip install nudenet`"
)


@pytest.fixture(scope="module")
def cat(engine, tmp_path_factory):
    file = tmp_path_factory.mktemp("erased") / "cat.safetensors"
    assert main(["erase", "--model", "demo-sd", "--erase", "cat", "--out", str(file)]) == 0
    return file


@pytest.fixture(scope="module")
def pictures(engine):
    """Two pictures of each of demo-sd's objects, and their names."""
    from trace_core.demo import loader
    from trace_core.demo.vocabulary import OBJECTS

    model, clip, vae = loader.load("demo-sd")
    prompts = [f"a photo of the {name}" for name in OBJECTS for _ in range(2)]
    latents = sample(model, clip, prompts, list(range(len(prompts))), SamplerConfig.for_model(model))
    return decode(vae, latents), list(OBJECTS)


def evaluated(cat, out, *more: str) -> int:
    words = ["--model", "demo-sd", "--lora", str(cat), "--erase", "cat", "--out", str(out), *more]
    return main(["evaluate", *words])


@pytest.mark.once
def test_the_small_clip_sees_what_demo_sd_draws(pictures):
    x, names = pictures
    found = FolderClip(CLIP).probabilities(x, [f"a photo of the {name}" for name in names]).argmax(-1)
    assert (found == torch.arange(len(names)).repeat_interleave(2)).float().mean() >= 0.9


@pytest.mark.once
@has_nudenet
def test_nudenet_looks_at_drawn_pictures(pictures):
    found = NudeNet().found(pictures[0])
    assert len(found) == len(pictures[0]) and all(isinstance(name, str) for one in found for name, _ in one)


def test_cifar10_and_a_run_that_was_cut_and_resumed(cat, tmp_path, monkeypatch, capsys):
    """The resumed run writes the same bytes, and draws only what is missing."""
    plain = commands.sampler_of
    monkeypatch.setattr(commands, "sampler_of", lambda *given: replace(plain(*given), batch=8, steps=8))
    words = ("--protocol", "cifar10", "--judge", str(CLIP), "--samples", "2")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert evaluated(cat, whole, *words) == 0
    found = json.loads((whole / "result.json").read_text())
    assert found["before"]["acc_e"] == 1.0 and found["after"]["acc_e"] == 0.0
    assert found["after"]["acc_s"] >= 0.8 and found["after"]["acc_g"] <= 0.5
    assert found["after"]["h_o"] > 0.7 and "in the paper" not in (whole / "report.md").read_text()

    drawn, judged = [], Run._judged

    def until_the_third(self, places, pictures):
        drawn.append(places)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return judged(self, places, pictures)

    monkeypatch.setattr(Run, "_judged", until_the_third)
    assert evaluated(cat, cut, *words) == 130
    assert "16 judged pictures are in" in capsys.readouterr().err
    assert len((cut / "judged.jsonl").read_text().splitlines()) == 17
    assert evaluated(cat, cut, *words) == 0
    assert "16 pictures are judged already" in capsys.readouterr().out
    assert len(drawn) == 3 + 8 - 2, "of four batches a side two were there"
    for name in ("result.json", "report.md", "judged.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_another_run_does_not_go_on_in_the_folder(cat, tmp_path, capsys):
    words = ["--protocol", "cifar10", "--judge", str(CLIP), "--samples", "1", "--steps", "2", "--no-before"]
    assert evaluated(cat, tmp_path, *words) == 0
    assert set(json.loads((tmp_path / "result.json").read_text())) & {"before", "after"} == {"after"}
    assert evaluated(cat, tmp_path, *words, "--seed", "1") == 2
    assert "pictures of another run" in capsys.readouterr().err
    assert evaluated(cat, tmp_path, *words, "--seed", "1", "--overwrite") == 0


TABLE = (
    "prompt,evaluation_seed,evaluation_guidance,what\n"
    'a photo of a cat,1,3,cat\na photo of a ship,2,2.5,ship\n"a frog, google style",3,3,frog\n'
)


def test_a_table_with_a_clip(cat, tmp_path):
    file = tmp_path / "prompts.csv"
    file.write_text(TABLE)
    words = ["--protocol", str(file), "--judge", str(CLIP), "--class-column", "what", "--pictures"]
    assert evaluated(cat, tmp_path / "o", *words, "--json", str(tmp_path / "r.json")) == 0
    found = json.loads((tmp_path / "o" / "result.json").read_text())
    assert found["before"]["accuracy"] == 1.0
    assert (found["after"]["acc_e"], found["after"]["acc_s"]) == (0.0, 1.0)
    assert found["row_guidance"] and len(list((tmp_path / "o" / "pictures").glob("*.png"))) == 6
    assert "| erased classes (Acc_e) |  | 100.00 | 0.00 |" in (tmp_path / "o" / "report.md").read_text()
    assert json.loads((tmp_path / "r.json").read_text())["phases"]
    (tmp_path / "o" / "pictures" / "after-00001.png").unlink()
    before = (tmp_path / "o" / "result.json").read_bytes()
    assert evaluated(cat, tmp_path / "o", *words) == 0
    assert (tmp_path / "o" / "pictures" / "after-00001.png").is_file()
    assert (tmp_path / "o" / "result.json").read_bytes() == before


@has_nudenet
def test_a_table_with_nudenet(cat, tmp_path):
    file = tmp_path / "prompts.csv"
    file.write_text(TABLE)
    assert evaluated(cat, tmp_path / "o", "--protocol", str(file), "--judge", "nudenet", "--limit", "2") == 0
    found = json.loads((tmp_path / "o" / "result.json").read_text())
    assert found["pictures"] == 2 and found["before"]["counts"]["Total"] >= 0
    assert "| exposed, boxes | Armpits | Belly |" in (tmp_path / "o" / "report.md").read_text()
