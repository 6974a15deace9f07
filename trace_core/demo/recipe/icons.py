"""The demo data set: emoji of five vendors, rasterised on coloured backgrounds.

For development only (needs ``npm`` and ``resvg-py``). Its files are in ``.cache/`` and are not shipped.
"""

from __future__ import annotations

import io
import json
import math
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from ..vocabulary import COLOURS, OBJECTS, STYLES, Label

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "fluent-emoji-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "emojione": "@iconify-json/emojione@1.2.3",
    "noto-v1": "@iconify-json/noto-v1@1.2.5",
}
MASTER = 192  #: edge of the cached icons, in pixels
SIZE = 64  #: edge of the data set's pictures, in pixels


def fetch(cache: Path) -> None:
    """Download the five icon packages from npm into ``cache`` (about 8 MB), once."""
    if not shutil.which("npm"):
        raise RuntimeError("building the data set needs npm on the PATH")
    cache.mkdir(parents=True, exist_ok=True)
    for name, package in PACKAGES.items():
        target = cache / f"{name}.json"
        if target.exists():
            continue
        out = subprocess.run(
            ["npm", "pack", package, "--silent"], cwd=cache, check=True, capture_output=True, text=True
        )
        archive = cache / out.stdout.strip().splitlines()[-1]
        with tarfile.open(archive) as tar:
            target.write_bytes(tar.extractfile("package/icons.json").read())
        archive.unlink()


def _svg(data: dict, names: list[str]) -> str:
    for name in names:
        key = name if name in data["icons"] else data.get("aliases", {}).get(name, {}).get("parent")
        if key:
            icon = data["icons"][key]
            width, height = (
                icon.get("width", data.get("width", 16)),
                icon.get("height", data.get("height", 16)),
            )
            head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            return f'{head} viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    raise KeyError(f"none of {names} in the icon set")


def masters(cache: Path) -> dict[tuple[str, str], Image.Image]:
    """``(object, style) -> RGBA picture`` of MASTER x MASTER pixels, rasterised once and cached."""
    import resvg_py

    fetch(cache)
    out = {}
    for style, icon_set in STYLES.items():
        data = json.loads((cache / f"{icon_set}.json").read_text())
        for name, spec in OBJECTS.items():
            file = cache / f"{icon_set}-{name}.png"
            if not file.exists():
                png = resvg_py.svg_to_bytes(svg_string=_svg(data, spec["icons"]), width=MASTER, height=MASTER)
                file.write_bytes(bytes(png))
            out[name, style] = Image.open(io.BytesIO(file.read_bytes())).convert("RGBA")
    return out


def render(
    icon: Image.Image, colour: tuple[int, int, int], rng: random.Random, strong: bool = False
) -> np.ndarray:
    """One rendering ``[SIZE, SIZE, 3]`` uint8: small rotation, scale and shift on a plain background.

    ``strong`` doubles the ranges. The judge learns from such renderings, so that it does not depend on the
    exact pose.
    """
    k = 2.0 if strong else 1.0
    angle = math.radians(rng.uniform(-4, 4) * k)
    scale = rng.uniform(0.90 - 0.06 * (k - 1), 0.97)
    dx, dy = (rng.uniform(-1.2, 1.2) * k * MASTER / SIZE for _ in "xy")
    centre = MASTER / 2
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    matrix = (
        cos,
        sin,
        centre - cos * (centre + dx) - sin * (centre + dy),
        -sin,
        cos,
        centre + sin * (centre + dx) - cos * (centre + dy),
    )
    placed = icon.transform((MASTER, MASTER), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (MASTER, MASTER), colour)
    canvas.paste(placed, (0, 0), placed)
    return np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def dataset(
    cache: Path, per_combination: int, seed: int, strong: bool = False
) -> tuple[np.ndarray, list[Label]]:
    """``per_combination`` renderings of each of the 24 x 5 x 8 (object, style, colour) combinations.

    Returns:
        pictures ``[n, SIZE, SIZE, 3]`` uint8 and their labels, in a fixed shuffled order for the seed.
    """
    rng = random.Random(seed)
    icons = masters(cache)
    labels = [Label(o, s, c) for (o, s) in icons for c in COLOURS for _ in range(per_combination)]
    rng.shuffle(labels)
    pictures = np.stack([render(icons[x.object, x.style], COLOURS[x.colour], rng, strong) for x in labels])
    return pictures, labels
