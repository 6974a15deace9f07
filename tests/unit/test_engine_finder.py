"""Where ComfyUI is looked for, in which order, and what is said when there is none."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from trace_core import engine


@pytest.fixture
def places(tmp_path, monkeypatch) -> list[Path]:
    """The five places of the search order, all empty, on a machine of our own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    pack = tmp_path / "around" / "custom_nodes" / "pack"
    monkeypatch.setattr(engine, "PACK_ROOT", pack)
    monkeypatch.setattr(engine, "PACKAGED_ENGINE", pack / ".engine")
    home = tmp_path / "home"
    return [
        tmp_path / "named",
        tmp_path / "around",
        home / "ComfyUI",
        home / "comfy" / "ComfyUI",
        pack / ".engine",
    ]


def install(path: Path, version: str | None = None, full: bool = True) -> Path:
    """A folder that looks like a ComfyUI."""
    (path / "comfy").mkdir(parents=True)
    (path / "comfy" / "model_patcher.py").touch()
    if full:
        (path / "nodes.py").touch()
    if version:
        (path / "comfyui_version.py").write_text(f'# generated\n__version__ = "{version}"\n')
    return path


@pytest.mark.parametrize("first", range(5))
def test_search_order(places, monkeypatch, first):
    for place in places[first:]:
        install(place)
    if first == 0:
        monkeypatch.setenv("COMFYUI_PATH", str(places[0]))
    assert engine.find().path == places[first]


def test_nothing_found_names_every_place_and_the_remedy(places):
    with pytest.raises(engine.EngineNotFound) as error:
        engine.find()
    assert all(str(place) in str(error.value) for place in places[1:])
    assert "COMFYUI_PATH" in str(error.value)
    assert "make setup" in str(error.value)


def test_wrong_variable_does_not_fall_through(places, monkeypatch):
    install(places[2])
    monkeypatch.setenv("COMFYUI_PATH", str(places[0]))
    with pytest.raises(engine.EngineNotFound, match="COMFYUI_PATH"):
        engine.find()


@pytest.mark.parametrize("value", ["here", "~/here"])
def test_variable_becomes_an_absolute_path(places, tmp_path, monkeypatch, value):
    home = tmp_path / "home"
    install(home / "here")
    monkeypatch.chdir(home)
    monkeypatch.setenv("COMFYUI_PATH", value)
    assert engine.find().path == home / "here"


def test_checkout_and_packaged_copy_are_told_apart(places):
    install(places[4], full=False)
    packaged = engine.find()
    assert (packaged.version, packaged.full) == ("2024-11 (packaged copy)", False)
    install(places[2], version="1.2.3")
    checkout = engine.find()
    assert (checkout.version, checkout.full) == ("1.2.3", True)


def test_running_comfyui_is_taken_as_it_is(places, monkeypatch):
    running = types.ModuleType("comfy.model_management")
    running.__file__ = str(install(places[1], version="9.9.9") / "comfy" / "model_management.py")
    install(places[2])
    path = list(sys.path)
    monkeypatch.setitem(sys.modules, "comfy.model_management", running)
    monkeypatch.setattr(engine, "_loaded", None)
    assert engine.load() == engine.Engine(places[1], "9.9.9", True)
    assert sys.path == path
