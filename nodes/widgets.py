"""A node's inputs as a table: one call a widget or socket, and the tooltips beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real

from ..trace_core.errors import TraceError

Input = tuple[str | list[str], dict]

SEED_LIMIT = 2**31 - 1
LARGEST_SIDE = 4096  #: pixels

#: Search words for the nodes that erase.
ALIASES = (
    "unlearn",
    "unlearning",
    "forget",
    "remove concept",
    "erase concept",
    "concept erasure",
    "concept removal",
    "ablation",
)

#: Tooltips of inputs that several nodes have.
SHARED_TOOLTIPS = {
    "erase": "Concepts that the model must no longer draw, one a line: `cat`, `cat -> dog` (draws a dog "
    "instead), `cat @ 0.5` (half), `cat + red background` (only together), `glasses from scientist` (only "
    "there). Pasted lists work, # starts a comment, and double quotes hold one name together.",
    "keep": "What must not change, one a line. An empty list keeps a hundred everyday things, or all that a "
    "demo model knows.",
}


def socket(kind: str, **options) -> Input:
    """An input that only a wire fills."""
    return kind, options


def number(default: float, low: float, high: float, step: float, **options) -> Input:
    return "FLOAT", {"default": default, "min": low, "max": high, "step": step, **options}


def integer(default: int, low: int, high: int, **options) -> Input:
    return "INT", {"default": default, "min": low, "max": high, **options}


def seed() -> Input:
    """A seed that the page leaves alone after a run."""
    return integer(0, 0, SEED_LIMIT, control_after_generate=False)


def side() -> Input:
    """Width or height of a picture in pixels; 0 stands for the model's own."""
    return integer(0, 0, LARGEST_SIDE, step=8)


def line(default: str = "") -> Input:
    return "STRING", {"default": default}


def lines(default: str = "") -> Input:
    return "STRING", {"multiline": True, "default": default}


def choice(names: Iterable[str], default: str) -> Input:
    return list(names), {"default": default}


def choice_or_auto(names: Iterable[str]) -> Input:
    return choice(["auto", *names], "auto")


def switch(default: bool) -> Input:
    return "BOOLEAN", {"default": default}


def input_types(
    tooltips: dict[str, str],
    required: dict[str, Input],
    optional: dict[str, Input] | None = None,
    advanced: tuple[str, ...] = (),
) -> dict[str, dict[str, Input]]:
    """What ``INPUT_TYPES`` answers: every input with its tooltip. The page folds the advanced ones away."""

    def with_tooltip(name: str, entry: Input) -> Input:
        kind, options = entry
        folded = {"advanced": True} if name in advanced else {}
        return kind, {**options, "tooltip": tooltips[name], **folded}

    groups = {"required": required} | ({"optional": optional} if optional else {})
    return {
        group: {name: with_tooltip(name, entry) for name, entry in entries.items()}
        for group, entries in groups.items()
    }


def check(node, values: Mapping[str, object]) -> None:
    """Refuse values that a node's widgets do not offer.

    ComfyUI checks what the page sends, but lets NaN through, and checks nothing that comes over a wire.
    The choices that the node's ``VALIDATE_INPUTS`` reads are left to it.

    Raises:
        TraceError: naming the input, its value and what it may be.
    """
    own = getattr(node, "VALIDATE_INPUTS", None)
    code = own.__func__.__code__ if own else None
    validated = code.co_varnames[1 : code.co_argcount] if code else ()
    groups = node.INPUT_TYPES()
    for entry, (kind, options) in ((e, i) for inputs in groups.values() for e, i in inputs.items()):
        value = values.get(entry)
        if value is None and options.get("forceInput"):
            continue
        if wanted := _wanted("STRING" if entry in validated else kind, options, value):
            raise TraceError(f"{entry} is {repr(value)[:60]}; {wanted}")
    answer = own(**{entry: values[entry] for entry in validated}) if own else True
    if answer is not True:
        raise TraceError(answer)


def _wanted(kind: str | list[str], options: Mapping, value) -> str:
    """What the input should be, if the value is none of it; else empty."""
    if isinstance(kind, list):
        return "" if isinstance(value, str) and value in kind else f"use one of {', '.join(kind)}"
    if kind == "STRING":
        return "" if isinstance(value, str) else "write a text"
    if kind == "BOOLEAN":
        return "" if isinstance(value, bool) else "set it to true or false"
    if kind not in ("INT", "FLOAT"):
        return ""
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    low, high = options["min"], options["max"]
    if number and low <= value <= high and (kind == "FLOAT" or value == int(value)):
        return ""
    return f"give a {'whole number' if kind == 'INT' else 'number'} from {low:g} to {high:g}"
