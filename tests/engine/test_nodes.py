"""Nodes on models that are no demo models: families' own sizes, sampler settings and previews, on either
engine.
"""

from __future__ import annotations

import importlib
import importlib.util

import pytest
import torch


@pytest.fixture
def part(pack, tmp_path, monkeypatch):
    host = importlib.import_module(f"{pack.__name__}.nodes.host")
    monkeypatch.setattr(host, "temp_directory", lambda: tmp_path)
    return lambda name: importlib.import_module(f"{pack.__name__}.{name}")


class Pixels:
    """A VAE that shows the first three channels."""

    def decode(self, latents):
        return latents[:, :3].sigmoid().movedim(1, -1).repeat_interleave(8, 1).repeat_interleave(8, 2)


@pytest.mark.parametrize(
    ("kind", "size", "cfg"), [("sd1", 512, 7.0), ("sdxl", 1024, 7.0), ("flux", 1024, 1.0)]
)
def test_settings_of_a_family(families, part, kind, size, cfg):
    family, model = part("nodes.family"), families[kind].model()
    config = family.sampler_config(
        model,
        family.picture_size(model, 0, 0),
        steps=0,
        cfg=-1.0,
        guidance=-1.0,
        sampler="auto",
        scheduler="auto",
    )
    assert (config.width, config.height, config.cfg, config.steps, config.batch) == (size, size, cfg, 20, 1)
    assert config.sampler == ("euler" if kind == "flux" else "dpmpp_2m")
    assert family.finetune_options(model, 0, 0, 0.0) == {"width": 512, "height": 512}
    assert family.finetune_options(model, 64, 128, 0.1) == {"width": 64, "height": 128, "lr": 0.1}
    chosen = family.sampler_config(
        model, {"width": 64, "height": 64}, steps=3, cfg=2.0, guidance=0.0, sampler="heun", scheduler="normal"
    )
    assert (chosen.steps, chosen.cfg, chosen.guidance, chosen.sampler, chosen.scheduler) == (
        3,
        2.0,
        0.0,
        "heun",
        "normal",
    )


@pytest.mark.parametrize("kind", ["sd1", "flux"])
def test_the_whole_way(families, pack, part, kind, monkeypatch):
    """In inference mode, as ComfyUI runs nodes; the base model stays bit for bit."""
    family, nodes = families[kind], pack.NODE_CLASS_MAPPINGS
    for name, value in {"trajectories": 4, "keep_trajectories": 4, "batch": 8}.items():
        monkeypatch.setitem(part("trace_core.finetune.options").PRESETS["fast"], name, value)
    model = family.model()
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    with torch.inference_mode():
        first = nodes["TRACE_ClosedFormProjection"]().erase(
            model, family.clip, "cat", "dog\nhouse", "trace", 1.0, eta=0.0
        )
        _, lora, report = first["result"]
        trained = nodes["TRACE_LateStageFinetune"]().train(
            model,
            family.clip,
            "cat",
            "dog\nhouse",
            "trace",
            "fast",
            "auto",
            "custom",
            0.3,
            1.0,
            2,
            2,
            0.001,
            -1.0,
            0,
            64,
            64,
            False,
            1,
            lora,
        )
        edited, joined, losses, tuned = trained["result"]
        compared = nodes["TRACE_CompareErasure"]().compare(
            model, edited, family.clip, Pixels(), "a cat\na house", 0, 1, 2, -1.0, "cat", width=64, height=64
        )
    assert report.startswith("# Erased in closed form: cat")
    assert tuned.startswith("# Finetuned: cat")
    assert trained["ui"]["trace_window"] == [0.3, 1.0]
    assert len(trained["ui"]["trace_previews"]) == 3
    assert len(losses["loss"]) == 2
    assert set(lora) <= set(joined)
    sheet, pictures, _, figures = compared["result"]
    assert sheet.ndim == 4
    assert pictures.shape == (2, 64, 64, 3)
    assert "Judge by the pictures" in figures
    assert "naming an erased concept" in figures
    edited.unpatch_model()  # ComfyUI leaves the patches of the last model it ran on the weights
    after = model.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_guidance_zero_ignores_the_prompt(families, part):
    family, model = part("nodes.family"), families["sd1"].model()
    with pytest.raises(part("trace_core.errors").TraceError, match="cfg is 0"):
        family.sampler_config(model, {}, cfg=0.0)
    with pytest.raises(part("trace_core.errors").TraceError, match="height is 20"):
        family.picture_size(model, 0, 20)


def test_options_of_the_projection_and_the_form_of_a_file(families, pack, part, tmp_path, monkeypatch):
    """Exact keeping, words inside names, CLIP's side alone; a file in kohya's names is read again."""
    nodes, family = pack.NODE_CLASS_MAPPINGS, families["flux"]
    project = nodes["TRACE_ClosedFormProjection"]().erase
    seen, closed_form = [], importlib.import_module(f"{pack.__name__}.nodes.projection")
    plain = closed_form.Eraser
    monkeypatch.setattr(
        closed_form, "Eraser", lambda *a, **k: seen.append(k["closed_form"]) or plain(*a, **k)
    )
    found = project(
        family.model(),
        family.clip,
        "cat",
        "bird",
        "projection",
        1.0,
        exact=True,
        contrast=False,
        stream="pooled",
    )
    assert {k: seen[0][k] for k in ("exact", "contrast", "stream")} == {
        "exact": True,
        "contrast": False,
        "stream": "pooled",
    }
    host = importlib.import_module(f"{pack.__name__}.nodes.host")
    monkeypatch.setattr(host, "output_loras", lambda: tmp_path)
    monkeypatch.setattr(host, "numbered_path", lambda folder, pattern, ending: folder / f"{pattern}{ending}")
    save, erasure = nodes["TRACE_SaveErasureLora"](), part("trace_core.lora.erasure").ErasureLora
    saved = {}
    for form in ("comfyui", "kohya"):
        (name,) = save.save(found["result"][1], form, form=form)["result"]
        saved[form] = erasure.load(tmp_path / name)
    keys = list(importlib.import_module("safetensors.torch").load_file(tmp_path / "kohya.safetensors"))
    assert all(key.startswith("lora_unet_") for key in keys)
    assert saved["kohya"].modules.keys() == saved["comfyui"].modules.keys()
    for module in saved["comfyui"].modules:
        assert torch.equal(saved["kohya"].delta(module), saved["comfyui"].delta(module))
