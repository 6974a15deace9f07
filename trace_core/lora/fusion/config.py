"""Options and inputs of the fusion."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ...errors import LoraError, TraceError
from ...text.concepts import Concept, same
from ..erasure import ErasureLora
from ..parts import MAX_STRENGTH, Part

MODES = ("fuse", "sum", "add")
STARTS = ("held", "row")
WEIGHTINGS = ("group", "row")

#: ``progress(phase, done, total)``; an exception raised in it cancels
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FusionConfig:
    """Options of the fusion."""

    mode: str = field(
        default="fuse",
        metadata={
            "help": "fuse: eq. 7; sum: concatenate, as several LoRA loaders would; add: the first erasure "
            "stays as it is, and the others are fitted to it"
        },
    )
    integration: float = field(
        default=1.0, metadata={"help": "mu: suppression of an adapter on the rows of the others; 1 is MACE"}
    )
    keep_weight: float = field(
        default=0.1, metadata={"help": "beta: weight of one keep entry against one concept"}
    )
    alpha: float = field(default=1e-3, metadata={"help": "lambda, relative to the trace of the Gram matrix"})
    weighting: str = field(
        default="group", metadata={"help": "group: equal weight per token group; row: per row, as in MACE"}
    )
    start: str = field(
        default="held",
        metadata={"help": "start token: held at the mean response, or a normal row (MACE)"},
    )
    max_rank: int | None = field(
        default=None, metadata={"help": "upper bound of a layer's rank; the parts are merged into one"}
    )
    contexts: Mapping[str, Sequence[str]] = field(
        default_factory=dict,
        metadata={"help": "additional templates by kind of concept; {} is the place of the concept"},
    )

    def __post_init__(self):
        for name, known in (("mode", MODES), ("weighting", WEIGHTINGS), ("start", STARTS)):
            if getattr(self, name) not in known:
                raise TraceError(f"{name} '{getattr(self, name)}' is unknown; use one of {', '.join(known)}")
        if not 0 <= self.integration <= 1e6:
            raise TraceError(
                f"integration is {self.integration}; it must lie between 0 and a million, 1 is MACE's fusion"
            )
        if not 0 <= self.keep_weight <= 1e6:
            raise TraceError(
                f"keep_weight is {self.keep_weight}; it must lie between 0 (no keep set) and a million"
            )
        if not 0 < self.alpha < math.inf:
            raise TraceError(f"alpha is {self.alpha}; it must be positive and finite")
        if self.max_rank is not None and self.max_rank < 1:
            raise TraceError(f"max_rank is {self.max_rank}; it must be 1 or more, or left out")
        if self.max_rank is not None and self.mode == "add":
            raise TraceError(
                f"max_rank is {self.max_rank}, which changes every erasure, but mode 'add' leaves the first "
                "one as it is; leave max_rank out, or use mode 'fuse'"
            )


@dataclass
class Adapter:
    """One of the fused erasures at strength 1. Its strengths are set again afterwards.

    A file of several parts is one adapter. The fusion preserves its response on all of its concepts' rows.
    """

    name: str
    lora: ErasureLora
    parts: list[Part]
    strengths: dict[str, float]  #: strengths other than 1, by target, to be set again

    @property
    def concepts(self) -> list[tuple[Concept, str]]:
        """Every concept, with its kind."""
        found = {c.target: (c, p.kind) for p in self.parts for c in p.concepts}
        return list(found.values())


def parse_strengths(text: str, source: str = "strengths") -> dict[str, float]:
    """Parse ``concept = number`` lines; ``#`` starts a comment.

    Raises:
        LoraError: naming ``source`` and the line.
    """
    out = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.split("#", 1)[0].strip()
        if not line:
            continue
        name, _, value = (part.strip() for part in line.rpartition("="))
        try:
            strength = float(value)
        except ValueError:
            strength = math.nan
        if not name or not abs(strength) <= MAX_STRENGTH:
            raise LoraError(
                f"{source}, line {number}: '{line[:60]}' is not CONCEPT = NUMBER from -10 to 10, such as "
                "`cat = 0.5`; correct that line"
            )
        if any(same(name, other) for other in out):
            raise LoraError(f"{source}, line {number}: '{name[:60]}' is given twice; remove one")
        out[name] = strength
    return out


@contextmanager
def timed(clock: dict, phase: str):
    begin = time.perf_counter()
    yield
    clock[phase] = clock.get(phase, 0.0) + time.perf_counter() - begin
