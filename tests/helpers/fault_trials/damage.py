"""Damaged erasure files and training states: they are refused by name, or read as what they hold."""

from __future__ import annotations

import json
import struct
import tempfile
from functools import cache
from pathlib import Path

import torch
from hypothesis import strategies as st

from fault_trials import Fault, LostFile, UnclearError, attempt
from trace_core.evaluate.papers.journal import NAME as NAME_OF_JOURNAL
from trace_core.evaluate.papers.journal import Journal
from trace_core.finetune.resume import FORMAT, TrainingState
from trace_core.lora.erasure import ErasureLora
from trace_core.lora.parts import Part

A = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"
B = "diffusion_model.double_blocks.0.img_attn.qkv"
NAME = "cat.safetensors"
DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "U8", "BOOL", "C64", "NOPE", 3)
NUMBERS = st.one_of(st.sampled_from((-1, 0, 1, 1 << 31, 1 << 62, 1 << 64)), st.integers(-4, 200))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@cache
def whole(form: str, rank: int) -> bytes:
    """A file of two layers, or of one in kohya's names."""
    modules = {A: (8, 6), B: (24, 8)}
    metadata = {"trace.concepts": '[["cat", "dog", 1.0]]', "trace.window": "[0.2, 1.0]"}
    metadata |= {"trace.base": '{"kind": "sd1", "hash": "0"}'}
    factors = {m: (noise(out, rank), noise(rank, into, seed=1)) for m, (out, into) in modules.items()}
    lora = ErasureLora.from_factors({m: f for m, f in factors.items() if form == "comfyui" or m == A})
    lora.metadata |= metadata
    return lora.to_bytes(form=form)


@cache
def state() -> bytes:
    """A training state."""
    three = [[noise(4, 3, seed=i), noise(2, 3, seed=i)] for i in range(3)]
    run = json.dumps({"base": "0" * 16, "prompts": ["a cat"], "concepts": ["cat"]})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        history = [{"step": 0, "erase": 1.0}]
        TrainingState(*three, 2, (0.2, 1.0), history, run, {}, []).save(path)
        return path.read_bytes()


