"""The command line, ``python -m trace_core COMMAND``.

Commands: demo, erase, generate, evaluate, fuse, export, info, bench.
"""

from .main import main

__all__ = ["main"]
