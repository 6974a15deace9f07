"""Writing the erasure file: folders, failures on the way, values that do not fit."""

from __future__ import annotations

import os
import stat

import pytest
import torch

from lora_cases import B, make
from trace_core.errors import LoraError
from trace_core.lora.erasure import ErasureLora


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
        LoraError, match="cannot write .*Permission denied; choose a folder with write permission"
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
