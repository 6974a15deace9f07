"""Runs of the command ``demo``, and the files that this command and a protocol write into their folders."""

from __future__ import annotations

from ..methods import METHODS

NOUNS = ("cat", "kitty", "dog", "frog", "horse", "truck", "banana", "house")

#: The erased person, three who share a name with her, and two others
SHARERS = ("Anna Berg", "Anna Berg", "Anna Holt", "Peter Berg", "Anna Lou Fenwick", "Kirubo", "Mira van Holt")

#: (model, method, concept, nouns of the grid)
SHOWS = (
    ("demo-sd", "projection", "cat", NOUNS),
    ("demo-sd", "trace", "cat", NOUNS),
    ("demo-sd", "projection", "twitter style", ("cat", "airplane", "snowman", "guitar")),
    ("demo-flux", "projection", "cat", NOUNS),
    ("demo-people", "projection", "Anna Berg", SHARERS),
)


def stem(model: str, method: str, concept: str) -> str:
    return f"{model}-{concept.replace(' ', '-')}" + ("-trace" if METHODS[method].finetune is not None else "")


#: files that the command writes into its folder
FILES = [
    "report.json",
    *(f"{stem(*show[:3])}.{ending}" for show in SHOWS for ending in ("safetensors", "png")),
]

#: files that ``evaluate --protocol`` writes into its folder, and its folder of pictures
RESULT, REPORT, PICTURES = "result.json", "report.md", "pictures"
JUDGED = (RESULT, REPORT, "judged.jsonl")
