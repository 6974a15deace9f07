"""TRACE: erase concepts from text-to-image models, on ComfyUI's own model objects."""

__version__ = "0.1.0"
