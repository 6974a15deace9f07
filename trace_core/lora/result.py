"""What every way of erasing gives: a LoRA, and a report of what made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..text.concepts import Concept
from .erasure import ErasureLora
from .gating import apply


@dataclass(frozen=True)
class Erasure:
    """A finished erasure: it can be applied, saved and inspected, and does not change.

    Attributes:
        lora: its factors and metadata.
        report: what was measured on the way; empty for an erasure read from a file.
    """

    lora: ErasureLora
    report: Mapping = field(default_factory=dict)

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """What was erased, from the file's metadata; empty for a LoRA that does not say."""
        return tuple(concept for part in self.lora.parts() for concept in part.concepts)

    def apply(self, model, strength: float = 1.0, start: float | None = None, end: float | None = None):
        """A clone of a ComfyUI model with the erasure on it; the model itself is not touched.

        Args:
            strength: 1 erases as it was made, 0 does nothing.
            start, end: window in shares of the sampling schedule; None takes the file's.

        Raises:
            LoraError, ModelError: if the erasure does not fit the model.
        """
        return apply(model, self.lora, strength, start, end)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, which ComfyUI's own LoRA loader reads.

        Raises:
            LoraError: if the file cannot be written; nothing is left behind.
        """
        return self.lora.save(path)

    @classmethod
    def load(cls, path: str | Path) -> Erasure:
        """Read an erasure LoRA.

        Raises:
            LoraError: for what is none.
        """
        return cls(ErasureLora.load(path))
