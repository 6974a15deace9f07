"""ComfyUI's server of the server tier, and one Chromium that its page is tried in."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODULES = ("requests", "pathspec", "av", "comfyui_frontend_package")


def _chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, names)), None)


def _harness():
    spec = importlib.util.spec_from_file_location("browser_harness", HERE.parent / "server" / "harness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tools() -> tuple[str, Path]:
    """Chromium, and the folder that playwright-core is in; skips, naming what is missing."""
    chromium, folder = _chromium(), ROOT / ".cache" / "browser"
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"ComfyUI's server needs {', '.join(missing)}; `make test` installs them")
    if chromium is None:
        pytest.skip("no Chromium: install the package `chromium`, or name one in CHROMIUM_PATH")
    if shutil.which("node") is None or not (folder / "node_modules" / "playwright-core").is_dir():
        pytest.skip("no playwright-core: it needs Node.js with npm; `make browser` installs it")
    return chromium, folder


@pytest.fixture(scope="session")
def server(tools, tmp_path_factory):
    from trace_core import engine

    harness = _harness()
    with harness.Server(engine.find().path, tmp_path_factory.mktemp("comfyui")) as running:
        running.pack = harness.PACK
        yield running


@pytest.fixture(scope="session")
def play(tools, server, tmp_path_factory):
    """``play(scenario, **given)``: facts from the page; no error of ours may have come up in it."""
    chromium, folder = tools
    asked = os.environ.get("TRACE_SCREENSHOTS")  # a folder; without it there are pictures of errors only
    out = Path(asked or tmp_path_factory.mktemp("screenshots")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    command = ["node", str(HERE / "driver.mjs"), str(folder), chromium, server.url, server.pack]
    driver = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    names = sorted(p.stem for p in (ROOT / "workflows").glob("*.json"))

    def run(scenario: str, **given) -> dict:
        driver.stdin.write(json.dumps({"scenario": scenario, "given": {"names": names, "out": str(out), "pictures": bool(asked), **given}}) + "\n")
        driver.stdin.flush()
        answer = json.loads(driver.stdout.readline() or '{"error": "the browser is gone"}')
        assert "error" not in answer, answer["error"]
        assert answer["result"]["problems"] == []
        return answer["result"]

    yield run
    driver.stdin.close()
    driver.wait(30)
