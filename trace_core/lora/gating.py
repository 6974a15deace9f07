"""Applying an ErasureLora to a model: as patches of the stock LoRA loader, or within a sampling window."""

from __future__ import annotations

import copy
import logging
import math
import threading
from collections.abc import Callable
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import backbone_for
from ..backbones.base import PREFIX, engine_of
from ..backbones.other_patches import check_patches_reach
from ..backbones.running import called_model, eager
from ..backbones.weights import is_linear, layer_at, shape_of
from ..errors import LoraError, ModelError, enough_memory
from . import rounding
from .erasure import ErasureLora
from .metadata import model_family

#: key of ``model_options``: a tuple with one dict per erasure on the model, in order
RECORD = "trace_erasures"

log = logging.getLogger(__name__)


def check_fits(model, lora: ErasureLora) -> None:
    """Refuse a LoRA whose modules or shapes do not fit the model.

    Raises:
        ModelError: if ``model`` is not a ComfyUI model.
        LoraError: naming both architectures and the first module that does not fit.
    """
    engine_of(model)
    made_for = model_family(lora.info()) or "another architecture"
    for module, (up, down) in lora.modules.items():
        layer = layer_at(model.model, module) if module.startswith(PREFIX) else None
        wanted = None if layer is None else shape_of(layer)
        if wanted is None or up.shape[0] != wanted[0] or down.shape[1] != wanted[1:].numel():
            own = backbone_for(model).traits.title
            found = "has no such layer" if wanted is None else f"has {tuple(wanted)} there"
            raise LoraError(
                f"this LoRA was made for {made_for} and does not fit this {own} model: "
                f"{module} is {up.shape[0]} x {down.shape[1]}, the model {found}"
            )


def base_mismatch(model, lora: ErasureLora) -> str | None:
    """A warning if the file names another base than this model, else None (also if it names none).

    Raises:
        ModelError: if the model's family is unknown.
    """
    base = lora.info().get("trace.base")
    made_on = base.get("hash") if isinstance(base, dict) else None
    if not isinstance(made_on, str):
        return None
    backbone = backbone_for(model)
    own = backbone.model_hash()
    if own == made_on:
        return None
    title = lora.metadata.get("modelspec.title", "this erasure")
    return (
        f"'{title[:80]}' was made on another {backbone.traits.title} model ({made_on[:16]}) than this one "
        f"({own}), or on this one at another precision; it mostly works between finetunes of one base, so "
        "check the pictures"
    )


def erasures_on(model) -> tuple[dict, ...]:
    """The erasures that :func:`apply` put on this model, in order.

    Each is a dict with fingerprint, title, strength, start, end and, if there is one, a warning about
    ``rounding``.

    Raises:
        ModelError: if ``model`` is not a ComfyUI model.
    """
    if not hasattr(model, "model_options"):
        engine_of(model)
    return tuple(model.model_options.get(RECORD, ()))


@enough_memory("applying the erasure", "unload other models, or close other programs")
def apply(
    model, lora: ErasureLora, strength: float = 1.0, start: float | None = 0.0, end: float | None = 1.0
):
    """A clone of ``model`` with the erasure. The model and its weights are not changed.

    For the whole schedule, the erasure is a set of patches. For a part of it, the erasure is added in the
    forward pass while sigma is in the window, so that every other step is bit-identical to the model's own.
    This uses ComfyUI's single ``model_function_wrapper`` slot. An existing wrapper is called; a wrapper set
    later must call this one.

    Args:
        model: ComfyUI ModelPatcher.
        strength: 0 returns the model unchanged, 1 applies the erasure as made.
        start, end: window as fractions of the sampling schedule, as in ComfyUI's timestep ranges, ends
            included; None: the file's own.

    Raises:
        ModelError: if ``model`` is not a ComfyUI model, or has no sampling schedule for a window.
        LoraError: if the LoRA does not fit the model, or the strength or the window is invalid.
    """
    check_fits(model, lora)
    start, end = _window(lora, start, end)
    if not isinstance(strength, Real) or not math.isfinite(strength):
        raise LoraError(
            f"strength is {strength}; it must be a finite number, 1 applies the erasure as it was made"
        )
    if strength == 0 or not lora.modules:
        return model.clone()
    entry = {
        "fingerprint": lora.fingerprint,
        "title": lora.metadata.get("modelspec.title", ""),
        "strength": float(strength),
        "start": start,
        "end": end,
    }
    whole = (start, end) == (0.0, 1.0)
    rounded = rounding.warning(model, lora, strength) if whole else None
    entry |= {"rounding": rounded} if rounded else {}
    for warning in filter(None, (base_mismatch(model, lora), _doubled(model, entry), rounded)):
        log.warning(warning)
    clone = _patched(model, lora, strength) if whole else _gated(model, lora, strength, start, end)
    clone.model_options[RECORD] = (*erasures_on(model), entry)
    return clone


