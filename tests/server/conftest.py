"""One ComfyUI server for the whole tier."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

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
def server(harness, tmp_path_factory):
    """ComfyUI with the published files of the pack, in a base folder of its own."""
    from trace_core import engine

    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"ComfyUI's server needs {', '.join(missing)}; `make test` installs them")
    try:
        running = harness.Server(engine.find().path, tmp_path_factory.mktemp("comfyui"))
    except harness.FrontendMissing as error:
        pytest.skip(str(error))
    with running:
        yield running


@pytest.fixture(scope="session")
def info(server) -> dict:
    return server.object_info()


@pytest.fixture
def workflow(harness, info):
    """``workflow(name)``: a template as an API prompt."""

    def load_workflow(name: str) -> dict:
        return harness.to_api(json.loads((harness.ROOT / "workflows" / f"{name}.json").read_text()), info)

    return load_workflow
