"""The file: what is written is what is read, and what is damaged or hostile is refused by name."""

from __future__ import annotations

import json
import os
import pickle
import stat
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trace_core import __version__
from trace_core.closed_form import ContextEdit
from trace_core.errors import LoraError
from trace_core.lora.erasure import ErasureLora
from trace_core.lora.metadata import FORMAT, base_metadata
from trace_core.text.concepts import Concept

A, B = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k", "diffusion_model.txt_in"


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(rank: int = 3, metadata: dict | None = None) -> ErasureLora:
    lora = ErasureLora.from_factors(
        {A: (noise(8, rank), noise(rank, 6, seed=1)), B: (noise(4, rank, seed=2), noise(rank, 5, seed=3))}
    )
    lora.metadata.update(metadata or {})
    return lora


@pytest.fixture
def file(tmp_path):
    return make().save(tmp_path / "cat.safetensors")


# --------------------------------------------------------------------------------------------- round trip


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


# --------------------------------------------------------------------------------------------- writing


def listing(folder) -> list[str]:
    return sorted(p.name for p in folder.rglob("*"))


def test_missing_folders_are_made(tmp_path):
    assert make().save(tmp_path / "a" / "b" / "x.safetensors").is_file()


def test_saving_again_replaces_the_file(tmp_path):
    path = make(rank=2).save(tmp_path / "x.safetensors")
    make(rank=4).save(path)
    assert ErasureLora.load(path).rank == 4
    assert listing(tmp_path) == ["x.safetensors"]


def test_file_can_be_read_by_others(file):
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_folder_in_place_of_the_file(tmp_path):
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(LoraError, match=r"cannot write '.*x\.safetensors'.*choose a folder"):
        make().save(tmp_path / "x.safetensors")
    assert listing(tmp_path) == ["x.safetensors"]


def test_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(LoraError, match=r"cannot write .*choose a folder"):
        make().save(tmp_path / "folder" / "x.safetensors")
    assert listing(tmp_path) == ["folder"]


def test_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """As the operating system says it; root may write everywhere, so permissions alone do not show it."""
    import tempfile

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(
        LoraError, match="cannot write .*Permission denied; choose a folder that you may write to"
    ):
        make().save(tmp_path / "x.safetensors")
    assert listing(tmp_path) == []


