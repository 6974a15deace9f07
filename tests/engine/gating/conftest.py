"""Models for the tests of erasures in a window."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def models(families):
    """``models(kind)``: one model that every test reads and none may change, with nobody's patches on the
    network.
    """
    import comfy.model_management

    held = {}

    def get(kind):
        if kind not in held:
            held[kind] = families[kind].model()
        comfy.model_management.unload_all_models()
        return held[kind]

    return get
