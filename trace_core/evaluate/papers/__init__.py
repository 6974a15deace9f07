"""The papers' protocols on any model, with a judge that the user brings, in runs that can be resumed."""

from __future__ import annotations

from .asked import Asked
from .journal import Journal
from .run import Run

__all__ = ["Asked", "Journal", "Run"]
