"""Few templates for the tests of the fusion."""

from __future__ import annotations

import pytest

from fused_models import FEW


@pytest.fixture(autouse=True)
def few_templates(monkeypatch):
    """So few that the concepts do not fill the tiny models' text space."""
    from trace_core.text.templates import TEMPLATES

    monkeypatch.setitem(TEMPLATES, "object", FEW["object"])
