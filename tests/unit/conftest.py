"""What the unit tests share."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def fake():
    """The module ``tests/fake_clip.py``."""
    file = Path(__file__).resolve().parents[1] / "fake_clip.py"
    spec = importlib.util.spec_from_file_location("fake_clip", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Matrices this small are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
