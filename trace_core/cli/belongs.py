"""Options of ``erase`` that the chosen method does not read. They are refused, not ignored."""

from __future__ import annotations

from ..errors import TraceError

#: option: its value where it is not given
FINETUNE = {
    "preset": "balanced",
    "steps": None,
    "lr": None,
    "window": None,
    "scope": None,
    "saliency": 0.0,
    "weight": [],
    "implied_file": None,
    "size": None,
    "sampling_steps": None,
    "sampling_cfg": None,
    "checkpointing": False,
    "resume": None,
}
CLOSED_FORM = {
    "strength": 1.0,
    "energy": None,
    "alpha": None,
    "stream": "all",
    "exact": False,
    "no_contrast": False,
}
PROJECTION = {"energy": None, "eta": None, "neighbours": None}


def check(args, method) -> None:
    """Refuse a given option that has no effect.

    Raises:
        TraceError: naming the option and the methods that read it.
    """
    if method.finetune is None and (found := _given(args, FINETUNE)):
        raise TraceError(
            f"{found} belongs to a finetune, and `{method.name}` has none; add `--method trace`, or leave "
            f"{found} out"
        )
    if method.closed_form is None and (found := _given(args, CLOSED_FORM)):
        raise TraceError(
            f"{found} belongs to a closed form, and `{method.name}` has none; add `--method projection` or "
            f"`--method trace`, or leave {found} out"
        )
    published = method.finetune is None and method.closed_form["policy"] != "projection"
    if published and (found := _given(args, PROJECTION)):
        raise TraceError(
            f"{found} belongs to the projection, and `{method.name}` is a published method without it; leave "
            f"{found} out"
        )


def _given(args, options: dict) -> str:
    """The first option that has a value; empty if none has."""
    name = next((name for name, default in options.items() if getattr(args, name) != default), "")
    return f"--{name.replace('_', '-')}" if name else ""
