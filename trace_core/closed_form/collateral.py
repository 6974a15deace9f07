"""How much of what is done to two things together is done to each of them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from ..text.concepts import Concept
from ..text.encoding import TextEncoder
from ..text.prompts import prompt_pairs, separating_prompts
from ..text.templates import TEMPLATES
from .edit import ContextEdit

PROMPTS = 12  #: of each kind that are looked at
LIMIT = 0.6  #: on the demo models nine of ten others with the second part stay right at 0.5, a third at 0.8


def collateral_change(
    edit: ContextEdit,
    encoder: TextEncoder,
    concept: Concept,
    keep: Sequence[str],
    contexts: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """``|dC|`` of prompts with one part of a combined concept over that of prompts with both, by part.

    dC is the change of the rows, ``[tokens, d]``, in the Frobenius norm, a mean over prompts. Near 1 the
    text's rows do not say whether the other part is there, and no edit of what reads them can erase the two
    together alone.
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
