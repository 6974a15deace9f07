"""A CLIP of ComfyUI's own objects as a judge, in the node and beside the folder of the same weights."""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch

from trace_core.cli import main
from trace_core.demo import text_towers
from trace_core.demo.networks import config_file
from trace_core.errors import ConceptError, ModelError
from trace_core.evaluate.judges import FolderClip
from trace_core.evaluate.judges.comfy import ComfyClip
from trace_core.evaluate.verify import Effort, verify
from trace_core.lora.metadata import VERIFICATION

pytestmark = pytest.mark.usefixtures("nothing_stays_loaded")

CLIP = Path(__file__).resolve().parents[1] / "data" / "clip"
SMALL = Effort(samples=4, kept=4, kept_samples=1, neighbours=2, levels=2, repeats=1, attacks=False)


@pytest.fixture(scope="module")
def folder():
    return FolderClip(CLIP, "cpu")


@pytest.fixture(scope="module")
def comfy_vision(engine, folder):
    """The small CLIP's picture side as ComfyUI's CLIP_VISION."""
    import comfy.clip_vision

    config = folder.model.config.vision_config.to_dict()
    if "image_mean" not in inspect.getsource(comfy.clip_vision.ClipVisionModel):  # the packaged engine
        pytest.skip("this engine's CLIP_VISION knows one size of pictures")
    with config_file(config) as file:
        vision = comfy.clip_vision.ClipVisionModel(file)
    state = {k: v for k, v in folder.model.state_dict().items() if k.startswith(("vision", "visual"))}
    missing, unknown = vision.load_sd({k: v.clone() for k, v in state.items()})
    assert not missing and not unknown
    return vision


@pytest.fixture(scope="module")
def comfy_text(engine, folder):
    """Its text side as ComfyUI's CLIP."""
    text = folder.model.config.text_config
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    tower = {key: getattr(text, key) for key in (*keys, "max_position_embeddings")}
    clip = text_towers.sd_clip(tower)
    state = {k: v for k, v in folder.model.state_dict().items() if k.startswith("text")}
    missing, _ = clip.cond_stage_model.load_sd({k: v.clone() for k, v in state.items()})
    assert not [k for k in missing if "position_ids" not in k]
    return clip


def test_comfyuis_objects_see_what_the_folder_sees(folder, comfy_vision, comfy_text):
    torch.manual_seed(0)
    pictures = torch.rand(5, 64, 64, 3).mul(255).round().div(255)
    texts = [f"a photo of the {name}" for name in ("cat", "ship", "dog", "frog")]
    own, theirs = folder.probabilities(pictures, texts), ComfyClip(comfy_vision, comfy_text)
    theirs.scale = folder.scale
    assert (theirs.probabilities(pictures, texts) - own).abs().max() < 0.02
    rows = comfy_text.encode_from_tokens(comfy_text.tokenize("a cat"), return_pooled=True)[1]
    theirs.text_rows(texts)
    again = comfy_text.encode_from_tokens(comfy_text.tokenize("a cat"), return_pooled=True)[1]
    assert torch.equal(rows, again), "the CLIP is as before"


