"""What the registry publishes: the metadata, the archive's files, and what their code may do.

The archive is every file that git tracks, less what ``.comfyignore`` names. The registry's scanners
refuse network access, child processes, the environment, pickles and evaluated strings.
"""

from __future__ import annotations

import ast
import base64
import io
import re
import shutil
import subprocess
import sys
import tokenize
from functools import cache
from pathlib import Path

import pathspec
import pytest

import trace_core

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
DEVELOPMENT = re.compile(r"trace_core/(engine\.py|__main__\.py|cli.*\.py|demo/recipe/.*)")
COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "nodes", "server"}
REFUSED_MODULES = {"http", "pickle", "requests", "socket", "subprocess", "urllib"}
REFUSED_NAMES = {"os.environ", "os.getenv", "os.popen", "os.putenv", "os.system", "torch.load"}


@cache
def tracked() -> frozenset[str]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return frozenset(name for name in listing.split("\0") if name and (ROOT / name).is_file())


@cache
def archive() -> frozenset[str]:
    ignored = pathspec.GitIgnoreSpec.from_lines((ROOT / ".comfyignore").read_text().splitlines())
    return frozenset(name for name in tracked() if not ignored.match_file(name))


def python_files(names: frozenset[str]) -> list[str]:
    return sorted(name for name in names if name.endswith(".py"))


