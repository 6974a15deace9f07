"""Few templates for the tests of the solvers."""

from __future__ import annotations

import pytest

from trace_core.text.templates import TEMPLATES


@pytest.fixture(autouse=True)
def few_templates(monkeypatch):
    """So few that the concepts have fewer directions than a row has numbers."""
    monkeypatch.setitem(
        TEMPLATES, "object", ("{}", "a photo of a {}", "a {} on the table", "an image of a {}, red")
    )
