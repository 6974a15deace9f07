"""What a MODEL carries beside its weights, from nodes before ours, and what of it an erasure cannot take into
account.

Guidance (RescaleCFG, PAG, SAG and the like) and sampling schedules are no hindrance: the one works on the
network's predictions, which is what is edited, the other is read when it is needed. What changes the
network's own pass does so in ways that only its author knows, often by the noise level of a whole batch; a
training would teach another network than the one that is sampled.
"""

from __future__ import annotations

from ..errors import LoraError, ModelError
from .base import PREFIX, bare_name

#: key of the wrapper of ComfyUI's TorchCompileModel, which leaves the result as it is
COMPILED = "torch.compile"
IN_THE_NETWORK = ("apply_model", "diffusion_model")  #: kinds of wrappers around the network's own pass
BYPASS = "bypass_lora"  #: key of the injections of a LoRA that is loaded in bypass mode


def changes_of_the_network(patcher) -> list[str]:
    """What changes the network's pass while it samples, by ComfyUI's names, sorted: ``attn2_patch``,
    ``output_block_patch`` ...
    """
    options = patcher.model_options.get("transformer_options", {})
    found = {name for name, patches in options.get("patches", {}).items() if patches}
    found |= {f"{name} replaced" for name, patches in options.get("patches_replace", {}).items() if patches}
    found |= {"rope_options"} if options.get("rope_options") else set()
    for source in (getattr(patcher, "wrappers", {}), options.get("wrappers", {})):
        for kind in IN_THE_NETWORK:
            found |= {
                f"{kind} wrapper"
                for key, wrappers in source.get(kind, {}).items()
                if wrappers and key != COMPILED
            }
    if "model_function_wrapper" in patcher.model_options:
        found.add("model_function_wrapper")
    found |= {
        f"{key} injection" for key, injections in getattr(patcher, "injections", {}).items() if injections
    }
    return sorted(found)


def check_weights(patcher) -> None:
    """Refuse a model whose effective weights are not what its weights and patches say.

    Raises:
        ModelError: naming what else is on them.
    """
    if getattr(patcher, "injections", {}).get(BYPASS):
        raise ModelError(
            "a LoRA is on this model in bypass mode, so that the weights do not show it; switch its bypass "
            "off, or load it after the erasure"
        )
    wrapped = sorted(key for key in getattr(patcher, "weight_wrapper_patches", {}) if key.startswith(PREFIX))
    if wrapped:
        raise ModelError(
            f"another node computes {wrapped[0]} anew each time it is used; erase from the model as it was "
            "before that node"
        )


def check_patches_reach(patcher, modules) -> None:
    """Refuse patches on layers that a node has put into a compiled shell as an object patch: ComfyUI then
    knows them by another name and leaves their patches out without a word. Its own TorchCompileModel does
    that in versions of 2024 only.

    Raises:
        LoraError: naming what is compiled, and the remedy.
    """
    shells = [name for name, part in patcher.object_patches.items() if hasattr(part, "_orig_mod")]
    for name in shells:
        if any(module.startswith(f"{name}.") for module in modules):
            raise LoraError(
                f"{name} is compiled by another node in a way that loses patches on its weights; apply the "
                "erasure in a window (start 0, end 0.999), which is added in the forward pass, or compile "
                "with a newer ComfyUI's TorchCompileModel"
            )


def check_trainable(patcher) -> None:
    """Refuse a model whose network is not the one that would be trained.

    Raises:
        ModelError: naming what changes it, and the remedy.
    """
    check_weights(patcher)
    found = changes_of_the_network(patcher)
    if found:
        raise ModelError(
            f"the model carries {', '.join(found)} of another node, which changes the network while it "
            "samples and which a finetune cannot see; train on the model as it was before that node, and "
            "apply the result after it"
        )
    if any(bare_name(name) != name for name, _ in patcher.model.named_modules()):
        raise ModelError(
            "parts of this model are compiled, and adapters cannot go on them; put the finetune before the "
            "node that compiles"
        )
