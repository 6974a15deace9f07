"""One ComfyUI server for the whole tier."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from server_prompts import base, erased, node

HERE = Path(__file__).resolve().parent
MODULES = ("requests", "pathspec", "av")


def load(name: str):
    """A module of this folder, which is not on the path."""
    spec = importlib.util.spec_from_file_location(f"server_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def harness():
    return load("harness")


@pytest.fixture(scope="session")
def maker():
    """The module ``make_workflows.py``."""
    return load("make_workflows")


@pytest.fixture(scope="session")
def start(harness):
    """``start(base, **options)``: a server of ComfyUI with the published files of the pack, in a base folder
    of its own; a context manager.
    """
    from trace_core import engine

    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"ComfyUI's server needs {', '.join(missing)}; `make test` installs them")

    def made(base: Path, **options):
        try:
            return harness.Server(engine.find().path, base, **options)
        except harness.FrontendMissing as error:
            pytest.skip(str(error))

    return made


@pytest.fixture(scope="session")
def server(start, tmp_path_factory):
    """The server that all tests share."""
    with start(tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@pytest.fixture(scope="session")
def info(server) -> dict:
    return server.object_info()


@pytest.fixture(scope="session")
def workflow(harness, info):
    """``workflow(name)``: a template as an API prompt."""

    def load_workflow(name: str) -> dict:
        return harness.to_api(json.loads((harness.ROOT / "workflows" / f"{name}.json").read_text()), info)

    return load_workflow


@pytest.fixture(scope="session")
def stock(info, harness):
    """``stock(kind, **inputs)``: a node of ComfyUI itself; inputs that this version added have their
    defaults.
    """

    def made(kind: str, **inputs) -> dict:
        required = {
            name: spec for name, spec in info[kind]["input"]["required"].items() if name not in inputs
        }
        widgets = {n: s for n, s in required.items() if harness.is_widget(s[0], s[1] if len(s) > 1 else {})}
        return node(kind, **{name: spec[1]["default"] for name, spec in widgets.items()}, **inputs)

    return made


@pytest.fixture(scope="session")
def draw(server):
    """``draw(prompt, "image")``: the pixels that a node saved, int16."""

    def run(prompt: dict, *names: str) -> list[np.ndarray]:
        outputs = server.run(prompt)
        return [np.asarray(server.picture(outputs[n]["images"][0]), dtype=np.int16) for n in names]

    return run


@pytest.fixture(scope="session")
def saved(server) -> str:
    """An erasure in a file, by its name in the loaders' list."""
    prompt = base() | {
        "erase": erased(),
        "save": node("TRACE_SaveErasureLora", lora=("erase", 1), name="t/%concepts%", license="CC0-1.0"),
    }
    return server.run(prompt)["save"]["text"][0]
