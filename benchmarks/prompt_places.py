"""An erased concept in prompts of real length, by its place in them: the second part of ``prompts.py``.

A cell is a length and a place of the concept. Its prompts are drawn with a seed from phrases of the demo
world, and its pictures take turns with them. Three rates are counted: of the erased model, of the base model,
and of the base model on the same prompts without the concept, which is what an erasure can reach.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from trace_core.backbones.sampling import SamplerConfig, sample
from trace_core.demo.vocabulary import OBJECTS, STYLES
from trace_core.text.templates import fill

#: Phrases of two tokens that ask for no class and no style
FILLERS = ("an image", "a picture", "a drawing", "an icon", "an emoji", "a photo", "a painting")
TAGS = ("image", "picture", "drawing", "icon", "emoji", "photo", "painting", "art", "red background")
#: Words that the demo tokenizers spell letter by letter, as a real tokenizer spells rare words
QUALITY = ("high quality", "detailed", "sharp focus", "natural light", "cinematic", "masterpiece", "trending")
SUBJECT = {"object": "a photo of a {}", "style": "a photo, {}"}
#: Cell: tokens without the concept's own phrase, and its place
CELLS = {
    "short": (0, "early"),
    "tags, 20 tokens": (20, "tags"),
    "spelled words, late": (40, "spelled"),
    "two subjects": (0, "two"),
    "40 tokens, early": (40, "early"),
    "40 tokens, middle": (40, "middle"),
    "40 tokens, late": (40, "late"),
    "66 tokens, late": (66, "late"),
}
PROMPTS = 8  #: prompts of a cell; the pictures take turns
COUNTED = 4  #: the base model's own rate is counted on one picture of so many


def templates(cell: str, kind: str, seed: int = 0) -> list[str]:
    """The prompts of a cell, each with ``{}`` in the concept's place."""
    tokens, place = CELLS[cell]
    rng = random.Random(f"{cell}/{kind}/{seed}")
    return [_template(kind, tokens, place, rng) for _ in range(PROMPTS)]


def _template(kind: str, tokens: int, place: str, rng: random.Random) -> str:
    if place == "two":
        other = rng.choice(list(OBJECTS)[10:])
        return f"a photo of a {{}} and a {other}" if kind == "object" else f"a photo of a {other}, {{}}"
    if place == "tags":
        tags = [*(rng.choice(TAGS) for _ in range(tokens // 2)), "{}"]
        rng.shuffle(tags)
        return ", ".join(tags)
    if place == "spelled":
        return ", ".join([*rng.sample(QUALITY, 3), SUBJECT[kind]])
    fillers = [rng.choice(FILLERS) for _ in range(tokens // 3)]
    at = {"early": 0, "middle": len(fillers) // 2, "late": len(fillers)}[place]
    return ", ".join([*fillers[:at], SUBJECT[kind], *fillers[at:]])


class Places:
    """Counts of one demo model; the base model's are made once for all methods.

    Args:
        objects: ``(model, clip, vae)``.
        judge: the demo world's judge.
        samples: pictures of a cell.
        known: the base model's counts by prompt set, kept in the results.
    """

    def __init__(self, name: str, objects: tuple, judge, samples: int, seed: int, known: dict):
        (self.model, self.clip, self.vae), self.judge = objects, judge
        self.name, self.samples, self.seed, self.known = name, samples, seed, known

    def count(self, model, prompts: Sequence[str]) -> dict[str, int]:
        """Pictures of each class, of objects and of styles. Prompt i has the seed ``seed * 100003 + i``."""
        seeds = [self.seed * 100003 + i for i in range(len(prompts))]
        latents = sample(model, self.clip, prompts, seeds, SamplerConfig.for_model(model))
        pictures, out = self.vae.decode(latents), {}
        for head, classes in (("object", list(OBJECTS)), ("style", list(STYLES))):
            found = self.judge.probabilities(pictures, head).argmax(1)
            out |= {c: int((found == i).sum()) for i, c in enumerate(classes)}
        return out

    def base(self, kind: str, cell: str, concept: str, samples: int) -> dict[str, int]:
        """The base model's counts of a cell; an empty concept: the prompts without it."""
        key = f"{self.name}/places/{kind}/{cell}/{concept or 'without'}/{samples}"
        if key not in self.known:
            self.known[key] = self.count(self.model, self.prompts(kind, cell, concept, samples))
        return self.known[key]

    def prompts(self, kind: str, cell: str, concept: str, samples: int) -> list[str]:
        found = templates(cell, kind, self.seed)
        return [fill(found[i % len(found)], concept) for i in range(samples)]

    def measure(self, model, concept: str, cell: str) -> dict[str, float]:
        """Shares of a cell's pictures that show the concept, and the most chunks that a prompt has."""
        kind, few = ("style" if concept in STYLES else "object"), max(1, self.samples // COUNTED)
        prompts = self.prompts(kind, cell, concept, self.samples)
        chunks = [next(iter(self.clip.tokenize(p).values())) for p in dict.fromkeys(prompts)]
        return {
            "erased": self.count(model, prompts)[concept] / self.samples,
            "base": self.base(kind, cell, concept, few)[concept] / few,
            "base, without": self.base(kind, cell, "", self.samples)[concept] / self.samples,
            "chunks": max(map(len, chunks)),
        }
