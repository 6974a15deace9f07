"""The command ``info``: what a file erases and how it was made, or what this program runs on."""

from __future__ import annotations

import json

from .. import __version__
from ..lora.erasure import ErasureLora
from ..lora.metadata import VERIFICATION, model_family
from ..text.refused import printable
from .engine import EngineNotFound, find

WIDTH = 160  #: characters of a metadata entry on the screen; ``--json`` has all of it
CONCEPTS = 8  #: concepts named in the summary


def info(args) -> dict:
    """Print a summary of a file and its metadata in order; without a file, the versions."""
    if not args.file:
        found = versions()
        for key, value in found.items():
            print(f"{key}: {value}")
        return found
    lora = ErasureLora.load(args.file)
    found = dict(sorted(lora.info().items()))
    family = model_family(found)
    found = ({"model family": family} if family else {}) | found
    for key, value in summary(lora, found).items():
        print(f"{key}: {_line(value)}")
    print("\nmetadata")
    for key, value in found.items():
        text = _line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        more = f" ... ({len(text):,} characters)" if len(text) > WIDTH else ""
        print(f"  {_line(key)}: {text[:WIDTH]}{more}")
    return found


def _line(text: str) -> str:
    """A text of somebody's file on one line."""
    return printable(" ".join(text.split()))


def summary(lora: ErasureLora, found: dict) -> dict[str, str]:
    """What most readers want to know. Anybody can write metadata, so every entry may have any form.

    Args:
        found: :meth:`ErasureLora.info`.
    """
    concepts = [str(c) for part in lora.parts() for c in part.concepts]
    more = f" and {len(concepts) - CONCEPTS:,} more" if len(concepts) > CONCEPTS else ""
    out = {"erases": ", ".join(concepts[:CONCEPTS]) + more or "the file does not say"}
    instead = found.get("trace.substitutes")
    if isinstance(instead, dict) and instead:
        shown = [f"{new} for {old}" for old, new in instead.items()][:CONCEPTS]
        out["draws instead"] = ", ".join(shown)
    if "trace.method" in found:
        out["method"] = f"{found['trace.method']}, TRACE {found.get('trace.version', 'unknown')}"
    base = found.get("trace.base")
    if family := model_family(found):
        out["made for"] = f"{family}, model {base.get('hash', 'unknown')}"
    start, end = lora.window
    out["acts on"] = "every step" if (start, end) == (0, 1) else f"{start:g} to {end:g} of the schedule"
    card = found.get(VERIFICATION)
    if isinstance(card, dict) and "verdict" in card:
        out["verdict"] = str(card["verdict"])
    size = sum(factor.nbytes for pair in lora.modules.values() for factor in pair)
    out["size"] = f"{len(lora.modules)} layers, rank {lora.rank}, {size / 1024:,.0f} KB"
    return out


def versions() -> dict:
    """What a report of a problem needs: versions of this program and of what it runs on."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    out = {"trace_core": __version__, "python": platform.python_version(), "system": platform.platform()}
    out["torch"] = torch.__version__
    for name in ("safetensors", "transformers", "peft"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "not installed"
    try:
        found = find()
        out["ComfyUI"] = f"{found.version}, {'checkout' if found.full else 'model classes only'}"
    except EngineNotFound as error:
        out["ComfyUI"] = str(error)
    return out
