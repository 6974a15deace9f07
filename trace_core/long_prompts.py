"""Prompts as long as people write them, with the concept early, in the middle and late.

A text encoder's rows depend on where a word stands and on what stands around it: what was taken from "a photo of a cat" is not all
of what "masterpiece, intricate details, 8k, ..., a photo of a cat" carries. These prompts are made to measure, by tokens: up to the
length that the encoder reads at once. Which tags they have follows from their number alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from .concepts import fill
from .text import TextEncoder

LONGEST = 75  #: tokens of content; T5 reads more, but people seldom write more
SHARES = (0.5, 0.75, 1.0)  #: of that length
PLACES = (0.0, 0.5, 1.0)  #: of the tags that stand before the concept

#: How a prompt of tags names a concept, by kind; what is named by itself as well as in a phrase.
OPENINGS = {"object": ("a photo of a {}", "{}"), "style": ("a photo, {}", "{}"), "person": ("a photo of {}", "{}"),
            "explicit": ("a photo of {}", "{}")}  # fmt: skip

TAGS = (
    "masterpiece", "intricate", "8k", "soft light", "award winning", "trending on artstation", "depth of field", "hdr",
    "vivid colors", "cinematic", "film grain", "beautiful composition", "shot on a full frame camera", "golden hour",
    "in the middle of a quiet afternoon", "smooth", "elegant", "rim lighting", "wide angle", "concept art",
)  # fmt: skip


def long_templates(kind: str, encoder: TextEncoder, names: Sequence[str]) -> list[str]:
    """Templates for every share and place that any of the names fits into; none, where a name is nearly as long as a prompt.

    Args:
        encoder: whose tokens are counted; nothing is encoded.
        names: what will stand in them.
    """
    content = min(len(encoder.empty_ids), LONGEST + 2) - 2
    longest = max(names, key=encoder.length, default="")
    room = content - encoder.length(longest)
    lengths = {tag: encoder.length(f", {tag}") for tag in TAGS}
    out = []
    for number, (share, place) in enumerate((s, p) for s in SHARES for p in PLACES):
        opening = OPENINGS[kind][number % len(OPENINGS[kind])]
        tags, left = [], share * room - encoder.length(fill(opening, ""))
        for i in range(len(TAGS)):
            tag = TAGS[(number * 7 + i) % len(TAGS)]
            if lengths[tag] <= left:
                tags.append(tag)
                left -= lengths[tag]
        while tags and encoder.length(fill(_template(tags, opening, place), longest)) > content - 1:  # one may split with a comma
            tags.pop()
        if tags:
            out.append(_template(tags, opening, place))
    return list(dict.fromkeys(out))


def _template(tags: Sequence[str], opening: str, place: float) -> str:
    before = round(place * len(tags))
    return ", ".join([*tags[:before], opening, *tags[before:]])
