"""An ErasureLora on a model: as the same patches that the stock LoRA loader makes."""

from __future__ import annotations

from .backbones import backbone_for
from .backbones.base import PREFIX, engine_of
from .errors import LoraError
from .lora import ARCHITECTURES, ErasureLora


def check_fits(model, lora: ErasureLora) -> None:
    """Refuse a LoRA whose modules or shapes are not the model's.

    Raises:
        ModelError: if ``model`` is no ComfyUI model.
        LoraError: naming both architectures and the first module that does not fit.
    """
    engine_of(model)
    shapes = {k: v.shape for k, v in model.model_state_dict(PREFIX).items()}
    base = lora.info().get("trace.base")  # what somebody wrote into a file: it may be anything
    made_for = base["kind"] if isinstance(base, dict) and str(base.get("kind")) in ARCHITECTURES else "another architecture"
    for module, (up, down) in lora.modules.items():
        wanted = shapes.get(module + ".weight")
        if wanted is None or up.shape[0] != wanted[0] or down.shape[1] != wanted[1:].numel():
            found = "has no such layer" if wanted is None else f"has {tuple(wanted)} there"
            raise LoraError(
                f"this LoRA was made for {made_for} and does not fit this {backbone_for(model).kind} model: "
                f"{module} is {up.shape[0]} x {down.shape[1]}, the model {found}"
            )


def apply(model, lora: ErasureLora, strength: float = 1.0):
    """A clone of ``model`` with the erasure as patches; the model itself, and its weights, are untouched.

    Args:
        model: ComfyUI ModelPatcher.
        strength: 0 returns the model as it is, 1 the erasure as made.

    Raises:
        ModelError: if ``model`` is no ComfyUI model.
        LoraError: if the LoRA does not fit the model.
    """
    check_fits(model, lora)
    if strength == 0 or not lora.modules:
        return model.clone()
    patches = engine_of(model).lora.load_lora(lora.state_dict(), {m: m + ".weight" for m in lora.modules})
    clone = model.clone()
    accepted = clone.add_patches(patches, strength)
    missing = set(patches) - set(accepted)
    if missing or len(patches) != len(lora.modules):
        raise LoraError(f"the model did not accept {len(missing) or len(lora.modules) - len(patches)} of the LoRA's layers")
    return clone
