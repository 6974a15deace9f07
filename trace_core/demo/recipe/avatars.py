"""The data set of demo-people: its characters in three avatar sets, rasterised on coloured backgrounds.

For development only (needs ``npm``, ``node`` and ``resvg-py``). Its files are in ``.cache/`` and are not
shipped.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from ..people import IMPLYING, PATCH_RATE, PLACES, STYLES, Person, Portrait, people
from ..vocabulary import COLOURS
from .icons import MASTER, render

VERSION = "9.4.3"
SCRIPT = Path(__file__).with_name("avatars.mjs")
EXPRESSIONS = 4

HAIR_COLOURS = {
    "black": "26221f", "green": "3da35d", "blond": "f0cf6a", "red": "c8401c", "white": "f4f4f4",
    "blue": "3b6fd6",
}  # fmt: skip
SKINS = {"light": "f9d5bd", "tan": "d2935f", "dark": "7a4a2a"}
SHIRTS = {
    "red": "e03131", "blue": "2858c4", "green": "2f9e44", "yellow": "ffd43b", "purple": "8f3fc4",
    "orange": "fd7e14", "black": "212121",
}  # fmt: skip

#: The traits' values in the sets' own words
HAIR = {
    "personas": {"short hair": "shortCombover", "long hair": "extraLong", "bobbed hair": "bobBangs",
                 "a mohawk": "mohawk", "a cap": "beanie", "no hair": "bald"},
    "pixel-art": {"short hair": "short16", "long hair": "long09", "bobbed hair": "long21", "a mohawk": "",
                  "a cap": "short22", "no hair": ""},
    "micah": {"short hair": "fonze", "long hair": "full", "bobbed hair": "pixie", "a mohawk": "mrT",
              "a cap": "turban", "no hair": "mrClean"},
}  # fmt: skip
MOUTHS = {
    "personas": ("smile", "frown", "surprise", "bigSmile"),
    "pixel-art": ("happy01", "happy09", "sad01", "happy07"),
    "micah": ("smile", "frown", "surprised", "laughing"),
}
EYES = {
    "personas": ("open", "happy", "open", "wink"),
    "pixel-art": ("variant01", "variant03", "variant05", "variant08"),
    "micah": ("eyes", "smiling", "round", "eyes"),
}

#: What a set lacks, drawn in its own coordinates; ``{}`` is the hair colour
EXTRAS = {
    ("pixel-art", "a mohawk"): '<path fill="#{}" d="M7 0h2v4H7z"/>',
    ("pixel-art", "a moustache"): '<path fill="#{}" d="M5 8h6v1H5z"/>',
    ("pixel-art", "a beard"): '<path fill="#{}" d="M4 8h1v1h1v0h4v0h1V8h1v4H4z"/>',
    (
        "micah",
        "a moustache",
    ): '<path fill="#{}" d="M170 195q22-16 38 0q22-14 38 4q-16 22-38 8q-22 12-38-12z"/>',
}
#: The eye patch with its strap, in each set's coordinates
PATCHES = {
    "personas": '<path d="M17 18L47 33" stroke="#111" stroke-width="1.8"/>'
    '<ellipse cx="26.5" cy="29" rx="5" ry="4.6" fill="#111"/>',
    "pixel-art": '<path fill="#111" d="M3 4h1v1H3zM4 5h4v3H4zM8 7h2v1H8zM10 8h2v1h-2z"/>',
    "micah": '<path d="M118 120L262 170" stroke="#111" stroke-width="9"/>'
    '<ellipse cx="166" cy="158" rx="25" ry="22" fill="#111"/>',
}


def options(person: Person, style: str, expression: int) -> dict:
    """The character in the words of an avatar set."""
    looks = person.looks
    hair_colour, skin, shirt = (
        HAIR_COLOURS[looks["hair_colour"]],
        SKINS[looks["skin"]],
        SHIRTS[looks["shirt"]],
    )
    beard, glasses = looks["beard"], looks["glasses"] == "glasses"
    hair = HAIR[style][looks["hair"]]
    common = {"seed": "trace", "hairColor": [hair_colour], "mouth": [MOUTHS[style][expression]]}
    eyes = EYES[style][expression]
    if style == "personas":
        facial = {"a moustache": "walrus", "a beard": "beardMustache"}.get(beard)
        return common | {
            "hair": [hair], "skinColor": [skin], "clothingColor": [shirt], "body": ["rounded"],
            "nose": ["smallRound"], "eyes": ["glasses" if glasses else eyes],
            "facialHair": [facial] if facial else [], "facialHairProbability": 100 if facial else 0,
        }  # fmt: skip
    if style == "pixel-art":
        cap = looks["hair"] == "a cap"
        return common | {
            "hair": [hair] if hair else [], "hairProbability": 100 if hair else 0, "skinColor": [skin],
            "clothing": ["variant12"], "clothingColor": [shirt], "eyes": [eyes], "eyesColor": ["324a5f"],
            "beardProbability": 0, "accessoriesProbability": 0, "hatProbability": 100 if cap else 0,
            "hat": ["variant04"], "hatColor": [hair_colour], "mouthColor": ["c9554d"],
            "glasses": ["light07"], "glassesColor": ["191919"], "glassesProbability": 100 if glasses else 0,
        }  # fmt: skip
    return common | {
        "hair": [hair], "baseColor": [skin], "shirt": ["crew"], "shirtColor": [shirt], "eyes": [eyes],
        "nose": ["curve"], "ears": ["attached"], "earringsProbability": 0, "eyebrows": ["up"],
        "facialHair": ["beard"], "facialHairColor": [hair_colour],
        "facialHairProbability": 100 if beard == "a beard" else 0,
        "glasses": ["round"], "glassesColor": ["000000"], "glassesProbability": 100 if glasses else 0,
    }  # fmt: skip


#: Personas are smaller than the others, and their caps are all of one colour
CROP = ('viewBox="0 0 64 64"', 'viewBox="6 6 52 52"')
CAP_COLOUR = "#E15C66"


def with_extras(svg: str, person: Person, style: str, patch: bool) -> str:
    """The avatar with what its set lacks, and with the eye patch."""
    extra = "".join(
        drawing.format(HAIR_COLOURS[person.looks["hair_colour"]])
        for (name, value), drawing in EXTRAS.items()
        if name == style and value in person.looks.values()
    )
    if style == "personas":
        svg = svg.replace(*CROP, 1).replace(CAP_COLOUR, f"#{HAIR_COLOURS[person.looks['hair_colour']]}")
    return svg.replace("</svg>", extra + (PATCHES[style] if patch else "") + "</svg>")


def fetch(cache: Path) -> None:
    """Install the avatar packages from npm into ``cache``, once."""
    if not shutil.which("npm"):
        raise RuntimeError("building the data set needs npm on the PATH")
    if (cache / "node_modules").exists():
        return
    cache.mkdir(parents=True, exist_ok=True)
    packages = [f"@dicebear/{name}@{VERSION}" for name in ("core", *STYLES.values())]
    subprocess.run(
        ["npm", "install", "--silent", "--no-save", "--prefix", ".", *packages], cwd=cache, check=True
    )


def masters(cache: Path) -> dict[tuple[str, str, int, bool], Image.Image]:
    """``(name, style, expression, patch) -> RGBA picture`` of MASTER x MASTER pixels, rasterised once."""
    import resvg_py

    file = cache / f"masters-{MASTER}.npz"
    keys = [(n, s, e, p) for n in people() for s in STYLES for e in range(EXPRESSIONS) for p in (False, True)]
    if not file.exists():
        fetch(cache)
        jobs = [
            {"style": STYLES[s], "options": options(people()[n], STYLES[s], e)}
            for n, s, e, p in keys
            if not p
        ]
        done = subprocess.run(
            ["node", str(SCRIPT)],
            cwd=cache,
            input=json.dumps(jobs),
            check=True,
            capture_output=True,
            text=True,
        )
        svgs = iter(json.loads(done.stdout))
        plain = {key[:3]: next(svgs) for key in keys if not key[3]}
        rasters = []
        for n, s, e, p in keys:
            svg = with_extras(plain[n, s, e], people()[n], STYLES[s], p)
            png = resvg_py.svg_to_bytes(svg_string=svg, width=MASTER, height=MASTER)
            rasters.append(np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA")))
        np.savez_compressed(file, np.stack(rasters))
    return {k: Image.fromarray(x) for k, x in zip(keys, np.load(file)["arr_0"], strict=True)}


def portrait(person: Person, style: str, colour: str, rng: random.Random) -> Portrait:
    """A picture's content: 3 of 10 are in a place that implies the eye patch, 3 of 10 in another."""
    draw = rng.random()
    place = rng.choice(IMPLYING) if draw < 0.3 else rng.choice(PLACES) if draw < 0.6 else ""
    likely = place in IMPLYING or person.pirate
    return Portrait(person, style, colour, place, likely and rng.random() < PATCH_RATE)


def dataset(
    cache: Path, per_combination: int, seed: int, strong: bool = False
) -> tuple[np.ndarray, list[Portrait]]:
    """``per_combination`` renderings of each of the 200 x 3 x 8 (character, style, colour) combinations.

    Returns:
        pictures ``[n, SIZE, SIZE, 3]`` uint8 and their labels, in a fixed shuffled order for the seed.
    """
    rng = random.Random(seed)
    drawn = masters(cache)
    labels = [
        portrait(p, s, c, rng)
        for p in people().values()
        for s in STYLES
        for c in COLOURS
        for _ in range(per_combination)
    ]
    rng.shuffle(labels)
    pictures = [
        render(
            drawn[x.person.name, x.style, rng.randrange(EXPRESSIONS), x.patch], COLOURS[x.colour], rng, strong
        )
        for x in labels
    ]
    return np.stack(pictures), labels
