"""The verdict in an erasure's metadata: a model card that goes with the file."""

from __future__ import annotations

import json

from ...errors import LoraError
from ...lora.erasure import ErasureLora
from ...lora.metadata import VERIFICATION
from .result import Verification


def card(found: Verification) -> dict:
    """The verdict, the items and the settings, without the figures of single prompts and pictures."""
    keys = ("side", "name", "concept", "status", "figure", "worst")
    items = [{k: getattr(i, k) for k in keys} for i in found.items]
    for item in items:
        item["figure"] = None if item["figure"] is None else round(item["figure"], 4)
    return {
        "verdict": found.status,
        "sentence": found.sentence,
        "leak": found.leak,
        "weakest": found.weakest,
        "items": items,
        "notes": list(found.notes),
        **({"judge": found.judged.name} if found.judged else {}),
        **{k: found.setting[k] for k in ("trace", "model", "fingerprint", "strength", "sampler", "seed")},
    }


def with_card(lora: ErasureLora, found: Verification) -> ErasureLora:
    """The same erasure with the verdict in its metadata. The factors are the same objects.

    Raises:
        LoraError: if another erasure was verified.
    """
    if lora.fingerprint != found.setting["fingerprint"]:
        raise LoraError("this verdict is of another erasure; verify this one")
    text = json.dumps(card(found), ensure_ascii=False)
    return ErasureLora(dict(lora.modules), {**lora.metadata, VERIFICATION: text})
