"""Kept things that an erasure leaves exactly as they are, and where that is at odds with erasing.

The rows of the kept things are constraints of the projection: ``dW k = 0``. Hard constraints on keep rows are
those of Double Projections (arXiv 2604.10032) and SPEED (arXiv 2503.07392).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbones.base import CONTEXT, POOLED
from ..text.concepts import Concept
from ..text.encoding import FIRST_EOT, SUBJECT, TextEncoder, align
from ..text.kinds import kinds_of_kept
from ..text.prompts import prompt_pairs
from ..text.templates import TEMPLATES, fill

#: Templates of each kept thing whose rows are constraints. Other prompts share almost all directions.
PROMPTS = 2
#: Largest share of the rows' dimensions that constraints take. An erasure needs the others.
SHARE = 0.25
ROUNDING = 1e-6  #: directions with a smaller share of the largest singular value are rounding
LITTLE = 0.02  #: share of a concept outside of the constraints below which to warn


@dataclass(frozen=True)
class ExactRows:
    """Rows of kept things in one text stream.

    Attributes:
        rows: ``[n, d]`` of each thing.
    """

    rows: Mapping[str, Tensor]

    def directions(self) -> tuple[Tensor, float]:
        """Orthonormal constraints ``[k, d]``, and the largest share of a row that they leave out.

        Above :data:`SHARE` of the dimensions, only the leading directions are constraints. The rest of every
        row is then at most the next singular value (Double Projections, section 3).
        """
        rows = torch.cat(list(self.rows.values())).double()
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
        _, values, right = torch.linalg.svd(rows, full_matrices=False)
        count = min(int((values > ROUNDING * values[0]).sum()), max(1, int(SHARE * rows.shape[1])))
        left_out = rows - rows @ right[:count].T @ right[:count]
        return right[:count], left_out.norm(dim=1).max().item()


def exact_rows(
    encoder: TextEncoder, keep: Sequence[str], pooled_width: int | None, erased: Sequence[str] = ()
) -> dict[str, ExactRows]:
    """The rows of kept things by text stream: their own words, and the prompt's end.

    ``pooled_width``: of the pooled vector that the model reads; None if it reads none. ``erased``: kinds of
    the erased concepts.
    """
    context, pooled = {}, {}
    for entry, kind in zip(keep, kinds_of_kept(keep, erased)):
        templates = TEMPLATES[kind][:PROMPTS]
        found = list(encoder.encode_all((fill(t, entry), entry) for t in templates))
        context[entry] = torch.cat([r.embeddings[r.rows(SUBJECT) + r.rows(FIRST_EOT)] for r in found])
        if pooled_width:
            pooled[entry] = torch.stack([r.pooled[:pooled_width] for r in found])
    return {CONTEXT: ExactRows(context)} | ({POOLED: ExactRows(pooled)} if pooled else {})


def conflicts(
    encoder: TextEncoder, concepts: Sequence[Concept], kinds: Sequence[str], exact: ExactRows
) -> list[dict]:
    """How near each concept is to what is kept exactly.

    An edit that leaves the constraints alone acts on the part of a concept's difference rows outside of them.
    The smaller that part, the larger is the edit, and the more it changes other rows.

    Returns:
        for each concept ``concept``, ``keep``: the nearest kept thing, ``angle`` between both in degrees, and
        ``outside``: the share of the difference rows' squares outside of all constraints.
    """
    everything, _ = exact.directions()
    bases = {entry: ExactRows({entry: rows}).directions()[0] for entry, rows in exact.rows.items()}
    out = []
    for concept, kind in zip(concepts, kinds):
        if concept.parts:
            continue
        prompt, subject, other, instead = prompt_pairs(concept, TEMPLATES[kind])[0]
        pairs = align(encoder.encode(prompt, subject), encoder.encode(other, instead))
        used = [i for i, group in enumerate(pairs.groups) if group in (SUBJECT, FIRST_EOT)]
        rows = (pairs.erase[used] - pairs.want[used]).double()
        total = rows.square().sum().clamp_min(1e-12)
        shares = {e: ((rows @ b.T).square().sum() / total).item() for e, b in bases.items()}
        nearest = max(shares, key=shares.get)
        outside = 1 - ((rows @ everything.T).square().sum() / total).item()
        angle = math.degrees(math.acos(min(1.0, shares[nearest] ** 0.5)))
        out.append({"concept": concept.target, "keep": nearest, "angle": angle, "outside": max(outside, 0.0)})
    return out


def conflict_warnings(found: Sequence[Mapping]) -> list[str]:
    """Warnings about concepts that hardly differ from what is kept exactly."""
    return [
        f"only {c['outside']:.1%} of what tells '{c['concept']}' from its counterpart lies outside of what "
        f"is kept exactly, so the edit is large or incomplete; '{c['keep']}' is nearest, at {c['angle']:.0f} "
        "degrees: take it off the keep list, or keep the list by weight"
        for c in found
        if c["outside"] < LITTLE
    ]


def exact_notes(keep: Sequence[str], concepts: Sequence[Concept]) -> list[str]:
    """What exact keeping leaves to weights."""
    combined = [c.target for c in concepts if c.parts]
    return [
        *([] if keep else ["no keep list is given, so everything else is kept by weight, not exactly"]),
        *(
            f"the erasure of '{name}' keeps by weight, not exactly, as those of all combinations"
            for name in combined
        ),
    ]
