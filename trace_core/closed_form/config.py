"""Options of the closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..backbones.base import POOLED
from ..errors import TraceError
from ..text.concepts import Concept
from ..text.kinds import KINDS
from .hardened import LEVELS
from .policies import FORMER_NAMES, POLICIES

ENERGY = 0.97  #: share of the concept's energy that is projected out, of all but people and explicit content
#: The same of one person alone, and from CROWD people on. People who stay share most directions of those who
#: are erased. So only the directions that tell the erased ones best are removed, and these a little past the
#: neutral prompt, which makes up for the others. Chosen on those 100 people of demo-people whom no table
#: erases. ``benchmarks/erasure.py --methods projection-plain`` has the whole energy in their place.
ALONE, CROWDED, CROWD = 0.8, 0.6, 10
PAST = 0.3  #: eta of people
#: The same of explicit content. Its last directions are those of the persons who show it. Chosen on people
#: and prompts of demo-people that no table measures.
EXPLICIT = 0.8


def of_people(count: int) -> float:
    """Energy where ``count`` people are erased: between one person's and a crowd's by log(count)."""
    return round(ALONE + min(1.0, math.log(count) / math.log(CROWD)) * (CROWDED - ALONE), 3)


@dataclass(frozen=True)
class ClosedFormConfig:
    """Options of the closed form."""

    policy: str = field(default="projection", metadata={"help": "pairing policy: " + ", ".join(POLICIES)})
    strength: float = field(default=1.0, metadata={"help": "1 erases, 0 changes nothing, above 1 overshoots"})
    eta: float | None = field(
        default=None,
        metadata={
            "help": "steer to g - eta (c - g), g the neutral prompt (projection; default: steer to a "
            "substitute, and a little past the neutral prompt for people)"
        },
    )
    kind: str = field(default="auto", metadata={"help": "kind of concept: auto, " + ", ".join(KINDS)})
    energy: float | None = field(
        default=None,
        metadata={
            "help": "share of the concept's energy to project out (projection; default: 0.97, and less of "
            "people and of explicit content)"
        },
    )
    alpha: float | None = field(
        default=None, metadata={"help": "regulariser, relative to the keep rows (default: the policy's)"}
    )
    keep_weight: float = field(default=1.0, metadata={"help": "weight of the keep set against the concepts"})
    max_rank: int | None = field(default=None, metadata={"help": "upper bound of the rank of the edit"})
    stream: str = field(
        default="all",
        metadata={"help": "text streams to edit: all, or pooled for the pooled vector alone"},
    )
    contrast: bool = field(
        default=True, metadata={"help": "keep words inside names (the van of Van Gogh) separately"}
    )
    exact: bool = field(
        default=False,
        metadata={"help": "leave the rows of the given keep list exactly as they are (projection)"},
    )
    robust: int = field(
        default=0,
        metadata={
            "help": "harden against attacks on the text, 0 to 3 (projection); more changes other pictures"
        },
    )
    neighbours: int = field(
        default=5,
        metadata={"help": "keep this many near neighbours of each concept too; 0: none (projection)"},
    )
    contexts: Mapping[str, Sequence[str]] = field(
        default_factory=dict,
        metadata={"help": "additional templates by kind of concept; {} is the place of the concept"},
    )

    def __post_init__(self):
        object.__setattr__(self, "policy", FORMER_NAMES.get(self.policy, self.policy))
        if self.policy not in POLICIES:
            raise TraceError(f"policy '{self.policy}' is unknown; use one of {', '.join(POLICIES)}")
        if self.kind not in ("auto", *KINDS):
            raise TraceError(f"kind '{self.kind}' is unknown; use auto, {', '.join(KINDS)}")
        if self.stream not in ("all", POOLED):
            raise TraceError(f"stream '{self.stream}' is unknown; use all or {POOLED}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise TraceError(f"energy is {self.energy}; it must lie in (0, 1]")
        if not -10 <= self.strength <= 10:
            raise TraceError(f"strength is {self.strength}; it must lie between -10 and 10")
        if self.eta is not None and not 0 <= self.eta <= 5:
            raise TraceError(f"eta is {self.eta}; it must lie between 0 and 5")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise TraceError(f"alpha is {self.alpha}; it must be positive and finite")
        if self.exact and self.policy != "projection":
            raise TraceError(f"policy {self.policy} keeps by weight alone; use projection or leave exact out")
        if self.robust not in (0, *LEVELS):
            raise TraceError(f"robust is {self.robust}; it must be 0, 1, 2 or 3")
        if self.robust and self.policy != "projection":
            raise TraceError(f"policy {self.policy} cannot be hardened; use projection, or set robust to 0")
        if not 0 < self.keep_weight < math.inf:
            raise TraceError(f"keep_weight is {self.keep_weight}; it must be positive and finite")
        if not 0 <= self.neighbours <= 64:
            raise TraceError(f"neighbours is {self.neighbours}; it must lie between 0 and 64")
        if self.max_rank is not None and self.max_rank < 1:
            raise TraceError(f"max_rank is {self.max_rank}; it must be 1 or more, or left out")

    @property
    def contrasts(self) -> bool:
        """Whether words inside names are kept. The published policies have no such prompts."""
        return self.contrast and self.policy == "projection"

    @property
    def near(self) -> int:
        """Neighbours to keep of each concept. The published policies keep none."""
        return self.neighbours if self.policy == "projection" else 0

    def settled(self, concepts: Sequence[Concept]) -> ClosedFormConfig:
        """The options with values for these concepts in place of None.

        Only people have an eta of their own, and only where no energy is given.
        """
        energy, eta = ENERGY, 0.0
        if self.energy is None and self.takes("person", concepts):
            energy, eta = of_people(len(concepts)), PAST
        elif self.energy is None and self.takes("explicit", concepts):
            energy = EXPLICIT
        return replace(
            self,
            energy=energy if self.energy is None else self.energy,
            eta=eta if self.eta is None else self.eta,
        )

    def takes(self, kind: str, concepts: Sequence[Concept]) -> bool:
        """Whether the values of a kind are for these concepts.

        They are for concepts of that kind alone that give way to the neutral prompt, in an erasure that is
        not hardened.
        """
        kinds = {"steered" if c.parts or c.anchor else self.kind_of(c) for c in concepts}
        return kinds == {kind} and self.policy == "projection" and not self.robust

    def kind_of(self, concept: Concept) -> str:
        """The given kind, or the kind from the concept's name."""
        return concept.kind_and_why(self.kind)[0]
