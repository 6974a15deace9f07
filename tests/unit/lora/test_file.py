"""The erasure file: what is written is what is read, with its metadata."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_cases import A, B, make, noise
from trace_core import __version__
from trace_core.closed_form import ContextEdit
from trace_core.lora.erasure import ErasureLora
from trace_core.lora.metadata import FORMAT, base_metadata
from trace_core.text.concepts import Concept


def test_round_trip_is_exact(tmp_path):
    lora = make(metadata={"trace.concepts": '[["猫 🐈", "", 1.0]]'})
    back = ErasureLora.load(lora.save(tmp_path / "x.safetensors"))
    assert list(back.modules) and set(back.modules) == {A, B}
    for module, (up, down) in lora.modules.items():
        assert torch.equal(back.modules[module][0], up) and torch.equal(back.modules[module][1], down)
        assert torch.equal(back.delta(module), lora.delta(module))
    assert back.metadata["trace.concepts"] == lora.metadata["trace.concepts"]
    assert back.rank == lora.rank == 3


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_file_gives_the_edit_to_float16_rounding(tmp_path, scale):
    """U and V of very different size: balancing keeps each factor inside float16."""
    weight = noise(40, 32).double() / 6
    edit = ContextEdit(scale * noise(32, 5, seed=1).double(), noise(32, 5, seed=2).double() / scale)
    dense = weight @ edit.U @ edit.V.T
    lora = ErasureLora.from_factors({A: edit.factors(weight.float())})
    back = ErasureLora.load(lora.save(tmp_path / "x.safetensors"))
    assert back.modules[A][0].dtype == torch.float16
    assert (back.delta(A).double() - dense).norm() <= 2**-10 * dense.norm()


def test_file_is_a_plain_lora(file):
    """Keys, ranks and alpha as the stock loader reads them; alpha / rank = 1."""
    state = load_file(file)
    assert set(state) == {
        f"{m}.{part}" for m in (A, B) for part in ("lora_up.weight", "lora_down.weight", "alpha")
    }
    assert state[f"{A}.lora_up.weight"].shape == (8, 3) and state[f"{A}.lora_down.weight"].shape == (3, 6)
    assert state[f"{A}.alpha"].item() == 3.0


def test_state_dict_round_trip():
    """The dict that travels on a LORA_MODEL wire, without a file."""
    lora = make()
    back = ErasureLora.from_state_dict(lora.state_dict())
    assert all(torch.equal(back.delta(m), lora.delta(m)) for m in lora.modules)
    assert back.metadata == {}


def test_same_content_gives_the_same_bytes(tmp_path):
    one, two = (make(metadata={"b": "1", "a": "2"}).save(tmp_path / f"{i}.safetensors") for i in (1, 2))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("alpha", [1.0, 6.0, 0.0, -3.0])
def test_alpha_that_is_not_the_rank_is_folded_in(alpha):
    state = make().state_dict()
    state[f"{A}.alpha"] = torch.tensor(alpha)
    lora = ErasureLora.from_state_dict(state)
    assert torch.allclose(lora.delta(A), make().delta(A) * alpha / 3, rtol=2e-3, atol=1e-4)
    assert torch.equal(lora.delta(B), make().delta(B))
    assert lora.state_dict()[f"{A}.alpha"].item() == 3.0


def test_without_alpha_the_scale_is_one():
    state = make().state_dict()
    del state[f"{A}.alpha"]
    assert torch.equal(ErasureLora.from_state_dict(state).delta(A), make().delta(A))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_precisions_are_read(tmp_path, dtype):
    state = {k: v.to(dtype) for k, v in make().state_dict().items()}
    save_file(state, tmp_path / "x.safetensors")
    back = ErasureLora.load(tmp_path / "x.safetensors")
    assert back.modules[A][0].dtype == dtype
    assert torch.allclose(back.delta(A), make().delta(A), rtol=0.05, atol=0.05)


# --------------------------------------------------------------------------------------------- metadata


class Base:
    kind = "sdxl"

    def model_hash(self):
        return "0123456789abcdef"


def test_metadata_says_what_how_and_from_which_base(tmp_path):
    concepts = [Concept("cat", "dog"), Concept("Ван Гог", "", 2.0)]
    lora = make(metadata=base_metadata(Base(), concepts, ["bird"], "trace", {"energy": 0.9}, 7))
    path = lora.save(tmp_path / "x.safetensors", {"trace.scores": json.dumps({"acc_e": 0.1})})
    with safe_open(path, "pt") as f:
        raw = f.metadata()
    assert all(isinstance(v, str) for v in raw.values())
    assert raw["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert raw["ss_base_model_version"] == "sdxl_base_v1-0"
    assert raw["ss_network_module"] == "networks.lora"
    assert "cat" in raw["modelspec.title"] and "Ван Гог" in raw["modelspec.title"]
    info = ErasureLora.load(path).info()
    assert info["trace.format"] == FORMAT and info["trace.version"] == __version__
    assert info["trace.concepts"] == [["cat", "dog", 1.0], ["Ван Гог", "", 2.0]]
    assert info["trace.keep"] == ["bird"]
    assert info["trace.method"] == "trace" and info["trace.parameters"] == {"energy": 0.9}
    assert info["trace.base"] == {"kind": "sdxl", "hash": "0123456789abcdef"}
    assert info["trace.seed"] == 7 and info["trace.window"] == [0.0, 1.0]
    assert info["trace.scores"] == {"acc_e": 0.1}
    assert info["modules"] == 2 and info["rank"] == 3


def test_metadata_holds_no_path(tmp_path):
    """A file that is shared tells nothing about the machine it was made on."""
    path = make(metadata=base_metadata(Base(), [Concept("cat")], [], "trace", {}, 0)).save(
        tmp_path / "x.safetensors"
    )
    with safe_open(path, "pt") as f:
        assert not any(str(tmp_path) in v or os.path.expanduser("~") in v for v in f.metadata().values())


def test_long_lists_are_cut_in_the_title_only():
    metadata = base_metadata(Base(), [Concept(f"concept {i}") for i in range(1000)], [], "uce", {}, 0)
    assert len(metadata["modelspec.title"]) < 200
    assert len(json.loads(metadata["trace.concepts"])) == 1000


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "flux", "flux-schnell"])
def test_every_architecture_has_its_keys(kind):
    base = Base()
    base.kind = kind
    metadata = base_metadata(base, [Concept("cat")], [], "trace", {}, 0)
    assert metadata["modelspec.architecture"].endswith("/lora")


@pytest.mark.parametrize("value", ["{not json", "", "nan", "\x00"])
def test_metadata_that_is_no_json_is_shown_as_it_is(value):
    info = ErasureLora(make().modules, {"trace.concepts": value}).info()
    assert info["rank"] == 3 and "trace.concepts" in info


@pytest.mark.parametrize(
    "value", ["NaN", "[0.2, Infinity]", '{"eta": -Infinity}', "[1e999]", "[" * 200_000], ids=lambda v: v[:12]
)
def test_numbers_that_no_browser_reads_stay_text(value):
    info = ErasureLora(make().modules, {"trace.parameters": value, "trace.window": "[0.2, 1.0]"}).info()
    assert info["trace.parameters"] == value and info["trace.window"] == [0.2, 1.0]
    json.dumps(info, allow_nan=False)
