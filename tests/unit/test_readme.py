"""The README and the pages it leads to: tables are what the benchmarks wrote, commands exist, links lead
somewhere.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from trace_core.cli.main import parser

ROOT = Path(__file__).resolve().parents[2]


def test_tables_are_the_measured_ones():
    script = ROOT / "benchmarks" / "tables.py"
    assert subprocess.run([sys.executable, str(script), "--check"], cwd=ROOT).returncode == 0


PAGES = (ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_exists(page):
    known = parser()
    for line in page.read_text().splitlines():
        words = line.strip(" `").split()
        if words[:3] == ["python", "-m", "trace_core"] and not line.lstrip().startswith("|"):
            if "COMMAND" not in words:
                known.parse_args(shlex.split(line.strip(" `"))[3:])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).is_file(), target


def test_readme_is_read_in_five_minutes():
    assert len(PAGES[0].read_bytes()) <= 8192
