"""A node's inputs as a table: one call a widget or socket, and the tooltips beside them."""

from __future__ import annotations

from collections.abc import Iterable

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
