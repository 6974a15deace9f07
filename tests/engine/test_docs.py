"""Every Python block and every command of the README and of ``docs`` runs, on the demo models.

Checkpoints give way to demo models, trainings have two steps, and evaluations ten classes of one picture.
Files that a page takes for granted are made once.
"""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from trace_core.cli import main
from trace_core.demo import domain
from trace_core.evaluate import recover
from trace_core.finetune import options

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

#: What stands in a page, and what runs in its place
INSTEAD = {
    "nudity.safetensors": "cat.safetensors",
    "clip-vit-base-patch32": str(ROOT / "tests" / "data" / "clip"),
    "sd15.safetensors": "demo-sd",
    "=512": "=64",
    '": 512': '": 64',
    '"steps": 60': '"steps": 2',
}
QUICK = {"steps": 2, "batch": 8, "trajectories": 2, "keep_trajectories": 2, "refresh": 2}
#: Options that are put behind those of a command: the last one counts
CHEAPER = {
    "evaluate": ["--samples", "1", "--steps", "2", "--budget", "0.02"],
    "generate": ["--steps", "2"],
    "verify": ["--samples", "1", "--steps", "2", "--kept", "2", "--kept-samples", "1"],
}
LISTS = {
    "artists.csv": "Name,Kind\nVan Gogh,style\nMonet,style\n",
    "list.txt": "cat\ndog\n",
    "i2p.csv": "prompt,evaluation_seed\na photo of a cat,1\n",
}
#: Timed elsewhere, and nothing to be cut short
LONG = {"bench"}


FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.S | re.M)


def blocks(page: Path, language: str) -> list[str]:
    return [block for of, block in FENCED.findall(page.read_text()) if of == language]


def commands(page: Path) -> list[list[str]]:
    """The words behind ``python -m trace_core``, in the order of the page."""
    lines = [line for block in blocks(page, "") for line in block.splitlines()]
    lines += re.findall(r"^`([^`]+)`", page.read_text(), flags=re.M)
    found = [shlex.split(line, comments=True) for line in lines if line.startswith("python -m trace_core ")]
    left_out = LONG if importlib.util.find_spec("nudenet") else {*LONG, "nudenet"}
    return [words[3:] for words in found if not left_out & set(words) and "--help" not in words]


def with_python(page: Path) -> list[str]:
    return blocks(page, "python")


def with_some(kind) -> list[Path]:
    return [page for page in PAGES if kind(page)]


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    for preset in options.PRESETS:
        monkeypatch.setitem(options.PRESETS, preset, QUICK)
    whole = domain.domain()
    few = replace(whole, objects=dict(list(whole.objects.items())[:10]))
    monkeypatch.setattr(domain, "domain", lambda name="demo-sd": few)
    monkeypatch.setattr(recover, "recoverability", partial(recover.recoverability, steps=2))
    for name, text in LISTS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def erasures(engine, tmp_path_factory) -> Path:
    """Erasures by name, for pages that begin with them."""
    folder = tmp_path_factory.mktemp("erasures")
    for name in ("cat", "dog", "truck"):
        out = str(folder / f"{name}.safetensors")
        assert main(["erase", "--model", "demo-sd", "--erase", name, "--keep", "bird", "--out", out]) == 0
    new = ["erase", "--model", "demo-sd", "--erase", "pizza", "--keep", "bird"]
    assert main([*new, "--out", str(folder / "new.safetensors")]) == 0
    parts = [str(folder / f"{name}.safetensors") for name in ("cat", "dog", "truck")]
    three = ["fuse", *parts, "--model", "demo-sd", "--out", str(folder / "three.safetensors")]
    assert main(three) == 0
    return folder


def run(words: list[str], erasures: Path) -> int:
    """A command of a page; files that it reads and that no command before it wrote are put there."""
    words = [INSTEAD.get(word, word) for word in words]
    outputs = {words[i + 1] for i, word in enumerate(words) if word == "--out"}
    for word in words:
        if (erasures / word).is_file() and word not in outputs and not Path(word).exists():
            shutil.copy(erasures / word, word)
    untrained = ["--method", "projection"] if "--jobs" in words else []  # workers know no QUICK
    return main([*words, *CHEAPER.get(words[0], []), *untrained])


@pytest.mark.parametrize("page", with_some(commands), ids=lambda page: page.name)
def test_every_command_runs(page, erasures):
    for words in commands(page):
        assert run(words, erasures) == 0, words
        for written in (words[i + 1] for i, word in enumerate(words) if word in ("--out", "--json")):
            assert "--dry-run" in words or Path(written).exists(), words


@pytest.mark.parametrize("page", with_some(with_python), ids=lambda page: page.name)
def test_every_python_block_runs(page, engine, tmp_path):
    names: dict = {}
    for block in blocks(page, "python"):
        for there, here in INSTEAD.items():
            block = block.replace(there, here)
        file = tmp_path / "block.py"
        file.write_text(block)
        names = runpy.run_path(str(file), names)
