"""ComfyUI's server of the server tier, and one Chromium that its page is tried in.

A page is tried in stages: the version that the engine asks for, in the classic and in the new node design,
and the newest version to be had. A test names its stages by a marker, ``@pytest.mark.stages("own-new")``;
without one it is for the classic design.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODULES = ("requests", "pathspec", "av")
NEWEST = max(
    (p.stem for p in (ROOT / "tests" / "frontends").glob("*.txt")),
    key=lambda v: tuple(map(int, v.split("."))),
)
#: Version of the page (empty: the engine's own), and whether it draws nodes in the new design.
STAGES = {
    "own-classic": ("", False),
    "own-new": ("", True),
    "newest-classic": (NEWEST, False),
    "newest-new": (NEWEST, True),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "stage" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("stages")
        metafunc.parametrize(
            "stage", marker.args if marker else ("own-classic",), indirect=True, scope="session"
        )


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


class Browser:
    """One server and one Chromium for a version of the page; use as a context manager."""

    def __init__(self, server, chromium: str, folder: Path, out: Path):
        self.server, self.out = server, out
        self.command = ["node", str(HERE / "driver.mjs"), str(folder), chromium, server.url, server.pack]

    def __enter__(self) -> Browser:
        self.driver = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_) -> None:
        self.driver.stdin.close()
        self.driver.wait(30)

    def play(self, scenario: str, given: dict) -> dict:
        self.driver.stdin.write(
            json.dumps({"scenario": scenario, "given": {"out": str(self.out), **given}}) + "\n"
        )
        self.driver.stdin.flush()
        return json.loads(self.driver.stdout.readline() or '{"error": "the browser is gone"}')


@pytest.fixture(scope="session")
def browsers(tools, tmp_path_factory):
    """``browsers(version)``: the :class:`Browser` of a version of the page, started when it is first
    wanted.
    """
    from trace_core import engine

    harness, started = _harness(), {}
    chromium, folder = tools
    with ExitStack() as open_ones:

        def browser(version: str) -> Browser:
            version = version or harness.frontend_of(engine.find().path)
            if version not in started:
                try:
                    server = harness.Server(
                        engine.find().path, tmp_path_factory.mktemp("comfyui"), version, harness.PUBLISHED
                    )
                except harness.FrontendMissing as error:
                    pytest.skip(str(error))
                # a folder; without it there are pictures of errors only
                asked = os.environ.get("TRACE_SCREENSHOTS")
                out = Path(asked or tmp_path_factory.mktemp("screenshots")).resolve() / f"page-{version}"
                out.mkdir(parents=True, exist_ok=True)
                started[version] = open_ones.enter_context(
                    Browser(open_ones.enter_context(server), chromium, folder, out)
                )
            return started[version]

        yield browser


@pytest.fixture(scope="session")
def stage(request, browsers) -> tuple[Browser, bool]:
    """The browser of a stage, and whether nodes are drawn in the new design; skips what the engine's page
    has not.
    """
    from trace_core import engine

    version, new = STAGES[request.param]
    own = _harness().frontend_of(engine.find().path)
    if request.param != "own-classic" and not _has_new_design(own):
        pytest.skip(
            f"ComfyUI {engine.find().version} has the page {own}, which knows the classic node design alone"
        )
    if version == own:
        pytest.skip(f"{own} is ComfyUI's own page, which is tried already")
    return browsers(version), new


def _has_new_design(version: str) -> bool:
    """Whether a page offers the new node design to its users, "Nodes 2.0"; earlier ones had trials of it."""
    root = _harness().frontend_root(version)
    return root is not None and any(
        b"Nodes 2.0" in file.read_bytes() for file in (root / "assets").glob("*.js")
    )


@pytest.fixture(scope="session")
def play(stage):
    """``play(scenario, **given)``: facts from the page; no error of ours may have come up in it."""
    browser, new = stage
    names = sorted(p.stem for p in (ROOT / "workflows").glob("*.json"))

    def run(scenario: str, **given) -> dict:
        answer = browser.play(
            scenario,
            {
                "names": names,
                "pictures": bool(os.environ.get("TRACE_SCREENSHOTS")),
                "newDesign": new,
                **given,
            },
        )
        assert "error" not in answer, answer["error"]
        assert answer["result"]["problems"] == []
        return answer["result"]

    return run
