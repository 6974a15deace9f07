"""The README and the pages it leads to: tables are what the benchmarks wrote, commands exist, links lead
somewhere, pages are short. ``tests/engine/test_docs.py`` runs the commands and the Python blocks.
"""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from trace_core.cli.main import parser

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = (README, *(ROOT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")), *DOCS)
#: bytes; every other page of docs has 6 KB
LONGEST = {README.name: 8192, "results.md": 1 << 16, "all-figures.md": 1 << 15}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_tables_are_the_measured_ones():
    script = ROOT / "benchmarks" / "tables.py"
    assert subprocess.run([sys.executable, str(script), "--check"], cwd=ROOT).returncode == 0


FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.S | re.M)


def blocks(text: str, language: str = "") -> list[str]:
    return [block for of, block in FENCED.findall(text) if of == language]


def commands(text: str) -> list[list[str]]:
    """Every command of a page, as words: lines of fenced blocks, and code between single backticks."""
    lines = [line for block in blocks(text) for line in block.splitlines()]
    lines += re.findall(r"`([^`]+)`", FENCED.sub("", text))
    return [shlex.split(line, comments=True) for line in lines if re.match(r"(python|make) ", line)]


@each_page
def test_every_command_exists(page):
    known, makefile = parser(), (ROOT / "Makefile").read_text()
    for words in commands(page.read_text()):
        if words[:3] == ["python", "-m", "trace_core"]:
            if words[3:] and not {"COMMAND", "--help"} & set(words) and words[3:] != ["info"]:
                known.parse_args(words[3:])
        elif words[0] == "python" and words[1] != "-m":
            source = (ROOT / words[1]).read_text()
            assert all(f'"{word}"' in source for word in words if word.startswith("--")), words
        elif words[0] == "make":
            for target in (word for word in words[1:] if "=" not in word):
                assert re.search(rf"^{target}:", makefile, flags=re.M), words


def anchors(text: str) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_every_link_leads_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        if not target.startswith("http"):
            file = page.parent / target if target else page
            assert file.is_file(), target
            assert not anchor or anchor in anchors(file.read_text()), f"{target}#{anchor}"


@each_page
def test_every_file_that_is_named_exists(page):
    tops = "benchmarks|docs|locales|nodes|tests|trace_core|web|workflows"
    for code in re.findall(r"`([^`\n]+)`", FENCED.sub("", page.read_text())):
        if re.fullmatch(rf"({tops})/[\w./-]*", code) and not re.search(r"\bID\b", code):
            assert (ROOT / code).exists(), code


@each_page
def test_python_blocks_are_python(page):
    for block in blocks(page.read_text(), "python"):
        ast.parse(block)


def test_quoted_messages_are_those_of_the_program():
    """Where a page has dots or a number that the program fills in, the parts around them are looked for."""
    said = [
        node.value
        for folder in ("trace_core", "nodes")
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    for name in ("troubleshooting.md", "training.md"):
        quoted = re.findall(r'^\| "([^"]+)" \|', (ROOT / "docs" / name).read_text(), flags=re.M)
        assert quoted
        for part in (part.strip() for message in quoted for part in re.split(r"\.\.\.|nan", message)):
            assert any(part in text for text in said), part


@pytest.mark.parametrize("page", (README, *DOCS), ids=lambda page: page.name)
def test_pages_are_short(page):
    assert len(page.read_bytes()) <= LONGEST.get(page.name, 6144)


def test_every_page_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\(([^)#]+)", README.read_text()))
    assert {f"docs/{page.name}" for page in DOCS} - linked == set()


def test_the_readme_has_one_table_of_results_of_eight_rows_at_most():
    (table,) = re.findall(r"<!-- table \w+ -->\n(.*?)<!-- end -->", README.read_text(), flags=re.S)
    assert 3 <= len(table.splitlines()) <= 2 + 8
