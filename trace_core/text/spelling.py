"""What a tokenizer can spell, and how it pads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..errors import ConceptError

if TYPE_CHECKING:
    from .concepts import Concept
    from .encoding import TextEncoder

#: Private-use characters. No vocabulary has them: one that spells by bytes gives each ids of its own, one
#: that does not gives both the same, which are those of everything that it does not know.
PROBES = ("\ue000", "\uf8ff")


def pad_id(clip, tower: str) -> int:
    """The padding id of a tower's tokenizer, for prompts that have none (stock *T5TokenizerOptions* at its
    defaults).
    """
    tokenizer = getattr(getattr(clip, "tokenizer", None), tower, None)
    pad = getattr(tokenizer, "pad_token", None)
    return pad if isinstance(pad, int) else 0


def same_length(clip, prompt: str):
    """Tokens of a prompt for a batch of several, padded by T5 to the tokenizer's own length.

    *T5TokenizerOptions* can switch padding off, or add pads to every prompt: then prompts of different
    lengths have different numbers of rows, which one batch cannot hold.
    """
    options = getattr(clip, "tokenizer_options", None) or {}
    own = getattr(getattr(getattr(clip, "tokenizer", None), "t5xxl", None), "min_length", None)
    if own is None or not any(name.startswith("t5xxl_min") for name in options):
        return clip.tokenize(prompt)
    length = max(own, options.get("t5xxl_min_length", 0))
    return clip.tokenize(prompt, tokenizer_options={"t5xxl_min_length": length, "t5xxl_min_padding": 0})


def unknown_ids(encoder: TextEncoder) -> tuple[int, ...]:
    """Ids of a name that the tokenizer cannot spell, the last of them the unknown token's; none where it
    spells everything.
    """
    first, second = (encoder.content_ids(probe) for probe in PROBES)
    return tuple(first) if first == second else ()


def unspelled(encoder: TextEncoder, names: Iterable[str]) -> dict[str, bool]:
    """Names of which the tokenizer that makes the rows does not know something, and whether it knows
    nothing of them.
    """
    unknown = unknown_ids(encoder)
    if not unknown:
        return {}
    found = {}
    for name in filter(None, names):
        ids = encoder.content_ids(name)
        if unknown[-1] in ids:
            found[name] = all(i in unknown for i in ids)
    return found


def check_spelling(encoder: TextEncoder, concepts: Sequence[Concept], remedy: str = "") -> list[str]:
    """Refuse to erase, or to steer to, what the tokenizer does not know at all.

    Args:
        remedy: what else can be done, for the message.

    Returns:
        Warnings, of names that are known in part.

    Raises:
        ConceptError: naming the first that is not known.
    """
    out = []
    for name, nothing in unspelled(
        encoder, dict.fromkeys(n for c in concepts for n in (*(c.parts or (c.target,)), c.anchor))
    ).items():
        if nothing:
            raise ConceptError(
                f"the T5 text encoder knows no character of '{name}' and reads it like every other name it "
                f"cannot spell; erasing it would erase all of them. Write it in Latin letters{remedy}"
            )
        out.append(
            f"the T5 text encoder does not know every character of '{name}'; names that differ from it in "
            "those alone are erased with it, so write it in Latin letters as well"
        )
    return out
