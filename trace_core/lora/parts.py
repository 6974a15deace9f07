"""Parts of a file with several erasures: concepts, ranks and strength of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import torch

from ..errors import LoraError
from ..text.concepts import Concept, same
from ..text.kinds import KINDS

MAX_STRENGTH = 10.0
DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float16, torch.bfloat16, torch.float32)}


@dataclass(frozen=True)
class Part:
    """One edit in a file of several: adjacent ranks of every layer, and their concepts.

    Attributes:
        concepts: concepts erased together by this edit.
        slices: ``{module: ranks}``, without modules that the part does not change.
        strength: factor applied to its ``up`` since it was made; see
            :meth:`~trace_core.lora.ErasureLora.with_strengths`.
        kind: kind of the concepts, as in :data:`~trace_core.text.kinds.KINDS`, or auto.
        dtype: precision of ``up`` before the strength was changed; empty if it never was.
    """

    concepts: tuple[Concept, ...]
    slices: Mapping[str, slice]
    strength: float = 1.0
    kind: str = "auto"
    dtype: str = ""

    @property
    def targets(self) -> list[str]:
        return [c.target for c in self.concepts]

    def names(self, targets: Sequence[str]) -> list[bool]:
        """Whether each of the part's concepts is among ``targets``."""
        return [any(same(own, t) for t in targets) for own in self.targets]


def entry_of(concept) -> list:
    """A concept in the metadata: target, anchor and weight, then strength, parts and kind where needed."""
    more = (
        [concept.strength, list(concept.parts)]
        if concept.parts
        else [concept.strength]
        if concept.strength != 1
        else []
    )
    if concept.kind_given:
        more = [concept.strength, list(concept.parts), concept.kind_given]
    return [concept.target, concept.anchor, concept.weight, *more]


def parts_entry(part: Part, modules: Sequence[str]) -> dict:
    """A part as an entry of ``trace.parts``.

    ``ranks`` lists its ranks per module in alphabetical order, or is one number if all are equal.
    """
    ranks = [s.stop - s.start if (s := part.slices.get(m)) else 0 for m in modules]
    out = {
        "concepts": [entry_of(c) for c in part.concepts],
        "strength": part.strength,
        "ranks": ranks[0] if len(set(ranks)) == 1 else ranks,
    }
    return out | {k: v for k, v in (("kind", part.kind), ("dtype", part.dtype)) if v not in ("", "auto")}


def read_part(entry, where: str, modules: int) -> tuple[Part, list[int]]:
    """A part without its slices, and its ranks by module; the inverse of :func:`parts_entry`."""
    if not isinstance(entry, dict):
        raise LoraError(f"{where} is not a part; make the file again")
    given = entry.get("concepts")
    concepts, strength = read_concepts(given), entry.get("strength", 1.0)
    if not isinstance(given, list) or len(concepts) != len(given):
        raise LoraError(f"{where} has no concepts of the form [target, anchor, weight]; make the file again")
    if not _is_number(strength) or abs(strength) > MAX_STRENGTH:
        raise LoraError(f"{where} has the strength {str(strength)[:20]}; it must lie between -10 and 10")
    ranks = entry.get("ranks")
    counts = [ranks] * modules if isinstance(ranks, int) else ranks
    fits = isinstance(counts, list) and len(counts) == modules
    if not fits or not all(
        isinstance(r, int) and not isinstance(r, bool) and 0 <= r < 1 << 24 for r in counts
    ):
        raise LoraError(f"{where} does not give valid ranks; make the file again")
    kind, dtype = entry.get("kind", "auto"), entry.get("dtype", "")
    if kind not in ("auto", *KINDS) or dtype not in ("", *DTYPES):
        raise LoraError(f"{where} has an unknown kind or precision; make the file again")
    return Part(tuple(concepts), {}, float(strength), kind, dtype), counts


def erase_the_same(a: Part, b: Part) -> bool:
    """Whether two whole files edit the same concepts, both at strength 1."""
    full_strength = a.strength == b.strength == 1.0
    return full_strength and all(a.names(b.targets)) and all(b.names(a.targets))


def with_offset(ranks: slice, by: int) -> slice:
    return slice(ranks.start + by, ranks.stop + by)


def check_strengths(parts: Sequence[Part], strengths: Mapping[str, float]) -> list[float]:
    """The new strength of every part. A part that is not named keeps its own.

    Raises:
        LoraError: as :meth:`~trace_core.lora.ErasureLora.with_strengths`.
    """
    for target, value in strengths.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not abs(value) <= MAX_STRENGTH:
            raise LoraError(
                f"the strength of '{target[:60]}' is {str(value)[:20]}; it must lie between -10 and 10"
            )
    check_named(parts, list(strengths), "given a strength")
    out = []
    for part in parts:
        given = {float(v) for t, v in strengths.items() if any(part.names([t]))}
        if len(given) > 1:
            raise LoraError(
                f"{listed(part.targets)} were erased in one edit, which has one strength, not {sorted(given)}"
            )
        out.append(given.pop() if given else part.strength)
    return out


def check_named(parts: Sequence[Part], targets: Sequence[str], verb: str) -> None:
    """Check that every target is a concept of a part, and that no part is named incompletely.

    Raises:
        LoraError: naming the concept and the available ones.
    """
    known = list(dict.fromkeys(t for part in parts for t in part.targets))
    for target in targets:
        if not any(same(target, other) for other in known):
            raise LoraError(
                f"'{target[:60]}' is not erased by this file; it erases {listed(known) or 'no named concept'}"
            )
    for part in parts:
        named = part.names(targets)
        if any(named) and not all(named):
            one = next(t for t, n in zip(part.targets, named) if n)
            rest = listed([t for t, n in zip(part.targets, named) if not n])
            raise LoraError(
                f"'{one}' was erased together with {rest}, in one edit, and cannot be {verb} alone; name "
                f"them all, or erase them one by one and fuse the files. This file erases {listed(known)}"
            )


def listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{n[:60]}'" for n in names[:12])
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def read_concepts(entries) -> list[Concept]:
    """Concepts of ``[[target, anchor, weight, ...], ...]``. Invalid entries are skipped."""
    out = []
    for entry in entries if isinstance(entries, list) else []:
        form = isinstance(entry, list) and len(entry) >= 3 and all(isinstance(t, str) for t in entry[:2])
        if form and entry[0].strip() and _is_number(entry[2]) and entry[2] > 0:
            both = entry[4] if len(entry) > 4 else []
            combined = (
                isinstance(both, list)
                and len(both) == 2
                and all(isinstance(t, str) and t.strip() for t in both)
            )
            kind = entry[5] if len(entry) > 5 and entry[5] in KINDS else ""
            out.append(Concept(*entry[:3], parts=tuple(both) if combined else (), kind_given=kind))
    return out


def _is_number(value) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) < 1e9
        and math.isfinite(value)
    )
