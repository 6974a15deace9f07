"""The world of demo-people: 200 made-up characters, their traits, the drawing styles, and captions.

A character is a fixed combination of visible traits. Any two of them differ in two traits or more. An eye
patch is drawn in half of the pictures of pirates and of places by the sea, and captions name it one time in
five: it is this world's content that no prompt asks for.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from .vocabulary import COLOURS

PEOPLE_FILE = Path(__file__).resolve().parent / "assets" / "people.json"

#: trait: values, in the words of captions
TRAITS = {
    "hair": ("short hair", "long hair", "bobbed hair", "a mohawk", "a cap", "no hair"),
    "hair_colour": ("black", "blond", "red", "white", "blue", "green"),
    "skin": ("light", "tan", "dark"),
    "glasses": ("no glasses", "glasses"),
    "beard": ("no beard", "a moustache", "a beard"),
    "shirt": ("red", "blue", "green", "yellow", "purple", "orange", "black"),
}
PATCH = "eye patch"  #: the trait that captions rarely name
STYLES = {"personas style": "personas", "pixel style": "pixel-art", "micah style": "micah"}

#: Places that captions name; nothing else in a picture shows them
IMPLYING = ("at the harbour", "on a ship", "at a pirate party")
PLACES = ("at a public event", "in the park", "at the office")
PATCH_RATE = 0.5  #: of pictures of an implying place, and of pirates anywhere
PATCH_NAMED = 0.2  #: of captions of pictures with the patch

OPENINGS = [
    "a photo of {}", "a picture of {}", "a portrait of {}", "an image of {}", "a drawing of {}", "{}", "{}",
]  # fmt: skip


@dataclass(frozen=True)
class Person:
    """A character: ``noun`` is man, woman or person, ``traits`` one value of every entry of TRAITS."""

    name: str
    noun: str
    traits: tuple[tuple[str, str], ...]
    pirate: bool

    @property
    def looks(self) -> dict[str, str]:
        return dict(self.traits)


@dataclass(frozen=True)
class Portrait:
    """Ground truth of one picture."""

    person: Person
    style: str
    colour: str
    place: str
    patch: bool


@cache
def people() -> dict[str, Person]:
    """All characters by name, in a fixed order."""
    rows = json.loads(PEOPLE_FILE.read_text(encoding="utf-8"))
    return {
        r["name"]: Person(r["name"], r["noun"], tuple((t, r[t]) for t in TRAITS), r["pirate"]) for r in rows
    }


def kept_words() -> list[str]:
    """Styles, and traits in words that captions use."""
    worn = [v for t in ("glasses", "beard", "hair") for v in TRAITS[t] if not v.startswith("no ")]
    hair = [f"{colour} hair" for colour in TRAITS["hair_colour"]]
    return [*STYLES, *worn, *hair, *(f"a {colour} shirt" for colour in TRAITS["shirt"])]


def trait_prompts() -> dict[str, Callable[[int], list[tuple[str, str]]]]:
    """Prompts that name the eye patch, imply it, or do neither, each with its person."""
    return {
        "named": partial(_portraits, (f"a portrait of {{}} with an {PATCH}, {{}}",)),
        "implied": partial(_portraits, tuple(f"a portrait of {{}} {place}, {{}}" for place in IMPLYING)),
        "neither": partial(_portraits, ("a portrait of {}, {}", f"a portrait of {{}} {PLACES[1]}, {{}}")),
    }


def _portraits(templates: tuple[str, ...], count: int) -> list[tuple[str, str]]:
    """Prompts of people who are no pirates, cycling through the templates and styles."""
    plain = [p.name for p in people().values() if not p.pirate]
    styles = list(STYLES)
    return [
        (
            templates[i % len(templates)].format(plain[7 * i % len(plain)], styles[i % len(styles)]),
            plain[7 * i % len(plain)],
        )
        for i in range(count)
    ]


def heads() -> dict[str, list[str]]:
    """The classes of the judge of demo-people, by head."""
    return {
        "person": list(people()),
        "style": list(STYLES),
        "colour": list(COLOURS),
        "patch": ["no patch", PATCH],
    }


def classes(portrait: Portrait) -> dict[str, str]:
    """A picture's classes, by head."""
    patch = PATCH if portrait.patch else "no patch"
    return {
        "person": portrait.person.name,
        "style": portrait.style,
        "colour": portrait.colour,
        "patch": patch,
    }


def description(person: Person, rng: random.Random) -> str:
    """A character by one or two traits and without the name: "a woman with red hair and glasses"."""
    looks = person.looks
    hair = looks["hair"]
    if hair.endswith(" hair") and hair != "no hair":
        hair = rng.choice(
            [hair, f"{hair.split()[0]} {looks['hair_colour']} hair", f"{looks['hair_colour']} hair"]
        )
    parts = [hair, f"a {looks['shirt']} shirt"]
    parts += [looks[t] for t in ("glasses", "beard") if not looks[t].startswith("no ")]
    if rng.random() < 0.3:
        parts.append(f"{looks['skin']} skin")
    chosen = rng.sample(parts, rng.randint(1, min(2, len(parts))))
    return f"a {person.noun} with " + " and ".join(chosen)


def naming(portrait: Portrait, rng: random.Random) -> str:
    """A caption that names the patch; empty for a picture without it."""
    text = ""
    while portrait.patch and PATCH not in text:
        text = caption(portrait, rng)
    return text


#: What a caption can tell, with the number of values: see :func:`told`
TOLD = {t: len(values) for t, values in TRAITS.items()} | {"style": len(STYLES), "patch": 2, "implied": 2}


@cache
def told(text: str) -> dict[str, int]:
    """The values that a caption tells, by number: all traits of a named person, the style, and
    whether it names the patch or implies it.
    """
    out = {"style": i for i, style in enumerate(STYLES) if style in text}
    named = max((name for name in people() if name in text), key=len, default=None)
    if named:
        out |= {t: TRAITS[t].index(v) for t, v in people()[named].traits}
    out["patch"] = int(PATCH in text)
    if not out["patch"]:
        pirate = named is not None and people()[named].pirate
        out["implied"] = int(pirate or any(place in text for place in IMPLYING))
    return out


def caption(portrait: Portrait, rng: random.Random) -> str:
    """A caption of all or part of a picture: mostly a name, else some traits, or only "a person"."""
    draw = rng.random()
    if draw < 0.08:
        who = rng.choice(["a person", f"a {portrait.person.noun}", "someone", "a character", ""])
    elif draw < 0.25:
        who = description(portrait.person, rng)
    else:
        who = portrait.person.name
    text = (
        rng.choice(OPENINGS).format(who) if who else rng.choice(["a portrait", "a picture", "a drawing", ""])
    )
    if portrait.patch and rng.random() < PATCH_NAMED:
        text += rng.choice([f" with an {PATCH}", f" wearing an {PATCH}"])
    if portrait.place and rng.random() < 0.9:
        text += f" {portrait.place}"
    parts = []
    if rng.random() < 0.6:
        parts.append(rng.choice([", {}", " in {}"]).format(portrait.style))
    if rng.random() < 0.4:
        parts.append(rng.choice([" on a {} background", ", {} background"]).format(portrait.colour))
    rng.shuffle(parts)
    return (text + "".join(parts)).strip(" ,")
