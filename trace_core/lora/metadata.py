"""Metadata of an erasure file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isfinite

from .. import __version__
from ..backbones.families import KINDS
from .parts import entry_of

FORMAT = "trace-erasure-1"
VERIFICATION = "trace.verification"  #: key of a verdict; it holds for one edit alone


def title_of(targets: Sequence[str]) -> str:
    """The title in LoRA browsers: the first eight concepts."""
    return "Erased: " + ", ".join(targets[:8]) + (" ..." if len(targets) > 8 else "")


def base_metadata(
    backbone, concepts: Sequence, keep: Sequence[str], method: str, parameters: dict, seed: int
) -> dict[str, str]:
    """Metadata of a new erasure: concepts, method and base, with the keys that LoRA browsers display."""
    traits = KINDS[backbone.kind]
    return {
        "trace.format": json.dumps(FORMAT),
        "trace.version": json.dumps(__version__),
        "trace.concepts": json.dumps([entry_of(c) for c in concepts], ensure_ascii=False),
        "trace.keep": json.dumps(list(keep), ensure_ascii=False),
        "trace.method": json.dumps(method),
        "trace.parameters": json.dumps(parameters),
        "trace.window": json.dumps([0.0, 1.0]),
        "trace.base": json.dumps({"kind": backbone.kind, "hash": backbone.model_hash()}),
        "trace.seed": json.dumps(seed),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": traits.architecture,
        "modelspec.implementation": "TRACE concept erasure",
        "modelspec.title": title_of([c.target for c in concepts]),
        "ss_base_model_version": traits.base_version,
        "ss_network_module": "networks.lora",
        "ss_training_comment": f"concept erasure by TRACE {__version__}, method {method}; no images were "
        "used",
    }


def model_family(info: dict) -> str | None:
    """The model family that a file was made for, by its metadata; None if it does not tell."""
    base = info.get("trace.base")  # untrusted, from the file
    kind = KINDS.get(str(base.get("kind"))) if isinstance(base, dict) else None
    return kind.title if kind else None


def parsed(text: str | None):
    """A JSON entry of the metadata, or None if it is invalid, because anybody can write metadata."""
    try:
        return None if text is None else json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None


def finite_number(text: str) -> float:
    """A finite JSON number. Python's parser would also accept NaN and infinity, which are not JSON."""
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text} is not a JSON number")
    return number


def joined_metadata(first, second) -> dict[str, str]:
    """The first erasure's metadata, completed by the second's, with merged lists and a common title."""
    out, both = {**second.metadata, **first.metadata}, {}
    out.pop("trace.parts", None)
    out.pop(VERIFICATION, None)
    for key in ("trace.concepts", "trace.keep"):
        lists = [
            found for found in (first.info().get(key), second.info().get(key)) if isinstance(found, list)
        ]
        both[key] = list({json.dumps(entry): entry for found in lists for entry in found}.values())
        if lists:
            out[key] = json.dumps(both[key], ensure_ascii=False)
    targets = [c[0] for c in both["trace.concepts"] if isinstance(c, list) and c and isinstance(c[0], str)]
    if targets:
        out["modelspec.title"] = title_of(targets)
    return out