@pytest.mark.parametrize("step", ["fdopen", "chmod", "replace"])
def test_failure_on_the_way_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = make(rank=2).save(tmp_path / "x.safetensors")
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(LoraError, match="No space left on device"):
        make(rank=4).save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert listing(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_saving_leaves_nothing(tmp_path, monkeypatch, error):
    def stop(*_):
        raise error

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(error):
        make().save(tmp_path / "x.safetensors")
    monkeypatch.undo()
    assert listing(tmp_path) == []


@pytest.mark.parametrize("name", ["x", "x.pt", "x.safetensors.txt", "x.ckpt"])
def test_other_endings_are_refused(tmp_path, name):
    with pytest.raises(LoraError, match="must end in .safetensors"):
        make().save(tmp_path / name)
    assert listing(tmp_path) == []


def test_nothing_to_save(tmp_path):
    with pytest.raises(LoraError, match="nothing to save"):
        ErasureLora({}).save(tmp_path / "x.safetensors")
    assert listing(tmp_path) == []


@pytest.mark.parametrize("value", [7e4, float("nan"), float("inf")])
def test_factor_beyond_float16_is_refused_by_name(value):
    with pytest.raises(LoraError, match=f"edit of {B} is too large for torch.float16"):
        ErasureLora.from_factors({B: (torch.full((2, 1), value), torch.ones(1, 2))})


# --------------------------------------------------------------------------------------------- damaged and
# hostile


def test_missing_file(tmp_path):
    with pytest.raises(LoraError, match=r"cannot read '.*gone\.safetensors': No such file"):
        ErasureLora.load(tmp_path / "gone.safetensors")


def test_folder_instead_of_a_file(tmp_path):
    with pytest.raises(LoraError, match="cannot read|damaged"):
        ErasureLora.load(tmp_path)


def test_truncated_file(file):
    """At every length: nothing but a LoraError may come out."""
    data = file.read_bytes()
    for length in {0, 1, 7, 8, 9, len(data) // 2, len(data) - 1}:
        file.write_bytes(data[:length])
        with pytest.raises(
            LoraError, match=r"'cat\.safetensors' is damaged or no safetensors file.*download it again"
        ):
            ErasureLora.load(file)


def header(content, length: int | None = None, data: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, end: int, shape=(1,), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


HOSTILE = {
    "header of 2^63 bytes": header(b"{}", 1 << 63),
    "header of 90 MB": header(b"{}", 90_000_000),
    "bad JSON": header(b"{nope"),
    "no JSON object": header(b"[1, 2]"),
    "not UTF-8": header(b'{"\xff\xfe": 1}'),
    "deep JSON": header(b'{"a":' * 50_000),
    "offsets beyond the end": header({f"{A}.alpha": entry(0, 1 << 40, (1 << 38,))}, data=b"\0" * 8),
    "overlapping tensors": header({f"{A}.alpha": entry(0, 4), f"{B}.alpha": entry(0, 4)}, data=b"\0" * 4),
    "negative offsets": header({f"{A}.alpha": entry(-4, 0)}, data=b"\0" * 4),
    "shape and size differ": header({f"{A}.alpha": entry(0, 4, (9, 9))}, data=b"\0" * 4),
    "shape that overflows": header({f"{A}.alpha": entry(0, 4, (1 << 62, 1 << 62))}, data=b"\0" * 4),
    "unknown dtype": header({f"{A}.alpha": entry(0, 4, dtype="NOPE")}, data=b"\0" * 4),
    "no tensor entry": header({f"{A}.alpha": 5}),
    "metadata that is no text": header({"__metadata__": {"a": 1}, f"{A}.alpha": entry(0, 4)}, data=b"\0" * 4),
    "zeros": b"\0" * 4096,
    "a PNG": b"\x89PNG\r\n\x1a\n" + b"\0" * 64,
    "a zip": b"PK\x03\x04" + b"\0" * 64,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file(tmp_path, name):
    path = tmp_path / "evil.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(LoraError) as caught:
        ErasureLora.load(path)
    assert "evil.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 500


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickle_is_never_executed(tmp_path, protocol):
    path, marker = tmp_path / "x.safetensors", tmp_path / "executed"
    path.write_bytes(pickle.dumps({"weight": Bomb(marker)}, protocol))
    with pytest.raises(LoraError, match="no safetensors file"):
        ErasureLora.load(path)
    torch.save({"weight": Bomb(marker)}, path)
    with pytest.raises(LoraError, match="no safetensors file"):
        ErasureLora.load(path)
    assert not marker.exists()


def test_file_far_too_large(tmp_path):
    path = tmp_path / "big.safetensors"
    with path.open("wb") as f:
        f.truncate(5 << 30)  # sparse
    with pytest.raises(LoraError, match=r"'big\.safetensors' is 5\.0 GB; that is no erasure LoRA"):
        ErasureLora.load(path)


def changed(**changes) -> dict:
    """A good state dict with some entries replaced, or removed (None); keys are parts of module A."""
    state = make().state_dict()
    for part, value in changes.items():
        key = f"{A}.{part.replace('__', '.')}"
        state.pop(key)
        if value is not None:
            state[key] = value
    return state


BROKEN = {
    "no up": (changed(lora_up__weight=None), "has no lora_up; the file is incomplete"),
    "no down": (changed(lora_down__weight=None), "has no lora_down; the file is incomplete"),
    "only alpha": (changed(lora_up__weight=None, lora_down__weight=None), "has no lora_up"),
    "ranks differ": (changed(lora_up__weight=noise(8, 2)), r"shapes \(8, 2\) and \(3, 6\), which do not fit"),
    "convolution": (changed(lora_up__weight=noise(8, 3, 1, 1)), "which do not fit"),
    "vector": (changed(lora_down__weight=noise(3)), "which do not fit"),
    "rank 0": (changed(lora_up__weight=noise(8, 0), lora_down__weight=noise(0, 6)), "which do not fit"),
    "integers": (changed(lora_up__weight=torch.ones(8, 3, dtype=torch.int32)), "must be floating point"),
    "NaN": (changed(lora_up__weight=noise(8, 3) * float("nan")), "holds NaN or infinite values"),
    "infinity": (changed(lora_down__weight=noise(3, 6) / 0), "holds NaN or infinite values"),
    "NaN alpha": (changed(alpha=torch.tensor(float("nan"))), "NaN|alpha"),
    "infinite alpha": (changed(alpha=torch.tensor(float("inf"))), "NaN|infinite|alpha"),
    "alpha that overflows": (changed(alpha=torch.tensor(1e30)), "NaN|infinite|alpha"),
    "alpha of two numbers": (changed(alpha=torch.ones(2)), "alpha"),
    "empty alpha": (changed(alpha=torch.ones(0)), "alpha"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("through_file", [False, True])
def test_broken_tensors_are_refused_naming_the_module(tmp_path, name, through_file):
    state, says = BROKEN[name]
    with pytest.raises(LoraError, match=says) as caught:
        if through_file:
            save_file(state, tmp_path / "x.safetensors")
            ErasureLora.load(tmp_path / "x.safetensors")
        else:
            ErasureLora.from_state_dict(state)
    assert A in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_down_blocks_0.lora_up.weight",
        "model.weight",
        "diffusion_model.x.diff",
        "diffusion_model..lora_up.weightx",
        "text_encoders.clip_l.x.lora_up.weight",
        "diffusion_model.x;rm -rf.lora_up.weight",
        "k" * 5000,
    ],
)
def test_unknown_key_is_named(key):
    with pytest.raises(LoraError, match="is no key of an erasure LoRA; use the stock LoRA loader") as caught:
        ErasureLora.from_state_dict({**make().state_dict(), key: torch.ones(1)})
    assert key[:80] in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", ["text", 5, None, [1.0]])
def test_entry_that_is_no_tensor(value):
    """A wire can carry any dict."""
    with pytest.raises(LoraError, match=r"lora_up"):
        ErasureLora.from_state_dict({**make().state_dict(), f"{A}.lora_up.weight": value})


def test_file_without_tensors(tmp_path):
    save_file({}, tmp_path / "x.safetensors")
    with pytest.raises(LoraError, match="no .*LoRA|nothing|empty"):
        ErasureLora.load(tmp_path / "x.safetensors")


# ------------------------------------------------------------------------------------------- two as one


def made(seed: int, modules: dict, **metadata) -> ErasureLora:
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=draw)  # noqa: E731
    lora = ErasureLora.from_factors({m: (normal(o, r), normal(r, i)) for m, (o, r, i) in modules.items()})
    lora.metadata.update(metadata)
    return lora


LEFT, BOTH, RIGHT = ("diffusion_model.a", "diffusion_model.b", "diffusion_model.c")


def test_joined_erasures_add_up():
    first, second = made(0, {BOTH: (5, 2, 4), LEFT: (3, 1, 4)}), made(1, {BOTH: (5, 3, 4), RIGHT: (6, 2, 4)})
    joined = ErasureLora.join(first, second)
    assert set(joined.modules) == {BOTH, LEFT, RIGHT} and joined.rank == 5
    assert torch.allclose(joined.delta(BOTH), first.delta(BOTH) + second.delta(BOTH), rtol=0, atol=1e-6)
    assert torch.equal(joined.delta(LEFT), first.delta(LEFT)) and torch.equal(
        joined.delta(RIGHT), second.delta(RIGHT)
    )
    assert all(f.dtype == torch.float16 for pair in joined.modules.values() for f in pair)
    assert first.rank == 2 and set(first.modules) == {BOTH, LEFT}


def test_joined_metadata_name_both():
    base = '{"kind": "sd1", "hash": "0123456789abcdef"}'
    first = made(
        0,
        {BOTH: (5, 2, 4)},
        **{
            "trace.base": base,
            "trace.concepts": '[["cat", "", 1.0], ["dog", "wolf", 1.0]]',
            "trace.keep": '["car"]',
            "trace.method": '"trace"',
            "modelspec.title": "Erased: cat, dog",
            "own": "1",
        },
    )
    second = made(
        1,
        {BOTH: (5, 2, 4)},
        **{
            "trace.base": base,
            "trace.concepts": '[["cat", "", 1.0], ["çat", "", 2.0]]',
            "trace.keep": '["car", "sea"]',
            "trace.method": '"esd"',
            "modelspec.title": "Erased: cat",
            "other": "2",
        },
    )
    info = ErasureLora.join(first, second).info()
    assert info["trace.concepts"] == [["cat", "", 1.0], ["dog", "wolf", 1.0], ["çat", "", 2.0]]
    assert info["trace.keep"] == ["car", "sea"] and info["trace.method"] == "trace"
    assert info["modelspec.title"] == "Erased: cat, dog, çat"
    assert (info["own"], info["other"]) == ("1", "2")
    assert ErasureLora.join(made(0, {BOTH: (5, 2, 4)}), made(1, {BOTH: (5, 2, 4)})).metadata == {}


def test_what_cannot_be_joined_is_refused():
    other = {"trace.base": '{"kind": "sd1", "hash": "ffff"}'}
    one = {"trace.base": '{"kind": "sd1"}'}
    with pytest.raises(LoraError, match="of different bases"):
        ErasureLora.join(made(0, {BOTH: (5, 2, 4)}, **one), made(1, {BOTH: (5, 2, 4)}, **other))
    with pytest.raises(LoraError, match="5 x 4 in one erasure and 5 x 8 in the other"):
        ErasureLora.join(made(0, {BOTH: (5, 2, 4)}), made(1, {BOTH: (5, 2, 8)}))
    with pytest.raises(LoraError, match=r"windows \(0.0, 1.0\) and \(0.3, 1.0\); apply them one by one"):
        ErasureLora.join(
            made(0, {BOTH: (5, 2, 4)}), made(1, {BOTH: (5, 2, 4)}, **{"trace.window": "[0.3, 1]"})
        )


def test_a_fingerprint_is_of_the_tensors_alone(tmp_path):
    lora = made(0, {BOTH: (5, 2, 4), LEFT: (3, 1, 4)}, note="x")
    assert len(lora.fingerprint) == 16 and int(lora.fingerprint, 16) >= 0
    loaded = ErasureLora.load(lora.save(tmp_path / "x.safetensors"))
    turned = ErasureLora(dict(reversed(lora.modules.items())))
    assert loaded.fingerprint == turned.fingerprint == lora.fingerprint
    changed = ErasureLora({m: (up.clone(), down.clone()) for m, (up, down) in lora.modules.items()})
    changed.modules[LEFT][1][0, 0] += 1
    renamed = ErasureLora({BOTH: lora.modules[BOTH], RIGHT: lora.modules[LEFT]})
    wider = ErasureLora({m: (up.float(), down.float()) for m, (up, down) in lora.modules.items()})
    prints = {lora.fingerprint, changed.fingerprint, renamed.fingerprint, wider.fingerprint}
    assert len(prints) == 4
