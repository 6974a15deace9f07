"""Collateral change: how much the erasure of a combination changes each of its parts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from ..text.concepts import Concept
from ..text.encoding import TextEncoder
from ..text.prompts import prompt_pairs, separating_prompts
from ..text.templates import TEMPLATES
from .edit import ContextEdit

PROMPTS = 12  #: measured prompts of each group
LIMIT = (
    0.6  #: demo models: of prompts with the second part alone, nine of ten stay right at 0.5, a third at 0.8
)


def collateral_change(
    edit: ContextEdit,
    encoder: TextEncoder,
    concept: Concept,
    keep: Sequence[str],
    contexts: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """Change of prompts with one part of a combined concept, relative to prompts with both, by part.

    The change is the mean over prompts of ``||dC||_F``, dC the change of the rows ``[tokens, d]``. Near 1,
    the rows hardly show whether the other part is present. No edit of layers that read only these rows can
    then erase the combination alone.
    """

    def change(prompts: Sequence[str]) -> float:
        chosen = prompts[:: -(-len(prompts) // PROMPTS)]
        rows = [r.embeddings.double() for r in encoder.encode_all((p, "") for p in chosen)]
        return fmean((edit.map(r) - r).norm().item() for r in rows)

    together = change([prompt for prompt, *_ in prompt_pairs(concept, TEMPLATES[concept.kind])])
    alone = separating_prompts(concept, keep, contexts)
    return {
        part: change([p for p, entry in alone if entry == part]) / max(together, 1e-12)
        for part in concept.parts
    }
