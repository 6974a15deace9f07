"""The engine imports, and the tiny models that the other tests use build and sample on it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
MODELS = {
    "sd": lambda tiny, seed: tiny.tiny_sd(seed=seed),
    "sdxl": lambda tiny, seed: tiny.tiny_sdxl(seed=seed),
    "flux": lambda tiny, seed: tiny.tiny_flux(seed=seed),
    "flux-schnell": lambda tiny, seed: tiny.tiny_flux(guidance=False, seed=seed),
}


def test_engine_is_the_one_that_was_found(engine):
    from trace_core import engine as finder

    assert engine == finder.find()
    assert Path(sys.modules["comfy.model_management"].__file__).is_relative_to(engine.path)
    assert finder.load() is engine
    assert sys.path.count(str(engine.path)) == 1


def test_engine_runs_on_the_cpu(engine):
    import comfy.model_management

    assert comfy.model_management.get_torch_device().type == "cpu"


def test_pack_root_is_not_importable(engine):
    assert str(ROOT) not in {str(Path(entry or ".").resolve()) for entry in sys.path}


def test_transformers_and_peft_work_beside_the_engine(tiny):
    """A stand-in for torchvision must not break what they import lazily."""
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import CLIPTextModel, T5EncoderModel

    unet = tiny.tiny_sd().model.diffusion_model
    inject_adapter_in_model(LoraConfig(r=2, target_modules=r".*attn2\.to_[kv]"), unet)
    assert sum(".lora_A." in name for name, _ in unet.named_parameters()) == 14
    assert CLIPTextModel and T5EncoderModel


@pytest.mark.parametrize("kind", MODELS)
def test_tiny_model_samples_two_steps(tiny, kind):
    model = MODELS[kind](tiny, 0)
    positive, negative = (tiny.random_conditioning(model, seed=seed) for seed in (1, 2))
    first, again = (tiny.sample(model, positive, negative) for _ in range(2))
    assert first.shape == (1, 4 if kind.startswith("sd") else 16, 8, 8)
    assert first.isfinite().all()
    assert torch.equal(first, again)
    assert not torch.equal(first, tiny.sample(model, negative, positive))
    assert not torch.equal(first, tiny.sample(MODELS[kind](tiny, 1), positive, negative))


def test_checkpoint_is_detected_as_sd15(tiny):
    import comfy.model_detection
    import comfy.supported_models

    state = tiny.sd15_checkpoint_state_dict(clip=False, vae=False)
    config = comfy.model_detection.model_config_from_unet(state, "model.diffusion_model.")
    assert type(config) is comfy.supported_models.SD15


@pytest.mark.full_engine
def test_checkpoint_loads_whole(tiny):
    import comfy.sd

    state = tiny.sd15_checkpoint_state_dict()
    model, clip, vae, _ = comfy.sd.load_state_dict_guess_config(state)
    rows = clip.encode_from_tokens(clip.tokenize("a cat"))
    latent = tiny.sample(model, [[rows, {}]], [[torch.zeros_like(rows), {}]])
    assert rows.shape == (1, 77, 768)
    assert vae.decode(latent).shape == (1, 64, 64, 3)


@pytest.mark.full_engine
@pytest.mark.parametrize(
    ("clip", "rows", "pooled"),
    [("tiny_clip_sd1", (1, 77, 32), (1, 32)), ("tiny_clip_flux", (1, 256, 32), (1, 24))],
)
def test_tiny_clip_encodes(tiny, clip, rows, pooled):
    encoder = getattr(tiny, clip)()
    encoded = encoder.encode_from_tokens(encoder.tokenize("a photo of a cat"), return_dict=True)
    assert encoded["cond"].shape == rows
    assert encoded["pooled_output"].shape == pooled
    assert encoded["cond"].isfinite().all()
