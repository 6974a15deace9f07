"""A verdict on an erasure of any model. The unerased model itself says what a picture shows."""

from __future__ import annotations

from .result import Verification
from .run import verify
from .scene import Effort
from .thresholds import FAIL, PASS, WARN

__all__ = ["FAIL", "PASS", "WARN", "Effort", "Verification", "verify"]
