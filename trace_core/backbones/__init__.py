"""Model families behind one small interface."""

from .base import Backbone, Layer
from .families import backbone_for

__all__ = ["Backbone", "Layer", "backbone_for"]