def _window(lora: ErasureLora, start: float | None, end: float | None) -> tuple[float, float]:
    if start is None or end is None:
        first, last = lora.window
        start, end = first if start is None else start, last if end is None else end
    for name, value in (("start", start), ("end", end)):
        if not isinstance(value, Real) or not 0 <= value <= 1:
            raise LoraError(f"{name} is {value}; it must lie between 0 (the first step) and 1 (the last)")
    if start >= end:
        raise LoraError(f"start is {start} and end is {end}: an empty window; start must be below end")
    return float(start), float(end)


def _doubled(model, entry: dict) -> str | None:
    for other in erasures_on(model):
        disjoint = entry["end"] <= other["start"] or other["end"] <= entry["start"]
        if other["fingerprint"] == entry["fingerprint"] and not disjoint:
            return (
                f"'{entry['title'] or entry['fingerprint']}' is on this model already; its strengths add up"
            )
    return None


def _patched(model, lora: ErasureLora, strength: float):
    """The erasure as patches of the stock loader, without cost during sampling."""
    check_patches_reach(model, lora.modules)
    patches = engine_of(model).lora.load_lora(lora.state_dict(), {m: m + ".weight" for m in lora.modules})
    clone = model.clone()
    accepted = clone.add_patches(patches, strength)
    missing = set(patches) - set(accepted)
    if missing or len(patches) != len(lora.modules):
        raise LoraError(
            f"the model did not accept {len(missing) or len(lora.modules) - len(patches)} of the LoRA's "
            "layers"
        )
    return clone


def _gated(model, lora: ErasureLora, strength: float, start: float, end: float):
    """The erasure in a :class:`SigmaGate`, which calls the model's previous wrapper."""
    if not hasattr(model.get_model_object("model_sampling"), "percent_to_sigma"):
        raise ModelError(f"{type(model.model).__name__} has no sampling schedule; use start 0 and end 1")
    paths = {}
    for module, (up, down) in lora.modules.items():
        paths[module] = _LowRankPath(module, model.model.get_submodule(module), up, down, strength)
    clone = model.clone()
    gate = SigmaGate(clone.model, paths, start, end, clone.model_options.get("model_function_wrapper"))
    clone.set_model_unet_function_wrapper(gate)
    return clone


