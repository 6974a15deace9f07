"""The rooms of the source: what may import what, how much stands at the top, and how long a file may be."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACK = "trace_core"
#: From low to high. A module imports from its own layer and from lower ones.
LAYERS = (
    "errors",
    "text",
    "backbones",
    "lora",
    "closed_form",
    "lora.fusion",
    "finetune",
    "methods",
    "evaluate",
    "demo",
    "cli",
)
#: They start everything else, so they may import from every layer.
ANY_LAYER = ("cli", "demo.recipe")
SOURCES = ("trace_core", "nodes", "benchmarks", "tests")


def modules() -> dict[str, ast.Module]:
    """Every module of the library by its dotted name; the facade and ``__main__`` are left out."""
    found = {}
    for file in sorted((ROOT / PACK).rglob("*.py")):
        parts = file.relative_to(ROOT / PACK).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name and name != "__main__":
            found[name] = ast.parse(file.read_text())
    return found


MODULES = modules()


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def is_package(name: str) -> bool:
    return (ROOT / PACK / name.replace(".", "/")).is_dir()


def statements(tree: ast.AST):
    """Every import statement, those inside functions too, and not those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        yield from statements(node)


def imported(name: str, tree: ast.Module) -> set[str]:
    """The library's modules that one module imports; the facade is an empty name."""
    found = set()
    for node in statements(tree):
        if isinstance(node, ast.Import):
            full = [alias.name.split(".") for alias in node.names]
        else:
            here = [PACK, *name.split("."), *(["__init__"] if is_package(name) else [])]
            start = here[: len(here) - node.level] if node.level else []
            start += node.module.split(".") if node.module else []
            full = [[*start, alias.name] for alias in node.names]
        for parts in (parts[1:] for parts in full if parts[0] == PACK):
            if parts == ["__version__"]:
                continue
            while parts and ".".join(parts) not in MODULES:  # the last words may name what is in a module
                parts = parts[:-1]
            found.add(".".join(parts))
    return found


IMPORTED = {name: imported(name, tree) for name, tree in MODULES.items()}


def layer(name: str) -> int:
    """Of the longest package that the module is in."""
    return max((i for i, package in enumerate(LAYERS) if within(name, package)), key=lambda i: len(LAYERS[i]))


def test_every_module_has_a_layer():
    assert [name for name in MODULES if not any(within(name, package) for package in LAYERS)] == []


def test_modules_import_from_their_own_layer_and_lower_ones():
    upward = [
        f"{name} imports {other or 'the facade'}"
        for name, others in IMPORTED.items()
        for other in others
        if not any(within(name, package) for package in ANY_LAYER)
        and (not other or layer(other) > layer(name))
    ]
    assert upward == []


def test_no_circle_of_imports():
    """An import of a module runs the files of the packages that it is in, so they count as imported too."""
    graph = {}
    for name, others in IMPORTED.items():
        parents = {".".join(o.split(".")[:i]) for o in others for i in range(1, o.count(".") + 1)}
        graph[name] = (others | {p for p in parents if not within(name, p)}) - {"", name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_few_entries_at_the_top():
    entries = {path.name for path in (ROOT / PACK).iterdir()} - {"__init__.py", "__main__.py", "__pycache__"}
    assert len(entries) <= 10, sorted(entries)


FILES = [path.relative_to(ROOT) for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("folder", SOURCES)
def test_files_and_functions_are_short(folder):
    long = []
    for file in (path for path in FILES if path.parts[0] == folder):
        text = (ROOT / file).read_text()
        if (count := len(text.splitlines())) > 400:
            long.append(f"{file}: {count} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if (count := node.end_lineno - node.lineno + 1) > 60:
                    long.append(f"{file}: {node.name} has {count} lines")
    assert long == []


def test_few_tables_are_kept_from_the_formatter():
    mark = "# fmt: " + "skip"
    assert sum((ROOT / file).read_text().count(mark) for file in FILES) <= 40
