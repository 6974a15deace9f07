"""Files of concepts for the tests of lists."""

from __future__ import annotations

import pytest

from trace_core.text import lists
from trace_core.text.grammar import concepts_of, keep_of


@pytest.fixture
def read(tmp_path):
    """Concepts of a file with this content, and the notes."""

    def run(name: str, content: str | bytes, **columns):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        entries, notes = lists.read(file, name, lists.Columns(**columns))
        return concepts_of(entries, name), notes

    return run


@pytest.fixture
def kept(tmp_path):
    def run(name: str, content: str, **columns):
        (tmp_path / name).write_text(content, encoding="utf-8")
        return keep_of(lists.read(tmp_path / name, name, lists.Columns(**columns), keep=True)[0])

    return run
