"""TRACE: erase concepts from text-to-image models, on ComfyUI's own model objects."""

import importlib

__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "engine":  # finds a ComfyUI; not in the registry archive, which runs inside one
        return importlib.import_module(".cli.engine", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
