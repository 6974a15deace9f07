"""Damaged and hostile erasure files are refused with a sentence."""

from __future__ import annotations

import json
import os
import pickle
import struct

import pytest
import torch
from safetensors.torch import save_file

from lora_cases import A, B, make, noise
from trace_core.errors import LoraError
from trace_core.lora.contents import contents
from trace_core.lora.erasure import ErasureLora


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
            LoraError, match=r"'cat\.safetensors' is damaged or not a safetensors file.*download it again"
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
    with pytest.raises(LoraError, match="not a safetensors file"):
        ErasureLora.load(path)
    torch.save({"weight": Bomb(marker)}, path)
    with pytest.raises(LoraError, match="not a safetensors file"):
        ErasureLora.load(path)
    assert not marker.exists()


def test_file_far_too_large(tmp_path):
    path = tmp_path / "big.safetensors"
    with path.open("wb") as f:
        f.truncate(5 << 30)  # sparse
    with pytest.raises(LoraError, match=r"'big\.safetensors' is 5\.0 GB, too large for an erasure LoRA"):
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
    "NaN": (changed(lora_up__weight=noise(8, 3) * float("nan")), "contains NaN or infinite values"),
    "infinity": (changed(lora_down__weight=noise(3, 6) / 0), "contains NaN or infinite values"),
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
    with pytest.raises(
        LoraError, match="is not a key of an erasure LoRA; use the stock LoRA loader"
    ) as caught:
        ErasureLora.from_state_dict({**make().state_dict(), key: torch.ones(1)})
    assert key[:80] in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", "a model"),
        ("double_blocks.0.img_attn.qkv.weight", "a model"),
        ("transformer_blocks.0.attn.to_q.weight", "a model"),
        ("decoder.conv_in.weight", "a VAE"),
        ("first_stage_model.decoder.up.0.block.0.conv1.weight", "a VAE"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "a text encoder"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "a text encoder"),
        ("model.layers.0.self_attn.q_proj.weight", "a text encoder"),
        ("control_model.input_blocks.0.0.weight", "a ControlNet"),
        ("emb_params", "a textual inversion"),
    ],
)
def test_another_kind_of_file_is_named(key, kind):
    with pytest.raises(LoraError, match=f"this file is {kind}, not a LoRA"):
        ErasureLora.from_state_dict({key: torch.ones(1)})
    for lora in (
        "lora_unet_down_blocks_0_attentions_0_to_q.lora_down.weight",
        "x.lora_A.weight",
        "a.lokr_w1",
    ):
        assert contents([key, lora]) == "a LoRA"


@pytest.mark.parametrize("value", ["text", 5, None, [1.0]])
def test_entry_that_is_no_tensor(value):
    """A wire can carry any dict."""
    with pytest.raises(LoraError, match=r"lora_up"):
        ErasureLora.from_state_dict({**make().state_dict(), f"{A}.lora_up.weight": value})


def test_file_without_tensors(tmp_path):
    save_file({}, tmp_path / "x.safetensors")
    with pytest.raises(LoraError, match="no .*LoRA|nothing|empty"):
        ErasureLora.load(tmp_path / "x.safetensors")
