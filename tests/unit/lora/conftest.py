"""A saved erasure for the tests of the file."""

from __future__ import annotations

import pytest

from lora_cases import make


@pytest.fixture
def file(tmp_path):
    return make().save(tmp_path / "cat.safetensors")
