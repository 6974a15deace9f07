"""Everything the nodes take from ComfyUI, imported inside functions: the pack imports without a ComfyUI."""

from __future__ import annotations

from pathlib import Path

from ..trace_core.errors import LoraError


def lora_names() -> list[str]:
    """Files below models/loras and output/loras, named as in the stock LoRA loader's list."""
    import folder_paths

    return folder_paths.get_filename_list("loras")


def lora_path(name: str) -> Path:
    """The file of a name in the LoRA loader's list.

    Raises:
        LoraError: if no folder holds the file.
    """
    import folder_paths

    found = folder_paths.get_full_path("loras", name)
    if not found:
        raise LoraError(
            f"'{name}' is in none of the LoRA folders. Choose another file, or press R to read the list again"
        )
    return Path(found)


def output_loras() -> Path:
    """The folder of ComfyUI's output that its LoRA loader reads too."""
    import folder_paths

    return Path(folder_paths.get_output_directory()).resolve() / "loras"


def numbered_path(folder: Path, pattern: str, ending: str = "") -> Path:
    """``folder/pattern_00001_``, numbered as ComfyUI does, with ``%year%`` and the like filled in.

    The path is always new, so no file is overwritten.
    """
    import folder_paths

    where, name, counter, _, _ = folder_paths.get_save_image_path(pattern, str(folder))
    while (file := Path(where) / f"{name}_{counter:05}_{ending}").exists() or file.is_symlink():
        counter += 1
    return file


def temp_directory() -> Path:
    """ComfyUI's folder for temporary files."""
    import folder_paths

    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def sampler_names() -> list[str]:
    import comfy.samplers

    return list(comfy.samplers.KSampler.SAMPLERS)


def scheduler_names() -> list[str]:
    import comfy.samplers

    return list(comfy.samplers.KSampler.SCHEDULERS)


def progress_bar(total: int):
    """ComfyUI's bar on the node that is running."""
    import comfy.utils

    return comfy.utils.ProgressBar(total)


def stop_if_interrupted() -> None:
    """Raise ComfyUI's own exception if the user pressed cancel."""
    import comfy.model_management

    comfy.model_management.throw_exception_if_processing_interrupted()


def is_interrupt(error: BaseException) -> bool:
    """Whether ComfyUI raised this error for the cancel button."""
    import comfy.model_management

    return isinstance(error, comfy.model_management.InterruptProcessingException)


def server():
    """ComfyUI's PromptServer, or None where the pack runs without one."""
    try:
        from server import PromptServer
    except ImportError:
        return None
    return getattr(PromptServer, "instance", None)


def running_node() -> tuple[str | None, str | None]:
    """Ids of the node that is running and of its prompt.

    A hidden UNIQUE_ID input would give the id too, but would join the cache's key, so that a pasted copy of a
    node would train again.
    """
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:
        context = None
    else:
        context = get_executing_context()
    if context is not None:
        return context.node_id, context.prompt_id
    instance = server()
    return getattr(instance, "last_node_id", None), getattr(instance, "last_prompt_id", None)


def patched_by_stock_loader(model, state: dict, strength: float):
    """A clone of the model with a LoRA of any form that ComfyUI itself reads.

    Raises:
        LoraError: if this model has none of the LoRA's layers.
    """
    import comfy.lora
    import comfy.lora_convert

    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(state)), keys)
    clone = model.clone()
    if not patches or not clone.add_patches(patches, strength):
        raise LoraError("no layer of this LoRA is in this model. Connect a LoRA that was made for this model")
    return clone
