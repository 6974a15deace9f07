"""Checks that a CLIP fits a model, before any work."""

from __future__ import annotations

from torch import Tensor

from ..errors import ConceptError
from .base import POOLED


def check_clip(backbone, clip) -> None:
    """Refuse a missing text encoder, and one with rows or a pooled vector that do not fit the model.

    Args:
        backbone: the model's backbone.
        clip: a ComfyUI CLIP, or another object in its place.

    Raises:
        ConceptError: naming both widths and the remedy.
    """
    if not hasattr(clip, "tokenize"):
        what = (
            "no CLIP is connected, or its loader found none in the file"
            if clip is None
            else f"{type(clip).__name__} is not a CLIP"
        )
        raise ConceptError(
            f"{what}; connect the CLIP that belongs to this model, from a CLIP loader if the checkpoint has "
            "none"
        )
    rows, pooled = clip.encode_from_tokens(clip.tokenize(""), return_pooled=True)[:2]
    check_width(rows[0], backbone.text_width)
    if backbone.width(POOLED) is None:
        return
    if pooled is None:
        raise ConceptError(
            "this CLIP returns no pooled vector, which the model needs; connect the CLIP of the same model"
        )
    if pooled.shape[-1] != backbone.width(POOLED):
        raise ConceptError(
            f"the text encoder gives a pooled vector of {pooled.shape[-1]} numbers, but the model reads "
            f"{backbone.width(POOLED)}; connect the CLIP that belongs to this model"
        )


def check_width(rows: Tensor, width: int) -> None:
    """Refuse rows ``[n, d]`` of another width than the model reads.

    Raises:
        ConceptError: naming both widths.
    """
    if rows.shape[1] != width:
        raise ConceptError(
            f"the text encoder gives rows of {rows.shape[1]} numbers, but the model reads {width}; connect "
            "the CLIP that belongs to this model"
        )
