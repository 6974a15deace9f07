"""Changes to a MODEL by earlier nodes, and checks for those that an erasure cannot take into account.

Guidance nodes (RescaleCFG, PAG, SAG and others) are no problem, because they act on the network's
predictions. Sampling schedules are no problem, because they are read when needed. Changes inside the
network's forward pass are opaque and often depend on the noise level of a whole batch. Training would then
see another network than sampling.
"""

from __future__ import annotations

from ..errors import LoraError, ModelError
from .base import PREFIX, bare_name

#: key of the wrapper of ComfyUI's TorchCompileModel, which does not change the result
COMPILED = "torch.compile"
IN_THE_NETWORK = ("apply_model", "diffusion_model")  #: types of wrappers around the network's forward pass
BYPASS = "bypass_lora"  #: key of the injections of a LoRA in bypass mode


def changes_of_the_network(patcher) -> list[str]:
    """Names of the patches and wrappers in the network's forward pass, sorted.

    They are ComfyUI's names, such as ``attn2_patch`` or ``output_block_patch``.
    """
    options = patcher.model_options.get("transformer_options", {})
    names = {name for name, patches in options.get("patches", {}).items() if patches}
    names |= {f"{name} replaced" for name, patches in options.get("patches_replace", {}).items() if patches}
    names |= {"rope_options"} if options.get("rope_options") else set()
    for source in (getattr(patcher, "wrappers", {}), options.get("wrappers", {})):
        for kind in IN_THE_NETWORK:
            names |= {
                f"{kind} wrapper"
                for key, wrappers in source.get(kind, {}).items()
                if wrappers and key != COMPILED
            }
    if "model_function_wrapper" in patcher.model_options:
        names.add("model_function_wrapper")
    names |= {
        f"{key} injection" for key, injections in getattr(patcher, "injections", {}).items() if injections
    }
    return sorted(names)


def check_weights(patcher) -> None:
    """Refuse a model whose effective weights differ from its weights and patches.

    Raises:
        ModelError: naming the other change.
    """
    if getattr(patcher, "injections", {}).get(BYPASS):
        raise ModelError(
            "this model has a LoRA in bypass mode, which does not appear in the weights; switch its bypass "
            "off, or load it after the erasure"
        )
    wrapped = sorted(key for key in getattr(patcher, "weight_wrapper_patches", {}) if key.startswith(PREFIX))
    if wrapped:
        raise ModelError(
            f"another node recomputes {wrapped[0]} on every use; erase from the model before that node"
        )


def check_patches_reach(patcher, modules) -> None:
    """Refuse patches on layers that another node compiled as an object patch.

    ComfyUI knows such layers by another name and silently ignores patches on them. Its own TorchCompileModel
    did this only in versions of 2024.

    Raises:
        LoraError: naming the compiled part and the remedy.
    """
    shells = [name for name, part in patcher.object_patches.items() if hasattr(part, "_orig_mod")]
    for name in shells:
        if any(module.startswith(f"{name}.") for module in modules):
            raise LoraError(
                f"{name} was compiled by another node in a way that loses patches on its weights; apply the "
                "erasure in a window (start 0, end 0.999), which adds it in the forward pass, or compile "
                "with TorchCompileModel of a newer ComfyUI"
            )


def check_trainable(patcher) -> None:
    """Refuse a model whose forward pass differs from the network that would be trained.

    Raises:
        ModelError: naming the change and the remedy.
    """
    check_weights(patcher)
    found = changes_of_the_network(patcher)
    if found:
        raise ModelError(
            f"the model has {', '.join(found)} from another node, which changes the network during sampling "
            "and is invisible to a finetune; train on the model before that node, and apply the result after "
            "that node"
        )
    if any(bare_name(name) != name for name, _ in patcher.model.named_modules()):
        raise ModelError(
            "parts of this model are compiled and cannot take adapters; put the finetune before the "
            "node that compiles"
        )
