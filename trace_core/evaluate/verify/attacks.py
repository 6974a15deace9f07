"""The cheap attacks, judged by reach: text rows that nobody can write, and mixtures of prompts.

They need no training, and they do not decide a verdict: no closed form holds against whoever may feed the
network any numbers. What a user can write is measured with the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...backbones.base import CONTEXT, POOLED
from ...closed_form.effects import PROMPT
from ...text.batching import encode
from ...text.concepts import Concept
from ...text.templates import fill
from ..attacks.conditioning import SHARE
from ..attacks.prepared import averaged, concatenated
from ..attacks.rece import Rewritten, adversarial_maps
from .prompts import Probe
from .scene import Scene
from .trajectory import Asked, Way, ways

RECE = "RECE's rows"


def rece(scene: Scene, plain: Probe) -> Way | None:
    """Reach of rows in closed form that the erased layers map to the old output (RECE, arXiv 2407.12383).

    None if no edited layer reads the text encoder's rows as they are: other rows cannot be handed in.
    """
    backbone = scene.backbone
    rows = torch.zeros(1, backbone.text_width)
    edited = [
        layer
        for stream in (CONTEXT, POOLED)
        for layer in backbone.layers(stream)
        if layer.module in scene.lora.modules
    ]
    if not edited or backbone.read_rows(rows) is not rows or backbone.width(CONTEXT) != backbone.text_width:
        return None
    asked = Asked(scene, [plain], phase="attack: RECE")
    clip = Rewritten(scene.clip, adversarial_maps(scene.model, scene.whole))
    reached = asked.each(asked.erased(clip)).mean().item()
    return Way(Probe(RECE, plain.prompt, plain.reference, plain.counterpart), reached, True)


def mixed(scene: Scene, concept: Concept, kind: str, others: Sequence[str]) -> list[Way]:
    """Reach of the concept's conditioning concatenated and averaged with that of a thing that stays."""
    if concept.parts or not others:
        return []
    other = fill(PROMPT[kind], others[0])
    own, instead = (fill(PROMPT[kind], word) for word in (concept.target, concept.anchor))
    plain = Probe("unmixed", own, own, instead)
    made, probes = {}, [plain]
    mixes = {"concatenated": concatenated, "averaged": lambda a, b: averaged(a, b, SHARE)}
    for name, mix in mixes.items():
        keys = [f"{name} with it", f"{name} without it"]  # no text that the tokenizer could read as weights
        for key, prompt in zip(keys, (own, instead)):
            made[key] = mix(*(encode(scene.clip, scene.clip.tokenize(t)) for t in (prompt, other)))
        probes.append(Probe(f"{name} with {others[0]}", keys[0], keys[0], keys[1]))
    return ways(Asked(scene, probes, made, "attack: mixed prompts"))[1:]
