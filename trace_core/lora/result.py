"""The result of every erasing method: a LoRA and a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..text.concepts import Concept
from .erasure import ErasureLora
from .gating import apply


@dataclass(frozen=True)
class Erasure:
    """A finished erasure. It can be applied, saved and inspected, and is immutable.

    Attributes:
        lora: factors and metadata.
        report: measurements of the run; empty for an erasure read from a file.
    """

    lora: ErasureLora
    report: Mapping = field(default_factory=dict)

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The erased concepts from the file's metadata; empty for a LoRA without them."""
        return tuple(concept for part in self.lora.parts() for concept in part.concepts)

    def apply(self, model, strength: float = 1.0, start: float | None = None, end: float | None = None):
        """A clone of a ComfyUI model with the erasure. The model itself is not changed.

        Args:
            strength: 1 erases as made, 0 does nothing.
            start, end: window as fractions of the sampling schedule; None: the file's own.

        Raises:
            LoraError, ModelError: if the erasure does not fit the model.
        """
        return apply(model, self.lora, strength, start, end)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, which ComfyUI's stock LoRA loader reads.

        Raises:
            LoraError: if the file cannot be written; no partial file remains.
        """
        return self.lora.save(path)

    @classmethod
    def load(cls, path: str | Path) -> Erasure:
        """Read an erasure LoRA.

        Raises:
            LoraError: if the file is not an erasure LoRA.
        """
        return cls(ErasureLora.load(path))
