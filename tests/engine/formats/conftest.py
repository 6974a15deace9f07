"""Tiny models in the formats that people load."""

from __future__ import annotations

import importlib

import pytest

from trace_core.text.templates import TEMPLATES


@pytest.fixture(scope="session")
def bench(tiny):
    """The module ``tests/helpers/quantised_models.py``, which needs ComfyUI at import."""
    return importlib.import_module("quantised_models")


@pytest.fixture(autouse=True)
def few_templates(monkeypatch, nothing_stays_loaded):
    monkeypatch.setitem(TEMPLATES, "object", ("a {}",))
