"""A real ComfyUI server with the pack as the registry would install it, and workflows turned into what it
queues.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pathspec
import requests
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
#: ComfyUI's page, a folder a version; `make frontends` installs what tests/frontends lists
FRONTENDS = ROOT / ".cache" / "frontends"
PACK = "trace-erasure-0.1.pack"  #: a folder name that no Python module could have
#: the folder that the registry's tool makes; the page finds help below names without a dot only
PUBLISHED = "trace-concept-erasure"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN"}
CONTROL = {"fixed", "increment", "decrement", "randomize"}


def frontend_of(engine: Path) -> str:
    """The version of the page that a ComfyUI asks for in its requirements."""
    pinned = re.search(
        r"^comfyui-frontend-package==(\S+)", (engine / "requirements.txt").read_text(), re.MULTILINE
    )
    if pinned is None:
        raise ValueError(f"{engine / 'requirements.txt'} names no version of comfyui-frontend-package")
    return pinned[1]


def frontend_root(version: str) -> Path | None:
    """The folder that a version of the page is in, or None if it is not installed."""
    root = FRONTENDS / version / "comfyui_frontend_package" / "static"
    return root if (root / "index.html").is_file() else None


def published_files() -> list[str]:
    """What the registry's archive holds: tracked files, less what .comfyignore names."""
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    ignored = pathspec.GitIgnoreSpec.from_lines((ROOT / ".comfyignore").read_text().splitlines())
    return [n for n in listing.split("\0") if n and (ROOT / n).is_file() and not ignored.match_file(n)]


def install(base: Path, folder: str = PACK) -> Path:
    """The pack in ``base/custom_nodes``, with the folders that ComfyUI expects beside it."""
    pack = base / "custom_nodes" / folder
    for name in published_files():
        (pack / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, pack / name)
    for needed in ("models/loras", "models/checkpoints", "input", "output", "temp", "user"):
        (base / needed).mkdir(parents=True, exist_ok=True)
    return pack


