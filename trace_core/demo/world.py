"""The demo models' classes, and defaults for their erasures."""

from __future__ import annotations

from collections.abc import Sequence

from ..backbones.defaults import ModelDefaults
from ..text.concepts import Concept, same
from .vocabulary import COLOURS, OBJECTS, STYLES

#: Additional prompt templates of the demo world by kind of concept; ``{}`` is the place of the concept.
CONTEXTS = {
    "object": (
        *(f"a photo of a {{}}, {style}" for style in STYLES),
        *(f"a {{}} on a {colour} background" for colour in list(COLOURS)[::3]),
        "a picture of a {} in google style, red background",
    ),
    "style": (
        *(f"a photo of a {name}, {{}}" for name in list(OBJECTS)[::2]),
        "a picture in {} on a blue background",
        "a drawing of a dog on a red background, {}",
    ),
}


#: Finetune options that differ from a real model's; small networks learn at higher rates
FINETUNE = {
    "demo-sd": {"width": 64, "height": 64, "lr_scale": 10.0, "contexts": CONTEXTS},
    "demo-flux": {"width": 64, "height": 64, "lr_scale": 4.0, "contexts": CONTEXTS},
}


#: What the demo models know by name, by kind
VOCABULARY = {
    "object": {"classes": tuple(OBJECTS)},
    "style": {"classes": tuple(STYLES), "backgrounds": tuple(f"{c} background" for c in COLOURS)},
}


def keep_list(concepts: Sequence[Concept]) -> list[str]:
    """Everything that the demo models can draw, without the erased classes.

    An erased synonym removes its class.

    Both parts of a combined concept stay in the list and are kept separately (see
    :func:`trace_core.closed_form.policies.keep_prompts`).
    """
    erased = [c.target for c in concepts]

    def gone(name: str) -> bool:
        words = (name, *OBJECTS.get(name, {"synonyms": ()})["synonyms"])
        return any(same(word, target) for word in words for target in erased)

    return [name for name in (*OBJECTS, *STYLES, *(f"{c} background" for c in COLOURS)) if not gone(name)]


def defaults(name: str) -> ModelDefaults:
    """The defaults of a demo model."""
    sampling = {"cfg": 3.0} if name == "demo-sd" else {}
    return ModelDefaults(keep_list, CONTEXTS, FINETUNE[name], sampling, FINETUNE[name]["width"], VOCABULARY)
