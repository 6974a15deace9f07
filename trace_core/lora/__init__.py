"""An erasure as a LoRA file: factors, metadata, parts, key forms, application to a model, and fusion."""

from .erasure import ErasureLora

__all__ = ["ErasureLora"]