def split(data: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def cut(draw, data: bytes) -> bytes:
    return data[: draw(st.integers(0, len(data) - 1))]


def flipped(draw, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 8))):
        out[draw(st.integers(0, len(out) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(out)


def longer(draw, data: bytes) -> bytes:
    at = draw(st.integers(0, len(data)))
    return data[:at] + draw(st.binary(min_size=1, max_size=20)) + data[at:]


def header_length(draw, data: bytes) -> bytes:
    return struct.pack("<Q", draw(NUMBERS) % (1 << 64)) + data[8:]


def entry(draw, data: bytes) -> bytes:
    """One tensor with another type, shape or place; or another name; or missing."""
    header, body = split(data)
    key = draw(st.sampled_from([k for k in header if k != "__metadata__"]))
    what = draw(st.sampled_from(("dtype", "shape", "data_offsets", "name", "missing", "no object")))
    if what == "dtype":
        header[key]["dtype"] = draw(st.sampled_from(DTYPES))
    elif what in ("shape", "data_offsets"):
        header[key][what] = draw(st.lists(NUMBERS, max_size=4))
    elif what == "no object":
        header[key] = draw(st.sampled_from((None, 3, [], "x", {})))
    else:
        old = header.pop(key)
        if what == "name":
            header[draw(st.one_of(st.text(max_size=20), st.just(key.replace("up", "down"))))] = old
    return joined(header, body)


def values(draw, data: bytes) -> bytes:
    """NaN, infinite or huge values in the tensors."""
    header, body = split(data)
    out, at = bytearray(body), draw(st.integers(0, max(0, len(body) - 4))) // 4 * 4
    out[at : at + 4] = draw(
        st.sampled_from((b"\x00\x7e" * 2, b"\x00\x7c" * 2, b"\xff\x7b" * 2, b"\0\0\xc0\x7f"))
    )
    return joined(header, bytes(out))


def nothing_like_it(draw, data: bytes) -> bytes:
    return draw(st.binary(max_size=200))


BLIND = (cut, flipped, longer, header_length)  #: also of a file that is damaged already
DAMAGE = (*BLIND, entry, values, nothing_like_it)


def damaged_lora(draw) -> None:
    """It is refused by its name, or is finite and is read again from what it writes."""
    data = whole(draw(st.sampled_from(("comfyui", "kohya"))), draw(st.integers(1, 4)))
    data = draw(st.sampled_from(DAMAGE))(draw, data)
    if draw(st.booleans()) and data:
        data = draw(st.sampled_from(BLIND))(draw, data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        path.write_bytes(data)
        lora, _ = attempt(lambda: ErasureLora.load(path), NAME)
        if path.read_bytes() != data or len(list(path.parent.iterdir())) != 1:
            raise LostFile(f"reading changed the file: {data[:40]!r}")
    if lora:
        look(lora)


def look(lora: ErasureLora) -> None:
    """Everything that a loaded file can be asked for."""
    for up, down in lora.modules.values():
        if not (up.isfinite().all() and down.isfinite().all()):
            raise UnclearError("a file with NaN was read as an erasure")
    json.dumps(lora.info())
    for ask in (
        lambda: lora.window,
        lora.parts,
        lambda: strengths(lora),
        lambda: ErasureLora.join(lora, lora),
    ):
        attempt(ask)
    data, _ = attempt(lora.to_bytes)
    if data and ErasureLora.from_bytes(data).fingerprint != lora.fingerprint:
        raise UnclearError("a file that was read is written as another")


def strengths(lora: ErasureLora) -> ErasureLora:
    parts: list[Part] = lora.parts()
    names = [t for part in parts for t in part.targets]
    half = lora.with_strengths(dict.fromkeys(names, 0.5))
    return half.without(*names[:1]) if names else half


def damaged_state(draw) -> None:
    """A damaged training state is refused by its name, or can be checked against a run."""
    data = state()
    if draw(st.booleans()):
        header, body = split(data)
        rest = json.loads(header["__metadata__"]["trace.training"])
        key = draw(st.sampled_from([*rest, "new"]))
        rest[key] = draw(
            st.sampled_from((None, -1, 1e400, "x", [], {}, [1], {"a": 1}, "[]", "3", FORMAT, True))
        )
        header["__metadata__"]["trace.training"] = json.dumps(rest)
        data = joined(header, body)
    else:
        data = draw(st.sampled_from(DAMAGE))(draw, data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cat.state"
        path.write_bytes(data)
        found, _ = attempt(lambda: TrainingState.load(path), "cat.state")
        if path.read_bytes() != data:
            raise LostFile("reading changed the training state")
    if not found:
        return
    fits = all(isinstance(t, torch.Tensor) and t.isfinite().all() for t in (*found.adapter, *found.mean))
    if not fits or not 0 <= found.step:
        raise UnclearError(f"a damaged training state was read, with step {found.step}")
    attempt(lambda: found.check_concepts([type("Named", (), {"target": "cat"})]))


def damaged_journal(draw) -> None:
    """A damaged journal of a protocol is refused by its name and left as it is, or is gone on from."""
    settings, answers = {"model": "demo-sd", "seed": 0}, [{"concept": False, "rank": i} for i in range(3)]
    odd = st.sampled_from((None, -1, 1.5, "x", [], {}, [1], {"a": 1}, True))
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(folder, settings)
        journal.add("before", range(3), answers)
        journal.close()
        path = journal.path
        if draw(st.booleans()):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            line = draw(st.sampled_from(lines))
            line[draw(st.sampled_from([*line, "new"]))] = draw(odd)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        else:
            path.write_bytes(draw(st.sampled_from((*BLIND, nothing_like_it)))(draw, path.read_bytes()))
        data = path.read_bytes()
        found, error = attempt(lambda: Journal(folder, settings), NAME_OF_JOURNAL, folder)
        if error and path.read_bytes() != data:
            raise LostFile("a refused journal was changed")
    if not found:
        return
    found.close()
    for (side, at), answer in found.answers.items():
        if type(side) is not str or type(at) is not int or type(answer) is not dict:
            raise UnclearError(f"a damaged line was read: {side}, {at}, {answer}")


FAULTS = (
    Fault("damaged journals of a protocol", 60, damaged_journal),
    Fault("damaged LoRA files", 140, damaged_lora),
    Fault("damaged training states", 60, damaged_state),
)
