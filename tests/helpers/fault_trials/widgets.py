"""Values that no widget offers, as after a bad paste, and wrong things on wires: every node says so."""

from __future__ import annotations

import math
from functools import cache
from unittest import mock

import torch
from hypothesis import strategies as st

from fault_trials import Fault, UnclearError, attempt, stage
from fault_trials.texts import TEXT

JUNK = (None, "", "x", [], {}, (), "nan", "-1", b"x", [1.0], {"a": 1}, math.nan)
NODES = (
    "ClosedFormProjection",
    "LateStageFinetune",
    "FuseErasureLoras",
    "ApplyErasureLora",
    "SaveErasureLora",
    "CompareErasure",
    "ErasurePresets",
    "LoadDemoModel",
)
#: text widgets that may hold anything, and are read by grammars of their own
LISTS = ("erase", "keep", "only", "keep_more", "strengths", "files", "prompts", "notes", "license", "name")


@cache
def inputs(name: str) -> dict:
    """Every input of a node: its type and its options."""
    host = stage.part("nodes.host")
    with (
        mock.patch.object(host, "sampler_names", lambda: ["euler", "dpmpp_2m"]),
        mock.patch.object(host, "scheduler_names", lambda: ["simple", "karras"]),
    ):
        groups = type(stage.node(name)).INPUT_TYPES()
    return {entry: given for group in groups.values() for entry, given in group.items()}


def good(name: str, kind: str) -> dict:
    """Values with which a node works."""
    wires = {
        "MODEL": stage.model(kind),
        "CLIP": stage.clip(kind),
        "VAE": stage.Pixels(),
        "LORA_MODEL": stage.start(kind),
    }
    out = {}
    for entry, (of, options) in inputs(name).items():
        if of in ("MASK",) or entry in ("file_name", *(f"lora_{i}" for i in range(2, 9))):
            continue
        out[entry] = wires[of] if isinstance(of, str) and of in wires else options.get("default")
    if name == "LateStageFinetune":
        out |= {"preset": "fast", "width": 32, "height": 32}
    if name == "CompareErasure":
        out |= {"prompts": "a cat", "steps": 1, "width": 64, "height": 64}
    return out


def bad(draw, of, options: dict):
    """A value that the widget would not take."""
    low, high = options.get("min", 0), options.get("max", 1)
    if of == "FLOAT":
        beyond = (math.nan, math.inf, -math.inf, low - 0.01, high + 0.01, 1e308, -1e308, low - 1e9)
        return draw(st.one_of(st.sampled_from((*beyond, *JUNK[:-1])), st.floats(min_value=high + 1e-3)))
    if of == "INT":
        beyond = (low - 1, high + 1, 2**63, -(2**63), 10**30, low + 0.5, math.nan, math.inf)
        return draw(st.one_of(st.sampled_from((*beyond, *JUNK)), st.integers(min_value=high + 1)))
    if of == "STRING":
        return draw(st.one_of(TEXT, st.sampled_from((None, 5, [], {}, b"cat"))))
    if of == "BOOLEAN":
        return draw(st.sampled_from(("maybe", None, 2, [], "x")))
    if isinstance(of, list):
        return draw(
            st.one_of(st.text(max_size=8).filter(lambda t: t not in of), st.sampled_from((None, 3, [])))
        )
    if of == "MASK":
        return draw(st.sampled_from((torch.zeros(0), torch.ones(3), torch.ones(1, 2, 3, 4, 5), "x", 5)))
    return draw(st.sampled_from((None, "x", 5, [], {}, {"a": 1}, {"a": torch.ones(1)})))


def pasted(draw) -> None:
    """One or two inputs of a node hold what they cannot hold."""
    name, kind = draw(st.sampled_from(NODES)), draw(st.sampled_from(stage.KINDS))
    values, table = good(name, kind), inputs(name)
    chosen = draw(st.lists(st.sampled_from(sorted(table)), min_size=1, max_size=2, unique=True))
    for entry in chosen:
        values[entry] = bad(draw, *table[entry])
    texts = [values[e].strip()[:5] for e in chosen if isinstance(values[e], str) and values[e].strip()]
    node = stage.node(name)
    import comfy.model_management

    def work():
        with stage.cancelled_at(2):
            try:
                return getattr(node, node.FUNCTION)(**values)
            except comfy.model_management.InterruptProcessingException:
                return None  # the value is one that the node takes

    host = stage.part("nodes.host")
    with stage.watched(stage.model(kind)):
        with mock.patch.object(host, "sampler_names", lambda: ["euler", "dpmpp_2m"]):
            with mock.patch.object(host, "scheduler_names", lambda: ["simple", "karras"]):
                result, _ = attempt(work, *chosen, *WIRES, *texts)
    if result is not None and any(type(values[e]) in (bytes, type(None), list) for e in chosen if e in MUST):
        raise UnclearError(f"{name} took {[values[e] for e in chosen]} for {chosen}")


#: inputs without which no node works
MUST = ("model", "clip", "erase", "policy", "strength", "objective", "preset", "name", "seed", "steps")
#: how sentences call what is on a wire
WIRES = ("MODEL", "CLIP", "VAE", "LORA_MODEL", "LoRA", "mask", "model", "text encoder")

FAULTS = (Fault("values that no widget offers", 70, pasted),)