def imports(tree: ast.AST) -> list[tuple[ast.stmt, int, str]]:
    """Every import below ``tree`` as ``(statement, level, dotted name)``; level counts leading dots."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, 0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node, node.level, ".".join(filter(None, (node.module, a.name)))) for a in node.names]
    return found


def refused(source: str) -> list[str]:
    """What a registry scanner would object to, as ``line: what``."""
    tree = ast.parse(source)
    found = []
    for node, level, name in imports(tree):
        if level == 0 and (name.split(".")[0] in REFUSED_MODULES or name in REFUSED_NAMES):
            found.append(f"{node.lineno}: import of {name}")
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("eval", "exec")
        ):
            found.append(f"{node.lineno}: {node.func.id}()")
        if isinstance(node, ast.Attribute) and ast.unparse(node) in REFUSED_NAMES:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.exact_type == tokenize.SEMI:
            found.append(f"{token.start[0]}: two statements on a line")
    return found


def settings() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_metadata_follows_the_registry():
    project, comfy = settings()["project"], settings()["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9._-]{0,98}", project["name"])
    assert "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert comfy["PublisherId"]
    assert comfy["DisplayName"]
    assert all(
        re.fullmatch(r"(>=|<=|==|!=|<|>)\d+\.\d+\.\d+", part) for part in comfy["requires-comfyui"].split(",")
    )
    assert "web" not in comfy, "WEB_DIRECTORY names the folder; with both, every script is loaded twice"


@pytest.mark.parametrize(
    ("key", "name", "shape"), [("Icon", "icon", (400, 400)), ("Banner", "banner", (1260, 540))]
)
def test_registry_pictures_are_those_of_the_docs(key, name, shape):
    """The registry asks for an icon of 400 x 400 at most and a banner of 21:9."""
    picture = (ROOT / "docs" / f"{name}.svg").read_bytes()
    assert (
        settings()["tool"]["comfy"][key] == "data:image/svg+xml;base64," + base64.b64encode(picture).decode()
    )
    assert f'viewBox="0 0 {shape[0]} {shape[1]}"'.encode() in picture


def test_version_is_the_same_everywhere():
    assert settings()["project"]["version"] == trace_core.__version__


def test_dependencies_leave_comfyui_alone():
    declared = settings()["project"]["dependencies"]
    required = (ROOT / "requirements.txt").read_text().split()
    assert set(required) <= set(declared)
    assert all(re.fullmatch(r"[a-z0-9_-]+", name) for name in declared), "a pin would fight ComfyUI's own"
    assert "torch" not in declared


def test_archive_has_what_the_pack_needs():
    wanted = {
        name
        for name in tracked()
        if name.split("/")[0] in ("locales", "nodes", "trace_core", "web", "workflows")
    }
    wanted = {name for name in wanted if not DEVELOPMENT.fullmatch(name)}
    wanted |= {"LICENSE", "NOTICE", "pyproject.toml", "requirements.txt"}
    wanted |= {"README.md", "__init__.py"} & tracked()
    assert wanted - archive() == set()
    assert {"trace_core/__init__.py", "trace_core/demo/assets/clip_tokenizer/tokenizer.json"} <= archive()


def test_archive_has_no_development_files():
    folders = {".ci", ".github", "benchmarks", "docs", "tests"}
    extra = {name for name in archive() if name.split("/")[0] in folders or DEVELOPMENT.fullmatch(name)}
    assert extra == set()
    assert {"ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile"} & archive() == set()
    assert not any(re.search(r"(^|/)(test_|conftest)", name) for name in archive())


def test_workflows_have_thumbnails():
    names = {name for name in archive() if name.startswith("workflows/")}
    assert {Path(name).stem for name in names if name.endswith(".json")} == {
        Path(name).stem for name in names if name.endswith(".jpg")
    }
    assert all(Path(name).suffix in (".json", ".jpg") for name in names)


def test_archive_is_small():
    assert sum((ROOT / name).stat().st_size for name in archive()) < 50e6


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess",
        "def f():\n    import urllib.request",
        "from http import client",
        "import pickle as p",
        "import os\nos.environ['A']",
        "import os\nos.getenv('A')",
        "from os import environ",
        "import torch\ntorch.load('a')",
        "from torch import load",
        "eval('1')",
        "exec('a = 1')",
        "a = 1; b = 2",
    ],
)
def test_scan_finds(source):
    assert len(refused(source)) == 1


@pytest.mark.parametrize(
    "source", ["model.eval()", "import os\nos.path.join('a')", "a = 'eval(1); os.environ'"]
)
def test_scan_lets_pass(source):
    assert refused(source) == []


@pytest.mark.parametrize("name", python_files(archive()))
def test_published_code_is_harmless(name):
    assert refused((ROOT / name).read_text()) == []


def test_published_code_passes_the_security_rules():
    """The registry's own check, and all other rules of its kind."""
    names = [str(ROOT / name) for name in python_files(archive())]
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "S,E702", *names]
    result = subprocess.run(ruff, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


CORE = [
    name for name in python_files(tracked()) if re.match(r"trace_core/(?!engine\.py|__main__\.py|cli)", name)
]


@pytest.mark.parametrize("name", CORE)
def test_core_does_not_know_comfyui(name):
    """Only the engine finder, the command line and, inside functions, the demo models may import ComfyUI."""
    tree = ast.parse((ROOT / name).read_text())
    if name.startswith("trace_core/demo/"):
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        inside = {
            id(below) for node in ast.walk(tree) if isinstance(node, functions) for below in ast.walk(node)
        }
        seen = [dotted for node, level, dotted in imports(tree) if level == 0 and id(node) not in inside]
    else:
        seen = [dotted for _, level, dotted in imports(tree) if level == 0]
    assert [dotted for dotted in seen if dotted.split(".")[0] in COMFYUI] == []


def unpublished_imports(name: str) -> set[str]:
    """Files of this repository that a published file imports, anywhere in it, and that are not published."""
    found = set()
    for _, level, dotted in imports(ast.parse((ROOT / name).read_text())):
        if level == 0 and dotted.split(".")[0] != "trace_core":
            continue
        base = Path(name).parents[level - 1] if level else Path()
        parts = dotted.split(".")
        modules = [base.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]
        found |= {
            str(path) for module in modules for path in (module.with_suffix(".py"), module / "__init__.py")
        }
    return (found & tracked()) - archive()


def test_published_code_imports_only_published_code():
    missing = {name: unpublished_imports(name) for name in python_files(archive())}
    assert {name: files for name, files in missing.items() if files} == {}


def test_archive_imports_under_another_name_without_comfyui(tmp_path):
    """ComfyUI gives a pack's folder a module name of its own; the pack must not need its own name, nor,
    before it runs, ComfyUI.
    """
    pack = tmp_path / "pack-0.1"
    for name in archive():
        (pack / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, pack / name)
    script = """
import importlib, pkgutil, sys, types
pack = sys.modules["pack-0_x_1"] = types.ModuleType("pack-0_x_1")
pack.__path__ = [sys.argv[1]]
core = importlib.import_module("pack-0_x_1.trace_core")
nodes = importlib.import_module("pack-0_x_1.nodes")
for package in (core, nodes):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
assert len(nodes.NODE_CLASS_MAPPINGS) == 9
wrong = {"comfy", "nodes", "server", "trace_core"} & set(sys.modules)
sys.exit(f"imported {wrong}" if wrong else 0)
"""
    subprocess.run([sys.executable, "-I", "-c", script, str(pack)], cwd=tmp_path, check=True)


def test_installed_package_is_the_core_alone(tmp_path):
    """Installed, the folder ``nodes`` would answer for ComfyUI's nodes.py."""
    script = (
        "import importlib.util as u; print([u.find_spec(n) is None for n in ('trace_core', 'nodes', "
        "'tests')])"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.stdout.strip() == "[False, True, True]"
