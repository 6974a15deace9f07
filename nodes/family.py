"""Defaults that differ between demo models and real ones."""

from __future__ import annotations

from collections.abc import Sequence

from ..trace_core.backbones import backbone_for
from ..trace_core.backbones.defaults import defaults_of
from ..trace_core.backbones.sampling import SamplerConfig
from ..trace_core.demo.loader import MARK
from ..trace_core.errors import TraceError
from ..trace_core.text.concepts import Concept


def demo_name(model) -> str | None:
    """Name of a demo model, or None for a real one."""
    return getattr(getattr(model, "model", None), MARK, None)


def domain_of(model, concepts: Sequence[Concept], keep: list[str]) -> tuple[dict, list[str]]:
    """Additional prompt templates, and the keep list.

    A demo model has templates of its own, and an empty keep list becomes all that the model knows.
    """
    own = defaults_of(model)
    return (own.contexts, keep or own.keep_list(concepts)) if own else ({}, keep)


def finetune_options(model, width: int, height: int, lr: float) -> dict:
    """Sizes and learning rate of a finetune. A widget at 0 takes the model's own.

    Raises:
        TraceError: naming a size that latents cannot have.
    """
    given = {"lr": lr} if lr else {}
    return {**picture_size(model, width, height, real=512), **given}


def picture_size(model, width: int, height: int, real: int | None = None) -> dict[str, int]:
    """Width and height. 0 takes 64 on a demo model, else ``real``, else the family's own.

    Raises:
        TraceError: naming a size that latents cannot have.
    """
    own = 64 if demo_name(model) else real or backbone_for(model).traits.size
    for name, value in (("width", width), ("height", height)):
        if value and (value < 16 or value % 8):
            raise TraceError(
                f"{name} is {value}: give 0 for the model's own, or a multiple of 8 that is at least 16"
            )
    return {"width": width or own, "height": height or own}


def sampler_config(model, size: dict[str, int], **chosen) -> SamplerConfig:
    """Sampler settings. ``auto``, 0 steps and a negative cfg or guidance take the family's defaults.

    Raises:
        TraceError: for cfg 0.
    """
    unset = {"steps": 0, "sampler": "auto", "scheduler": "auto"}
    given = {k: v for k, v in chosen.items() if (v >= 0 if k in ("cfg", "guidance") else v != unset[k])}
    if given.get("cfg") == 0:
        raise TraceError(
            "cfg is 0, which ignores the prompt. Use 1 for no guidance, or -1 for the model family's own"
        )
    return SamplerConfig.for_model(model, **{**size, **given})
