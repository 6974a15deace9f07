"""Defaults that a model object carries.

The demo models use them: they know what they can draw, and are small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

#: attribute of the model object; all clones of a patcher share that object
ATTRIBUTE = "trace_defaults"


@dataclass(frozen=True)
class ModelDefaults:
    """A model's own defaults, for values that a caller leaves out.

    Attributes:
        keep_list: function from concepts to the keep list that replaces an empty one.
        contexts: additional prompt templates, by kind of concept.
        finetune: options of the finetune.
        sampling: options of :class:`~trace_core.backbones.sampling.SamplerConfig`.
        picture_size: pixels of the model's training pictures.
        vocabulary: names that the model knows, by kind and group, from which neighbours are chosen; None: the
            shipped vocabulary.
    """

    keep_list: Callable[[Sequence], list[str]]
    contexts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    finetune: Mapping = field(default_factory=dict)
    sampling: Mapping = field(default_factory=dict)
    picture_size: int = 256
    vocabulary: Mapping[str, Mapping[str, Sequence[str]]] | None = None


def defaults_of(patcher) -> ModelDefaults | None:
    """The model's own defaults, or None."""
    return getattr(getattr(patcher, "model", None), ATTRIBUTE, None)
