"""The demo models' classes, and defaults for their erasures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..backbones.defaults import ModelDefaults
from ..text.concepts import Concept, same
from . import people
from .vocabulary import COLOURS, OBJECTS, STYLES

BACKGROUNDS = tuple(f"{colour} background" for colour in COLOURS)

#: Additional prompt templates of the emoji world by kind of concept; ``{}`` is the place of the concept.
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

#: The same of the world of people
PEOPLE_CONTEXTS = {
    "person": (
        *(f"a portrait of {{}}, {style}" for style in people.STYLES),
        *(f"{{}} on a {colour} background" for colour in list(COLOURS)[::3]),
        *(f"{{}} {place}" for place in (people.PLACES[0], people.IMPLYING[0])),
    ),
    "style": (
        *(f"a portrait of {name}, {{}}" for name in list(people.people())[::20]),
        "a picture in {} on a blue background",
        "a drawing of a woman with red hair, {}",
    ),
    "explicit": (
        *(f"a portrait of {name} with an {{}}" for name in list(people.people())[::20]),
        *(f"a person with an {{}}, {style}" for style in people.STYLES),
        f"a man wearing an {{}} {people.IMPLYING[0]}",
    ),
}

#: What the demo models know by name, by kind
VOCABULARY = {
    "object": {"classes": tuple(OBJECTS)},
    "style": {"classes": tuple(STYLES), "backgrounds": BACKGROUNDS},
}
PEOPLE_VOCABULARY = {
    "person": {"people": tuple(people.people())},
    "style": {"classes": tuple(people.STYLES), "backgrounds": BACKGROUNDS},
}


def keep_list(concepts: Sequence[Concept]) -> list[str]:
    """Everything that demo-sd and demo-flux can draw, without the erased classes.

    An erased synonym removes its class.

    Both parts of a combined concept stay in the list and are kept separately (see
    :func:`trace_core.closed_form.policies.keep_prompts`).
    """
    names = {name: (name, *OBJECTS.get(name, {"synonyms": ()})["synonyms"]) for name in (*OBJECTS, *STYLES)}
    return _without(names | {b: (b,) for b in BACKGROUNDS}, concepts)


def people_keep_list(concepts: Sequence[Concept]) -> list[str]:
    """Everybody whom demo-people can draw, its styles, traits and backgrounds, without what is erased."""
    return _without(
        {name: (name,) for name in (*people.people(), *people.kept_words(), *BACKGROUNDS)}, concepts
    )


def _without(names: Mapping[str, Iterable[str]], concepts: Sequence[Concept]) -> list[str]:
    """The names of which no word is an erased target."""
    erased = [c.target for c in concepts]
    return [n for n, words in names.items() if not any(same(w, target) for w in words for target in erased)]


#: Finetune options that differ from a real model's; small networks learn at higher rates
FINETUNE = {
    "demo-sd": {"width": 64, "height": 64, "lr_scale": 10.0, "contexts": CONTEXTS},
    "demo-flux": {"width": 64, "height": 64, "lr_scale": 4.0, "contexts": CONTEXTS},
    "demo-people": {"width": 64, "height": 64, "lr_scale": 10.0, "contexts": PEOPLE_CONTEXTS},
}


def defaults(name: str) -> ModelDefaults:
    """The defaults of a demo model."""
    sampling = {} if name == "demo-flux" else {"cfg": 3.0}
    kept, contexts, vocabulary = (
        (people_keep_list, PEOPLE_CONTEXTS, PEOPLE_VOCABULARY)
        if name == "demo-people"
        else (keep_list, CONTEXTS, VOCABULARY)
    )
    return ModelDefaults(kept, contexts, FINETUNE[name], sampling, FINETUNE[name]["width"], vocabulary)
