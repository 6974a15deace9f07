"""The parts of a fused file: taken out, given a strength, refused."""

from __future__ import annotations

import json

import pytest
import torch

from fusion_sums import noise
from trace_core.errors import LoraError
from trace_core.lora import ErasureLora
from trace_core.lora.fusion import check_compatible, compress, parse_strengths

A, B, C = (f"diffusion_model.{m}" for m in "abc")
BASE = '{"kind": "sd1", "hash": "0123456789abcdef"}'


def made(
    seed: int, *targets: str, modules=(A, B), rank: int = 2, dtype=torch.float16, **metadata
) -> ErasureLora:
    factors = {m: (noise(seed + i, 5, rank), noise(seed + i + 50, rank, 4)) for i, m in enumerate(modules)}
    lora = ErasureLora.from_factors(factors, dtype)
    concepts = json.dumps([[t, "", 1.0] for t in targets])
    lora.metadata |= {
        "trace.concepts": concepts,
        "trace.base": BASE,
        "modelspec.title": "Erased: " + ", ".join(targets),
        **metadata,
    }
    return lora


def joined(*loras: ErasureLora) -> ErasureLora:
    out = loras[0]
    for lora in loras[1:]:
        out = ErasureLora.join(out, lora)
    return out


def same_tensors(a: ErasureLora, b: ErasureLora) -> bool:
    pairs = (
        [(x, y) for m in a.modules for x, y in zip(a.modules[m], b.modules[m])]
        if set(a.modules) == set(b.modules)
        else [(1, 2)]
    )
    return all(isinstance(x, torch.Tensor) and x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


def test_a_file_without_parts_is_one():
    lora = made(0, "cat", "kitty")
    (part,) = lora.parts()
    assert part.targets == ["cat", "kitty"] and part.strength == 1.0 and part.kind == "auto"
    assert part.slices == {A: slice(0, 2), B: slice(0, 2)}
    assert made(0, "x", **{"trace.parameters": '{"kind": "style"}'}).parts()[0].kind == "style"
    assert ErasureLora(lora.modules).parts()[0].concepts == ()


def test_joined_files_know_their_parts(tmp_path):
    one, two, three = (
        made(0, "cat"),
        made(1, "dog", modules=(B, C), rank=3),
        made(2, "sun", "moon", modules=(A,)),
    )
    lora = ErasureLora.load(joined(one, two, three).save(tmp_path / "x.safetensors"))
    parts = lora.parts()
    assert [p.targets for p in parts] == [["cat"], ["dog"], ["sun", "moon"]]
    assert [dict(p.slices) for p in parts] == [
        {A: slice(0, 2), B: slice(0, 2)},
        {B: slice(2, 5), C: slice(0, 3)},
        {A: slice(2, 4)},
    ]
    for part, source in zip(parts, (one, two, three)):
        for module, ranks in part.slices.items():
            assert torch.equal(lora.modules[module][0][:, ranks], source.modules[module][0])
            assert torch.equal(lora.modules[module][1][ranks], source.modules[module][1])
    assert lora.info()["trace.concepts"] == [
        ["cat", "", 1.0],
        ["dog", "", 1.0],
        ["sun", "", 1.0],
        ["moon", "", 1.0],
    ]
    assert lora.metadata["modelspec.title"] == "Erased: cat, dog, sun, moon"


def test_two_edits_of_the_same_concepts_are_one_part():
    """A closed form and the finetune that started from it."""
    lora = joined(made(0, "cat", "dog"), made(1, "Dog", "cat", rank=4))
    (part,) = lora.parts()
    assert "trace.parts" not in lora.metadata
    assert part.slices[A] == slice(0, 6)
    again = joined(lora, made(2, "sun"))
    assert [p.slices[A] for p in again.parts()] == [slice(0, 6), slice(6, 8)]


def test_nothing_is_written_where_nothing_is_known():
    assert (
        ErasureLora.join(ErasureLora(made(0, "a").modules), ErasureLora(made(1, "a").modules)).metadata == {}
    )


@pytest.mark.parametrize("target", ["dog", " DOG "])
def test_a_part_can_be_taken_out(target):
    one, two, three = made(0, "cat"), made(1, "dog", modules=(B, C)), made(2, "sun", "moon")
    lora = joined(one, two, three)
    left = lora.without(target)
    assert same_tensors(left, joined(one, three))
    assert left.metadata["modelspec.title"] == "Erased: cat, sun, moon"
    assert [p.targets for p in left.parts()] == [["cat"], ["sun", "moon"]]
    assert same_tensors(left.without("sun", "moon"), one)
    assert "trace.parts" not in left.without("moon", "sun").metadata
    assert len(lora.parts()) == 3, "the file itself is as it was"


def test_what_a_concept_says_beside_its_part_stays():
    one = made(0, "cat", **{"trace.concepts": '[["cat", "dog", 1.0, 0.5, ["more"]]]'})
    lora = joined(one, made(1, "sun"), made(2, "moon")).without("moon")
    assert lora.info()["trace.concepts"][0] == ["cat", "dog", 1.0, 0.5, ["more"]]


def test_what_cannot_be_taken_out():
    lora = joined(made(0, "cat"), made(1, "sun", "moon"))
    with pytest.raises(LoraError, match="'elk' is not erased by this file; it erases 'cat', 'sun', 'moon'"):
        lora.without("elk")
    with pytest.raises(
        LoraError, match="'sun' was erased together with 'moon', in one edit, and cannot be removed alone"
    ):
        lora.without("sun")
    with pytest.raises(LoraError, match="without 'cat', 'sun', 'moon' no concept is left"):
        lora.without("cat", "sun", "moon")
    with pytest.raises(LoraError, match="erases no named concept"):
        ErasureLora(made(0, "cat").modules).without("cat")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("strength", [0.0, 0.1, 1 / 3, 0.5, 2.0, -1.7, 1e-6])
def test_strength_can_be_undone_to_the_last_bit(tmp_path, dtype, strength):
    one, two = made(0, "cat", dtype=dtype), made(1, "dog", dtype=dtype)
    lora = joined(one, two)
    path = lora.with_strengths({"cat": strength}).save(tmp_path / "x.safetensors")
    graded = ErasureLora.load(path)
    assert [p.strength for p in graded.parts()] == [strength, 1.0]
    for module in lora.modules:
        wanted = strength * one.delta(module) + two.delta(module)
        assert torch.allclose(graded.delta(module), wanted, rtol=1e-5, atol=1e-6)
    further = graded.with_strengths({"dog": 0.3}).with_strengths({"cat": 0.7}).with_strengths({"dog": 1.0})
    assert [p.strength for p in further.parts()] == [0.7, 1.0]
    back = further.with_strengths({"cat": 1.0})
    assert same_tensors(back, lora) and back.metadata == {**lora.metadata, "format": "pt"}


def test_strength_zero_changes_no_weight():
    """Not 0 itself, so that it can be undone, but nothing that float32 could add."""
    one, two = made(0, "cat"), made(1, "dog")
    graded, alone = joined(one, two).with_strengths({"cat": 0}), two
    for module in (A, B):
        weight = noise(9, 5, 4).float()
        up, down = (f.float() for f in graded.modules[module])
        other = (alone.delta(module), alone.modules[module])
        assert (up[:, :2] @ down[:2]).abs().max() < 1e-28
        assert torch.equal(weight + up[:, :2] @ down[:2], weight)
        assert torch.allclose(graded.delta(module), other[0], rtol=1e-6, atol=1e-7)


def test_strengths_do_not_multiply():
    lora = joined(made(0, "cat"), made(1, "dog"))
    assert same_tensors(
        lora.with_strengths({"cat": 0.5}).with_strengths({"cat": 0.5}), lora.with_strengths({"cat": 0.5})
    )
    assert same_tensors(
        lora.with_strengths({"cat": 0.0}).with_strengths({"cat": 0.25}), lora.with_strengths({"cat": 0.25})
    )
    whole = made(0, "cat")
    assert [p.strength for p in whole.with_strengths({"cat": 0.5}).parts()] == [0.5]
    assert same_tensors(whole.with_strengths({"cat": 0.5}).with_strengths({"cat": 1}), whole)


@pytest.mark.parametrize(
    "wrong",
    [
        {"elk": 1.0},
        {"cat": float("nan")},
        {"cat": 11.0},
        {"cat": "1"},
        {"cat": True},
        {"sun": 0.5},
        {"sun": 0.5, "moon": 0.6},
    ],
)
def test_strengths_that_are_refused(wrong):
    lora = joined(made(0, "cat"), made(1, "sun", "moon"))
    with pytest.raises(LoraError):
        lora.with_strengths(wrong)
    assert [p.strength for p in lora.with_strengths({"sun": 0.5, "moon": 0.5}).parts()] == [1.0, 0.5]


GOOD = [
    {"concepts": [["cat", "", 1.0]], "strength": 1.0, "ranks": 2},
    {"concepts": [["dog", "", 1.0]], "strength": 1.0, "ranks": 2},
]
HOSTILE = {
    "no JSON": "{nope", "deep": "[" * 100_000, "a number": "5", "nothing": "[]", "null": "null",
    "numbers": "[1, 2]",
    "far too many": json.dumps(GOOD[:1] * 20_000),
    "no ranks": [{**GOOD[0], "ranks": None}, GOOD[1]],
    "negative ranks": [{**GOOD[0], "ranks": -2}, {**GOOD[1], "ranks": 6}],
    "too many ranks": [{**GOOD[0], "ranks": 3}, GOOD[1]],
    "too few ranks": [{**GOOD[0], "ranks": 1}, GOOD[1]],
    "ranks of other layers": [{**GOOD[0], "ranks": [2, 2, 2]}, GOOD[1]],
    "true ranks": [{**GOOD[0], "ranks": [True, 2]}, GOOD[1]],
    "ranks without end": [{**GOOD[0], "ranks": 10**400}, GOOD[1]],
    "text for ranks": [{**GOOD[0], "ranks": "2"}, GOOD[1]],
    "strength that is none": [{**GOOD[0], "strength": "much"}, GOOD[1]],
    "infinite strength": '[{"concepts": [["cat", "", 1.0]], "strength": Infinity, "ranks": 2}, {"concepts": '
                         '[], "ranks": 2}]',
    "strength without end": [{**GOOD[0], "strength": 1e300}, GOOD[1]],
    "concepts that are none": [{**GOOD[0], "concepts": "cat"}, GOOD[1]],
    "concept without a name": [{**GOOD[0], "concepts": [["", "", 1.0]]}, GOOD[1]],
    "concept of negative weight": [{**GOOD[0], "concepts": [["cat", "", -1.0]]}, GOOD[1]],
    "unknown kind": [{**GOOD[0], "kind": "__class__"}, GOOD[1]],
    "list for a kind": [{**GOOD[0], "kind": []}, GOOD[1]],
    "unknown precision": [{**GOOD[0], "dtype": "int8"}, GOOD[1]],
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_parts(tmp_path, name):
    """Nothing but a LoraError, a short one; and what does not need the parts still works."""
    lora = joined(made(0, "cat"), made(1, "dog"))
    text = HOSTILE[name] if isinstance(HOSTILE[name], str) else json.dumps(HOSTILE[name])
    lora.metadata["trace.parts"] = text
    assert ErasureLora(lora.modules, {**lora.metadata, "trace.parts": json.dumps(GOOD)}).parts()[1].slices[
        B
    ] == slice(2, 4)
    for use in (
        lora.parts,
        lambda: lora.without("cat"),
        lambda: lora.with_strengths({"cat": 0.5}),
        lambda: joined(lora, made(2, "sun")),
    ):
        with pytest.raises(LoraError) as caught:
            use()
        assert len(str(caught.value)) < 300


def test_what_cannot_be_fused_is_refused_by_name():
    good, names = made(0, "cat"), ["a.safetensors", "b.safetensors"]
    for other, message in (
        (ErasureLora(good.modules), "b.safetensors does not say what it erases"),
        (ErasureLora({}, good.metadata), "b.safetensors changes nothing; leave it out"),
        (
            made(1, "dog", **{"trace.window": "[0.2, 1]"}),
            r"b.safetensors is for the window \(0.2, 1.0\), but a.safetensors is for",
        ),
        (
            made(1, "dog", **{"trace.base": '{"kind": "sd1", "hash": "ffff"}'}),
            "b.safetensors was made on another base .ffff. than a.safe",
        ),
        (
            made(1, "dog", **{"trace.base": '{"kind": "flux", "hash": "ffff"}'}),
            "b.safetensors is for flux models, but a.safetensors is for sd1",
        ),
    ):
        with pytest.raises(LoraError, match=message):
            check_compatible([good, other], names)
    check_compatible([good, made(1, "dog", **{"trace.base": "garbage"})], names)


def test_strength_lines():
    assert parse_strengths("cat = 0.5\n# all\n\na = b=2 # more\nVan Gogh=-1") == {
        "cat": 0.5,
        "a = b": 2.0,
        "Van Gogh": -1.0,
    }
    for wrong in ("cat", "= 1", "cat = x", "cat = 11", "cat = nan", "cat = 1\nCat = 2"):
        with pytest.raises(LoraError, match=r"^list, line \d"):
            parse_strengths(wrong, "list")


def test_a_file_can_be_cut_alone():
    """Strengths are in it, its parts are one."""
    lora = joined(made(0, "cat"), made(1, "dog")).with_strengths({"cat": 0.5})
    cut, lost = compress(lora, 3)
    assert (
        cut.rank == 3
        and [p.targets for p in cut.parts()] == [["cat", "dog"]]
        and "trace.parts" not in cut.metadata
    )
    errors = [((cut.delta(m) - lora.delta(m)).norm() / lora.delta(m).norm()).item() for m in lora.modules]
    assert max(errors) == pytest.approx(lost["worst"], abs=2e-3)
    same_rank, nothing = compress(lora, 9)
    assert nothing["worst"] == 0.0 and same_rank.rank == 4
