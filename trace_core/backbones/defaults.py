"""What a model object says of itself: the demo models know what they can draw, and are small."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

#: attribute of the model object, which all clones of its patcher share
ATTRIBUTE = "trace_defaults"


@dataclass(frozen=True)
class ModelDefaults:
    """Values that a model has of its own, taken where a caller gives none.

    Attributes:
        keep_list: concepts to the keep list that stands for an empty one.
        contexts: more prompt templates, by kind of concept.
        finetune: options of the finetune.
        picture_size: pixels of the pictures that the model was trained on.
    """

    keep_list: Callable[[Sequence], list[str]]
    contexts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    finetune: Mapping = field(default_factory=dict)
    picture_size: int = 256


def defaults_of(patcher) -> ModelDefaults | None:
    """The model's own values, or None for a model that has none."""
    return getattr(getattr(patcher, "model", None), ATTRIBUTE, None)
