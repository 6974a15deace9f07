"""What the engine tests share: text encoders that fit the tiny models, on either engine."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from engine_cases import unload
from trace_core.closed_form import ClosedFormConfig, erase
from trace_core.demo import domain, loader
from trace_core.text.concepts import Concept


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Models this small are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Family:
    """A tiny model family: how to build its model, and the CLIP that belongs to it."""

    tiny: object
    kind: str
    clip: object
    options: dict

    def model(self, **changes):
        build = {"sd1": "tiny_sd", "sdxl": "tiny_sdxl"}.get(self.kind, "tiny_flux")
        return getattr(self.tiny, build)(**{**self.options, **changes})

    def conditioning(self, prompt: str) -> list:
        rows, pooled = self.clip.encode_from_tokens(self.clip.tokenize(prompt), return_pooled=True)
        return [[rows, {"pooled_output": pooled}]]

    def sample(self, model, prompt: str, **options) -> torch.Tensor:
        return self.tiny.sample(model, self.conditioning(prompt), self.conditioning(""), **options)


@pytest.fixture(scope="session")
def families(tiny, fake) -> dict[str, Family]:
    """SD1 and FLUX with ComfyUI's own CLIP objects around the demo models' tokenizers; SDXL with a
    stand-in.
    """
    from trace_core.demo import sizes, text_towers

    sd, flux = text_towers.sd_clip(), text_towers.flux_clip()
    for clip in (sd, flux):
        tiny.initialise(clip.cond_stage_model)
    wide = dict(context_dim=sizes.T5["d_model"], pooled_dim=sizes.CLIP_FLUX["hidden_size"])
    return {
        "sd1": Family(tiny, "sd1", sd, dict(context_dim=sizes.CLIP_SD["hidden_size"])),
        "sdxl": Family(
            tiny, "sdxl", fake.FakeClip(192, 24, ("l", "g"), pooled=64), dict(context_dim=192, pooled_dim=64)
        ),
        "flux": Family(tiny, "flux", flux, wide),
        "flux-schnell": Family(tiny, "flux-schnell", flux, {**wide, "guidance": False}),
    }


@pytest.fixture(scope="module")
def pack(engine):
    """The pack under a name of its own, as ComfyUI imports it."""
    root, name = Path(__file__).resolve().parents[2], "/somewhere/trace-engine-0_x_1"
    spec = importlib.util.spec_from_file_location(name, root / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    for found in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
        del sys.modules[found]


@pytest.fixture
def nothing_stays_loaded():
    """ComfyUI holds on to models that were sampled."""
    yield
    unload()


@pytest.fixture(scope="module")
def demo(engine):
    """demo-sd: model, CLIP and VAE."""
    return loader.load("demo-sd")


@pytest.fixture(scope="module")
def lora(demo):
    """The closed form of "cat" on demo-sd."""
    model, clip, _ = demo
    concepts = [Concept("cat")]
    config = ClosedFormConfig(contexts=domain.CONTEXTS)
    return erase(model, clip, concepts, domain.keep_list(concepts), config).lora
