"""The command line: ``python -m trace_core demo | erase | generate | evaluate | fuse | export | info |
bench``.
"""

from .main import main

__all__ = ["main"]