class SigmaGate:
    """A ``model_function_wrapper`` that adds low-rank paths to modules while sigma is in a window.

    Every MODEL from one checkpoint shares the modules. Forward hooks are therefore attached for one call only
    and removed afterwards, also after an error.

    The hooks go on the model that is called, which may differ from the model that the erasure was applied to
    (see :func:`called_model`). If a wrapper hides the called model, the hooks go on the original model. If
    the call then runs none of the edited layers, an error is raised, because a step in the window without
    erasure must not go unnoticed.
    """

    def __init__(self, model, paths: dict[str, _LowRankPath], start: float, end: float, previous=None):
        self.model = model
        self.paths = paths
        self.start, self.end = start, end
        self.previous = previous

    def __call__(self, apply_model, args: dict) -> Tensor:
        """Run the model. ``args["timestep"]`` is sigma, ``[batch]``.

        Raises:
            ModelError: if the model has lost a layer, or no edited layer ran in a step inside the window.
        """
        model = called_model(apply_model) or self.model
        inside = self.inside(args["timestep"], model)
        if inside is False:
            return self._run(apply_model, args)
        rows, touched, hooks = None if inside is True else inside, set(), []
        try:
            for module, path in self.paths.items():
                hooks.append(self._module(model, module).register_forward_hook(_hook(path, rows, touched)))
            with eager():
                out = self._run(apply_model, args)
        finally:
            for hook in hooks:
                hook.remove()
        if not touched:
            raise ModelError(
                "an erasure with a window met none of its layers in a sampling step inside the window, so "
                "the step would not be erased; another node answers for the model (a cache such as "
                "EasyCache) or calls a copy of the model; remove that node, or apply the erasure "
                "with start 0 and end 1"
            )
        return out

    def inside(self, sigma: Tensor, model=None) -> bool | Tensor:
        """Whether sigma is in the window: True, False, or a mask ``[batch]`` if its entries differ.

        The schedule is the current one of ``model``, even if a node changed it after the erasure was applied.
        """
        schedule = (self.model if model is None else model).model_sampling
        mask = (sigma <= schedule.percent_to_sigma(self.start)) & (
            sigma >= schedule.percent_to_sigma(self.end)
        )
        values = set(mask.flatten().tolist())
        return mask if len(values) == 2 else values.pop()

    def _run(self, apply_model, args: dict) -> Tensor:
        if self.previous is not None:
            return self.previous(apply_model, args)
        return apply_model(args["input"], args["timestep"], **args["c"])

    def _module(self, model, name: str) -> nn.Module:
        try:
            return model.get_submodule(name)
        except AttributeError as error:
            raise ModelError(
                f"{name} has disappeared from the model since the erasure was applied; apply it again"
            ) from error

    def _with_previous(self, previous) -> SigmaGate:
        if previous is self.previous:
            return self
        return SigmaGate(self.model, self.paths, self.start, self.end, previous)

    def __deepcopy__(self, memo: dict) -> SigmaGate:
        """``clone()`` deep-copies ``model_options``, but the model and the factors must not be copied."""
        return self._with_previous(copy.deepcopy(self.previous, memo))

    def to(self, target) -> SigmaGate:
        """Follow a move of the model to a device or dtype. The factors are cast again at the next call."""
        for path in self.paths.values():
            path.forget()
        return self._with_previous(
            self.previous.to(target) if hasattr(self.previous, "to") else self.previous
        )

    def models(self) -> list:
        """Models that the previous wrapper asks ComfyUI to load as well."""
        return self.previous.models() if hasattr(self.previous, "models") else []


class _LowRankPath:
    """``strength * up(down(x))``, added to the output of one module.

    The factors are cast once per device and dtype of the model.
    """

    def __init__(self, name: str, module: nn.Module, up: Tensor, down: Tensor, strength: float):
        self.name = name
        self.up, self.down, self.strength = up, down, strength
        self.conv = None
        if isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
            self.conv = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
            self.up, self.down = up[:, :, None, None], down.view(-1, *module.weight.shape[1:])
        elif not is_linear(module):
            raise LoraError(
                f"{name} is a {type(module).__name__}, which can only be edited over the whole schedule; "
                "use start 0 and end 1"
            )
        self.forget()

    def forget(self) -> None:
        self._casts: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, rows: Tensor | None, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        """A forward hook. ``rows``: mask ``[batch]`` of the rows to edit; None: all rows."""
        down, up = self._factors(output)
        x = inputs[0].to(output.dtype)
        if self.conv is not None:
            edited = output + F.conv2d(F.conv2d(x, down, **self.conv), up)
        else:
            hidden = F.linear(x, down).reshape(-1, down.shape[0])
            edited = torch.addmm(output.reshape(-1, output.shape[-1]), hidden, up.t()).view(output.shape)
        if rows is None:
            return edited
        if output.shape[0] != rows.shape[0]:
            raise ModelError(
                f"{self.name} has {output.shape[0]} rows for a batch of {rows.shape[0]} at different "
                "sigmas, of which only some are in the window; sample them one by one"
            )
        return torch.where(rows.to(output.device).view(-1, *[1] * (output.ndim - 1)), edited, output)

    def _factors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        key, casts = (
            (like.device, like.dtype),
            self._casts,
        )  # another thread may replace self._casts meanwhile
        if key not in casts:
            # normal tensors, because a later backward pass cannot use inference tensors
            with torch.inference_mode(False), torch.no_grad():
                up = self.up.to(like.device, torch.float32) * self.strength
                casts[key] = self.down.to(like.device, like.dtype, copy=True), up.to(like.dtype)
        return casts[key]


def _hook(path: _LowRankPath, rows: Tensor | None, touched: set[str]) -> Callable:
    """A forward hook for one call and its thread, because other threads may run the same modules."""
    thread = threading.get_ident()

    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        if threading.get_ident() != thread:
            return None
        touched.add(path.name)
        return path(rows, module, inputs, output)

    return hook
