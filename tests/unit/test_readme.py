"""The README's tables are what the benchmarks wrote."""

import shlex
import subprocess
import sys
from pathlib import Path

from trace_core.cli.main import parser

ROOT = Path(__file__).resolve().parents[2]


def test_tables_are_the_measured_ones():
    script = ROOT / "benchmarks" / "tables.py"
    assert subprocess.run([sys.executable, str(script), "--check"], cwd=ROOT).returncode == 0


def test_every_command_of_the_readme_exists():
    known = parser()
    for line in (ROOT / "README.md").read_text().splitlines():
        words = line.strip(" `").split()
        if words[:3] == ["python", "-m", "trace_core"] and not line.lstrip().startswith("|"):
            known.parse_args(shlex.split(line.strip(" `"))[3:])
