"""What a protocol draws: one entry a picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

ERASED, KEPT, SYNONYM, ROW = "erased", "kept", "synonym", "row"  #: groups of entries


@dataclass(frozen=True)
class Asked:
    """One picture to draw and to judge.

    Attributes:
        prompt: its prompt.
        seed: seed of its noise.
        shows: the class that it should show; empty if none is known.
        group: :data:`ERASED`, :data:`KEPT`, :data:`SYNONYM` or :data:`ROW`.
        word: the word in the prompt that names the class; for a row of a table its category.
        guidance: guidance of this picture; None: as the run's.
    """

    prompt: str
    seed: int
    shows: str = ""
    group: str = ROW
    word: str = ""
    guidance: float | None = None


def digest(asked: Sequence[Asked]) -> str:
    """16 hex digits that change with any entry."""
    text = json.dumps([asdict(a) for a in asked], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
