"""What reports share: escaped names, percentages, lists and tables in Markdown."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence


def escaped(report: Callable[..., str]) -> Callable[..., str]:
    """A report whose names and warnings are plain text, without tags, links or pictures.

    ComfyUI's text preview draws HTML within Markdown, and names may come from a file that somebody shared.
    """

    @functools.wraps(report)
    def escaped_report(*given, **named) -> str:
        return re.sub(r"\\(?=[\\<\]])|<|\](?=[(\[])", r"\\\g<0>", report(*given, **named))

    return escaped_report


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def shortened(names: Sequence[str], most: int) -> str:
    """The first names, and the number of the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
