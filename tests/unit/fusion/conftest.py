"""Few templates for the tests of the fusion."""

from __future__ import annotations

import pytest

from trace_core.text.templates import TEMPLATES


@pytest.fixture(autouse=True)
def few_templates(monkeypatch):
    monkeypatch.setitem(TEMPLATES, "object", ("{}", "a photo of a {}", "a {} on the table"))
