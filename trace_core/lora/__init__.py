"""An erasure as a file: its factors and metadata, its parts, other programs' forms, on a model, and many
in one.
"""

from .erasure import ErasureLora

__all__ = ["ErasureLora"]
