"""Whether a text encoder belongs to a model: asked before any work, by everything that encodes prompts for a model."""

from __future__ import annotations

from torch import Tensor

from .backbones import Backbone
from .backbones.base import CONTEXT, POOLED
from .errors import ConceptError, ModelError


def check_clip(backbone: Backbone, clip) -> None:
    """That there is a text encoder, and that it gives what the model reads.

    Raises:
        ModelError: if there is none.
        ConceptError: if its rows have another width than the model's, or it gives no pooled vector where the model reads one.
    """
    if clip is None or getattr(clip, "cond_stage_model", clip) is None:
        raise ModelError("there is no text encoder: this checkpoint has none; load the CLIP that belongs to the model by itself, and connect it")
    rows, pooled = clip.encode_from_tokens(clip.tokenize(""), return_pooled=True)
    check_width(rows[0], backbone)
    if backbone.width(POOLED) and pooled is None:
        raise ConceptError("this CLIP returns no pooled vector, which the model needs; connect the CLIP of the same model")


def check_width(rows: Tensor, backbone: Backbone) -> None:
    """That rows ``[n, d]`` of a text encoder are those that the model reads.

    Raises:
        ConceptError: naming both widths.
    """
    if rows.shape[1] != backbone.width(CONTEXT):
        raise ConceptError(
            f"the text encoder gives rows of {rows.shape[1]} numbers, the model reads {backbone.width(CONTEXT)}; "
            "connect the CLIP that belongs to this model"
        )
