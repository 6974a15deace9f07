"""The line that says what a command's seconds went into."""

from __future__ import annotations

from trace_core.cli.timing import LONGEST, Clock


def test_a_command_of_many_phases_names_the_longest():
    clock = Clock()
    clock._seconds = {f"class {i}": 1.0 + i for i in range(LONGEST + 3)}
    line = clock.line()
    assert line.count("class") == LONGEST
    assert f"class {LONGEST + 2} {LONGEST + 3:.1f}" in line and "class 2 " not in line
    assert "3 more 6.0;" in line


def test_a_command_of_few_phases_names_them_in_order():
    clock = Clock()
    clock._seconds = {"load": 1.0, "save": 0.5, "nothing": 0.01}
    assert clock.line().startswith("seconds: load 1.0, save 0.5; ")
