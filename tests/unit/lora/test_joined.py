"""Two erasures in one file."""

from __future__ import annotations

import pytest
import torch

from trace_core.errors import LoraError
from trace_core.lora.erasure import ErasureLora


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
    with pytest.raises(LoraError, match="different bases"):
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
