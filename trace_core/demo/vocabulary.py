"""The vocabulary of the demo models: objects, synonyms, styles, colours, and training captions."""

from __future__ import annotations

import random
from dataclasses import dataclass

#: The ten CIFAR-10 classes of the papers' object benchmark, then fourteen others. Each object has icon names
#: (the first that exists is drawn), synonyms and a super-category.
OBJECTS: dict[str, dict] = {
    "airplane": {"icons": ["airplane"], "synonyms": ["aircraft", "plane", "jet"], "kind": "vehicle"},
    "automobile": {"icons": ["automobile"], "synonyms": ["car", "motorcar", "sedan"], "kind": "vehicle"},
    "bird": {"icons": ["bird"], "synonyms": ["songbird", "avian", "fowl"], "kind": "animal"},
    "cat": {"icons": ["cat-face"], "synonyms": ["kitty", "feline", "kitten"], "kind": "animal"},
    "deer": {"icons": ["deer"], "synonyms": ["stag", "doe", "buck"], "kind": "animal"},
    "dog": {"icons": ["dog-face"], "synonyms": ["puppy", "hound", "canine"], "kind": "animal"},
    "frog": {"icons": ["frog"], "synonyms": ["toad", "bullfrog", "amphibian"], "kind": "animal"},
    "horse": {"icons": ["horse-face"], "synonyms": ["pony", "stallion", "steed"], "kind": "animal"},
    "ship": {"icons": ["ship"], "synonyms": ["vessel", "steamer", "liner"], "kind": "vehicle"},
    "truck": {"icons": ["delivery-truck"], "synonyms": ["lorry", "van", "pickup"], "kind": "vehicle"},
    "banana": {"icons": ["banana"], "synonyms": [], "kind": "food"},
    "apple": {"icons": ["red-apple"], "synonyms": [], "kind": "food"},
    "pizza": {"icons": ["pizza"], "synonyms": [], "kind": "food"},
    "umbrella": {"icons": ["umbrella-with-rain-drops", "umbrella"], "synonyms": [], "kind": "thing"},
    "snowman": {"icons": ["snowman"], "synonyms": [], "kind": "thing"},
    "house": {"icons": ["house"], "synonyms": [], "kind": "thing"},
    "guitar": {"icons": ["guitar"], "synonyms": [], "kind": "thing"},
    "sunflower": {"icons": ["sunflower"], "synonyms": [], "kind": "plant"},
    "mushroom": {"icons": ["mushroom"], "synonyms": [], "kind": "plant"},
    "octopus": {"icons": ["octopus"], "synonyms": [], "kind": "animal"},
    "penguin": {"icons": ["penguin"], "synonyms": [], "kind": "animal"},
    "rocket": {"icons": ["rocket"], "synonyms": [], "kind": "vehicle"},
    "butterfly": {"icons": ["butterfly"], "synonyms": [], "kind": "animal"},
    "cactus": {"icons": ["cactus"], "synonyms": [], "kind": "plant"},
}
CIFAR10 = list(OBJECTS)[:10]

#: Style name in captions -> icon set that draws it (all five draw all 24 objects).
STYLES: dict[str, str] = {
    "google style": "noto",
    "twitter style": "twemoji",
    "fluent style": "fluent-emoji-flat",
    "emojione style": "emojione",
    "android style": "noto-v1",
}

#: Background colours as sRGB bytes.
COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "red": (248, 176, 168),
    "orange": (252, 212, 160),
    "yellow": (250, 243, 160),
    "green": (178, 228, 178),
    "blue": (166, 208, 248),
    "purple": (214, 186, 242),
    "gray": (190, 192, 198),
}

#: Ways to introduce an object. ``{}`` is the place of the noun; it is empty in a caption without an object.
OPENINGS = [
    "a photo of a {}", "a picture of a {}", "an image of a {}", "a drawing of a {}", "an icon of a {}",
    "an emoji of a {}", "a photo of the {}", "a {}", "the {}", "{}",
]  # fmt: skip
BARE_OPENINGS = ["a photo", "a picture", "an image", "a drawing", "an icon", "an emoji", "something", ""]


@dataclass(frozen=True)
class Label:
    """Ground truth of one picture, as names."""

    object: str
    style: str
    colour: str


def noun(label: Label, rng: random.Random, synonyms: bool = True) -> str:
    """The object's name, or with probability 0.4 one of its synonyms, if it has any."""
    others = OBJECTS[label.object]["synonyms"]
    return rng.choice(others) if synonyms and others and rng.random() < 0.4 else label.object


def caption(label: Label, rng: random.Random) -> str:
    """A caption of all or part of a picture's content.

    The object is missing in 8 % of the captions, and 5 % have its super-category instead. "a photo", "a
    twitter style picture" and "an animal" therefore have a meaning for the model. They are the neutral
    prompts that an erasure steers to.
    """
    draw = rng.random()
    if draw < 0.08:
        text = rng.choice(BARE_OPENINGS)
    elif draw < 0.13:
        text = rng.choice(OPENINGS).format(OBJECTS[label.object]["kind"])
    else:
        text = rng.choice(OPENINGS).format(noun(label, rng))
    parts = []
    if rng.random() < 0.7:
        parts.append(rng.choice([", {}", " in {}"]).format(label.style))
    if rng.random() < 0.6:
        parts.append(rng.choice([" on a {} background", ", {} background"]).format(label.colour))
    rng.shuffle(parts)
    return (text + "".join(parts)).strip(" ,")
