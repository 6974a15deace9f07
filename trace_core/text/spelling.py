"""Characters that a tokenizer cannot represent, and its padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..errors import ConceptError

if TYPE_CHECKING:
    from .concepts import Concept
    from .encoding import TextEncoder

#: Private-use characters, which no vocabulary contains. A byte-level tokenizer gives each its own ids. Any
#: other tokenizer gives both the same ids, those of the unknown token.
PROBES = ("\ue000", "\uf8ff")


def same_length(clip, prompt: str):
    """Tokens of a prompt for a batch, with T5 padded to the tokenizer's own length.

    *T5TokenizerOptions* can switch padding off or add padding to every prompt. Prompts of different lengths
    then have different numbers of rows, and one batch cannot hold them.
    """
    options = getattr(clip, "tokenizer_options", None) or {}
    own = getattr(getattr(getattr(clip, "tokenizer", None), "t5xxl", None), "min_length", None)
    if own is None or not any(name.startswith("t5xxl_min") for name in options):
        return clip.tokenize(prompt)
    length = max(own, options.get("t5xxl_min_length", 0))
    return clip.tokenize(prompt, tokenizer_options={"t5xxl_min_length": length, "t5xxl_min_padding": 0})


def unknown_ids(encoder: TextEncoder) -> tuple[int, ...]:
    """Ids of a name that the tokenizer cannot represent; the last one is the unknown token's.

    Empty if the tokenizer represents every character.
    """
    first, second = (encoder.content_ids(probe) for probe in PROBES)
    return tuple(first) if first == second else ()


def unspelled(encoder: TextEncoder, names: Iterable[str]) -> dict[str, bool]:
    """Names with characters unknown to the row-making tokenizer. The value is True if all are unknown."""
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
    """Refuse targets and anchors of which the tokenizer knows no character.

    Args:
        remedy: a further remedy for the message.

    Returns:
        Warnings about names that are known in part.

    Raises:
        ConceptError: naming the first such name.
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
            f"the T5 text encoder does not know every character of '{name}'; names that differ from it only "
            "in the unknown characters are erased with it, so write the name in Latin letters as well"
        )
    return out


def alignment_warnings(encoder: TextEncoder) -> list[str]:
    """Warnings about names that the encoder did not find in the tokens of a prompt."""
    return [
        f"'{name}' cannot be found in the tokens of every prompt with it, so all of their words count "
        "as the concept; write it as a word of its own"
        for name in encoder.unaligned
    ]