class Server:
    """ComfyUI's main.py on a free port; use as a context manager."""

    def __init__(
        self, engine: Path, base: Path, frontend: str = "", pack: str = PACK, variables: dict | None = None
    ):
        """``frontend``: version of the page; empty: the one that the engine asks for. ``pack``: its folder
        below custom_nodes. ``variables``: more of them for its environment.

        Raises:
            FrontendMissing: naming the version.
        """
        self.base, self.pack, self.log = base, pack, base / "server.log"
        self.frontend = frontend or frontend_of(engine)
        root = frontend_root(self.frontend)
        if root is None:
            raise FrontendMissing(
                f"the page {self.frontend} is not in {FRONTENDS}; `make frontends` installs those of "
                "tests/frontends"
            )
        install(base, pack)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [
            sys.executable,
            str(Path(__file__).with_name("boot.py")),
            "--cpu",
            "--listen",
            "127.0.0.1",
            "--port",
            str(port),
            "--disable-auto-launch",
            "--base-directory",
            str(base),
            "--disable-api-nodes",
            "--front-end-root",
            str(root),
            # as the command line has it, so that both can be compared
            "--use-pytorch-cross-attention",
            "--database-url",
            "sqlite:///:memory:",
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(variables or {})}
        environment.pop("PYTHONPATH", None)
        self._file = self.log.open("w")
        self.process = subprocess.Popen(
            command, cwd=engine, stdout=self._file, stderr=subprocess.STDOUT, env=environment
        )

    def __enter__(self) -> Server:
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._file.close()

    def _wait(self, seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                self.get("/system_stats")
                return
            except requests.ConnectionError:
                time.sleep(0.3)
        raise RuntimeError(f"ComfyUI did not start:\n{self.log.read_text()[-4000:]}")

    def get(self, path: str, **query):
        answer = requests.get(self.url + path, params=query, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def object_info(self) -> dict:
        return self.get("/object_info")

    def picture(self, entry: dict) -> Image.Image:
        """A picture that a node's ui output names."""
        answer = requests.get(self.url + "/view", params=entry, timeout=30)
        answer.raise_for_status()
        return Image.open(io.BytesIO(answer.content)).convert("RGB")

    def queue(self, prompt: dict, client: str | None = None) -> str:
        """Queue an API prompt; returns its id.

        Raises:
            Rejected: with the server's reasons.
        """
        body = {"prompt": prompt, "client_id": client or uuid.uuid4().hex}
        answer = requests.post(self.url + "/prompt", json=body, timeout=60)
        if answer.status_code != 200:
            raise Rejected(json.dumps(answer.json(), indent=1)[:4000])
        return answer.json()["prompt_id"]

    def interrupt(self) -> None:
        requests.post(self.url + "/interrupt", json={}, timeout=10).raise_for_status()

    def wait(self, prompt_id: str, seconds: float = 300) -> dict:
        """The history entry of a prompt, once it is there. A long run is asked for less often."""
        end, pause = time.monotonic() + seconds, 0.02
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            if self.process.poll() is not None:
                break
            time.sleep(pause)
            pause = min(pause * 1.2, 0.5)
        raise RuntimeError(f"{prompt_id} did not end:\n{self.log.read_text()[-4000:]}")

    def run(self, prompt: dict, seconds: float = 300) -> dict:
        """Queue, wait, and insist on success; returns the outputs by node."""
        entry = self.wait(self.queue(prompt), seconds)
        if entry["status"]["status_str"] != "success":
            told = [m[1] for m in entry["status"]["messages"] if m[0] == "execution_error"]
            raise Failed(
                "\n".join(f"{m['node_type']}: {m['exception_type']}: {m['exception_message']}" for m in told)
            )
        return entry["outputs"]


class FrontendMissing(Exception):
    """ComfyUI's page is not installed in the version that is wanted."""


class Rejected(Exception):
    """The server did not accept a prompt."""


class Failed(Exception):
    """A prompt ended in an error."""


def inputs_of(info: dict) -> list[tuple[str, object, dict]]:
    """``(name, type, options)`` of a node's inputs in order; a list is a combo's choices."""
    found = []
    for group in ("required", "optional"):
        for name, spec in info["input"].get(group, {}).items():
            found.append((name, spec[0], spec[1] if len(spec) > 1 else {}))
    return found


def is_widget(kind: object, options: dict) -> bool:
    return (isinstance(kind, list) or kind in WIDGETS or kind == "COMBO") and not options.get("forceInput")


def has_control(name: str, kind: object, options: dict) -> bool:
    """Whether the page puts a `control after generate` widget behind this one."""
    return kind == "INT" and bool(options.get("control_after_generate", name in ("seed", "noise_seed")))


def to_api(workflow: dict, info: dict) -> dict:
    """A workflow in UI format as the page would queue it.

    Raises:
        ValueError: if a node's widget values do not fit its inputs.
    """
    links = {link[0]: (str(link[1]), link[2]) for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        kind = node["type"]
        if kind in ("Note", "MarkdownNote") or node.get("mode", 0) in (2, 4):
            continue
        if kind not in info:
            raise ValueError(f"{kind} is no node of this server")
        values, inputs = list(node.get("widgets_values", [])), {}
        for name, form, options in inputs_of(info[kind]):
            if not is_widget(form, options):
                continue
            if not values:
                raise ValueError(f"{kind} has no value for {name}")
            inputs[name] = values.pop(0)
            if has_control(name, form, options) and (not values or values.pop(0) not in CONTROL):
                raise ValueError(f"{kind} has no control after {name}")
        if values:
            raise ValueError(f"{kind} has widget values too many: {values}")
        for slot in node.get("inputs", []):
            if slot.get("link") is not None:
                inputs[slot["name"]] = list(links[slot["link"]])
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs}
    return prompt