@pytest.mark.once
def test_a_folder_with_openais_tokenizer(engine, tmp_path):
    """The files of ComfyUI's own CLIP tokenizer, and random weights."""
    from transformers import CLIPConfig, CLIPModel

    ends = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text = {**small, **ends, "vocab_size": 49408}
    vision = {**small, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(tmp_path)
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(engine.path / "comfy" / "sd1_tokenizer" / file, tmp_path / file)
    judge = FolderClip(tmp_path)
    assert judge.tokenizer("a photo")["input_ids"] == [49406, 320, 1125, 49407]
    assert judge.probabilities(torch.rand(2, 64, 48, 3), ["a cat", "a dog"]).shape == (2, 2)


def test_the_towers_of_other_models_are_refused_by_width(demo, comfy_vision):
    with pytest.raises(ConceptError, match="gives rows of 256 numbers, but the clip_vision has 64"):
        ComfyClip(comfy_vision, demo[1])
    with pytest.raises(ConceptError, match="gives rows of 128 numbers, but the clip_vision has 64"):
        ComfyClip(comfy_vision, text_towers.flux_clip())


def test_a_judge_sees_an_erasure_and_one_that_does_nothing(demo, lora, folder):
    model, clip, vae = demo
    words = dict(keep=["dog", "ship", "frog", "house"], vae=vae, effort=SMALL, judge=folder)
    good = {i.name: i for i in verify(model, clip, lora, **words).items if i.side == "judge"}
    assert good["concept seen"].figure == 0.0 and good["concept seen"].status == "PASS"
    assert good["kept things seen"].figure <= 0.25
    none = {i.name: i for i in verify(model, clip, lora, strength=0.0, **words).items if i.side == "judge"}
    assert none["concept seen"].figure == 1.0 and none["concept seen"].status == "FAIL"
    assert none["kept things seen"].figure == 0.0


@pytest.mark.full_engine
def test_the_node_with_clip_vision(pack, demo, lora, comfy_vision, comfy_text, tmp_path, monkeypatch):
    """In inference mode, as ComfyUI runs nodes."""
    part = lambda name: importlib.import_module(f"{pack.__name__}.{name}")  # noqa: E731
    monkeypatch.setattr(part("nodes.host"), "temp_directory", lambda: tmp_path)
    model, clip, vae = demo
    state = part("nodes.wire").LoraState(lora)
    node = pack.NODE_CLASS_MAPPINGS["TRACE_VerifyErasure"]()
    words = dict(erase="cat", keep="dog\nship\nfrog", steps=4, kept_samples=1, attacks=False)
    with torch.inference_mode():
        made = node.verify(
            model, clip, "none", 2, 3, 0, state, vae, **words, clip_vision=comfy_vision, judge_clip=comfy_text
        )
    report, out = made["result"][2], made["result"][4]
    assert "## What CLIP_VISION with 64 numbers sees" in report
    assert json.loads(out.metadata[VERIFICATION])["judge"] == "CLIP_VISION with 64 numbers"
    errors = part("trace_core.errors")
    with pytest.raises(errors.ModelError, match="connect the vae as well"):
        node.verify(model, clip, "none", 2, 2, 0, state, clip_vision=comfy_vision)
    with pytest.raises(errors.ModelError, match="judge_clip is connected without a clip_vision"):
        node.verify(model, clip, "none", 2, 2, 0, state, vae, judge_clip=comfy_text)
    with pytest.raises(errors.ConceptError, match="connect it to judge_clip"):
        node.verify(model, clip, "none", 2, 2, 0, state, vae, clip_vision=comfy_vision)


def test_the_command_with_a_judge(lora, tmp_path, capsys):
    file = lora.save(tmp_path / "cat.safetensors")
    quick = ["--samples", "2", "--steps", "4", "--kept", "2", "--kept-samples", "1", "--no-attacks"]
    base = ["verify", "--model", "demo-sd", "--lora", str(file), *quick]
    paths = [tmp_path / name for name in ("v.json", "v.md", "v.png")]
    asked = [w for o, p in zip(("--json", "--markdown", "--picture"), paths) for w in (o, str(p))]
    assert main([*base, "--judge", str(CLIP), *asked]) == 0
    assert json.loads(paths[0].read_text())["judged"]["judge"] == "CLIP 'clip'"
    assert "## What CLIP 'clip' sees" in paths[1].read_text()
    assert main([*base, "--judge", str(tmp_path)]) == 2
    assert "has no config.json, so it is no CLIP" in capsys.readouterr().err


def test_a_judge_without_a_vae_is_refused(demo, lora, folder):
    with pytest.raises(ModelError, match="need the model's VAE"):
        verify(*demo[:2], lora, effort=SMALL, judge=folder)
