"""Models and templates for the tests of the closed form."""

from __future__ import annotations

import pytest

from engine_cases import unload
from trace_core.text.templates import TEMPLATES


@pytest.fixture(autouse=True)
def few_templates(monkeypatch):
    """Fewer directions than a row has numbers, and quick."""
    monkeypatch.setitem(TEMPLATES, "object", ("{}", "a photo of a {}", "a {}, red background"))


@pytest.fixture(scope="session")
def one(families):
    """``one(kind)``: the family and one model of it that every test reads and none may change."""
    held = {}

    def get(kind):
        if kind not in held:
            held[kind] = families[kind].model()
        unload()
        return families[kind], held[kind]

    return get
