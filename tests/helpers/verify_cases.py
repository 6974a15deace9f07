"""A verification made by hand, for tests that need no model."""

from __future__ import annotations

import torch

from trace_core.evaluate.verify import thresholds as at
from trace_core.evaluate.verify.drawn import Drawn
from trace_core.evaluate.verify.items import Item, of_kept, of_pictures, of_ways
from trace_core.evaluate.verify.prompts import Probe
from trace_core.evaluate.verify.result import Measured, Verification
from trace_core.evaluate.verify.trajectory import Curve, Way
from trace_core.text.concepts import Concept


def drawn(name: str, before: list[float], after: list[float], near: str = "", moved: float = 0.1) -> Drawn:
    """Pictures with this evidence, which moved this far."""
    z, prompts = torch.zeros(len(before), 4, 8, 8), tuple(f"a photo of a {name}" for _ in before)
    moves = torch.full((len(before),), moved)
    return Drawn(name, prompts, z, z, torch.tensor(before), torch.tensor(after), moves, near)


def way(name: str, reach: float, known: bool = True) -> Way:
    return Way(Probe(name, f"a {name}", f"a {name}", "a", "cat"), reach, known)


def measured(name: str = "cat", reach: float = 0.0, gone: bool = True) -> Measured:
    """One concept: erased, or as before."""
    concept, pictures = Concept(name), drawn(name, [1.0] * 8, [0.0 if gone else 1.0] * 8)
    ways = [way("plain prompt", reach), way("tags", reach + 0.1), way("misspelling", 0.9, False)]
    items = [*of_ways(concept, ways), of_pictures(pictures)]
    line = Curve([3.0, 1.0], [1.0, 0.5], [0.2, 0.1], [0.1, -0.05])
    return Measured(concept, items, ways, line, 0.0, [], pictures, [way("RECE's rows", 0.9)])


def verification(*concepts: Measured, kept=(), thumbnails=(), notes=(), fingerprint: str = "f" * 16):
    """A verdict on concepts and kept things."""
    concepts = concepts or (measured(),)
    found = [*(i for m in concepts for i in m.items), *of_kept(kept)]
    status = max((i.status for i in found if i.decides), key=at.ORDER.index)
    setting = {
        "trace": "0.0.0",
        "model": {"kind": "sd1", "hash": "0" * 16},
        "fingerprint": fingerprint,
        "strength": 1.0,
        "window": [0.0, 1.0],
        "seed": 0,
        "effort": {},
        "sampler": "euler/simple, 4 steps",
    }
    leak = {"name": "tags", "concept": concepts[0].concept.target, "reach": 0.1}
    weakest = {"name": "dog", "still": 1, "of": 3, "moved": 0.2} if kept else None
    return Verification(
        status, tuple(found), leak, weakest, concepts, tuple(kept), tuple(notes), setting, tuple(thumbnails)
    )


def item(status: str, decides: bool = True) -> Item:
    return Item("text", "text layers", "cat", status, "A sentence.", 0.5, 0.1, 0.9, decides=decides)
