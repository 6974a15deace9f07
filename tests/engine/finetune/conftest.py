"""Few templates for the tests of the finetune; no model stays loaded."""

from __future__ import annotations

import pytest

from trace_core.text.templates import TEMPLATES


@pytest.fixture(autouse=True)
def few_templates(monkeypatch, nothing_stays_loaded):
    monkeypatch.setitem(TEMPLATES, "object", ("a {}", "the {}"))
