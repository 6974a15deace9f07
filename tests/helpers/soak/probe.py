"""A custom node for the soak alone: it keeps the base models and counts what the server's process holds.

It is copied into ``custom_nodes`` of the soak's server. ``GET /soak/count`` counts, and ``POST /soak/plant``
leaves one thing of each sort behind, so that a test can see that it is counted.
"""

from __future__ import annotations

import gc
import hashlib
import os
import tempfile
import threading
from pathlib import Path

import folder_paths
import torch
from aiohttp import web
from server import PromptServer

import nodes

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
#: Threads that ComfyUI and its packages start when they first need them, and keep.
POOLS = ("asyncio_", "ThreadPoolExecutor")
held: dict[str, tuple] = {}
planted: list = []
routes = PromptServer.instance.routes


class SoakModel:
    """A demo model that is loaded once and stays: the base model that all jobs of the soak share."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load"
    CATEGORY = "soak"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING", {"default": "demo-sd"})}}

    def load(self, name):
        if name not in held:
            held[name] = nodes.NODE_CLASS_MAPPINGS["TRACE_LoadDemoModel"]().load(name)
        return held[name]


NODE_CLASS_MAPPINGS = {"SoakModel": SoakModel}


def alive(kind: type) -> list:
    """Every object of a class that the process holds, without asking the objects themselves."""
    return [found for found in gc.get_objects() if issubclass(type(found), kind)]


def weights() -> str:
    """A hash of every base weight, of the network's and of the text encoder's."""
    found = hashlib.sha256()
    for name, (model, clip, vae) in sorted(held.items()):
        parts = (model.model, clip.cond_stage_model, vae.first_stage_model)
        for module in parts:
            for key, tensor in sorted(module.state_dict().items()):
                found.update(f"{name} {key} {tensor.dtype}".encode())
                found.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def open_files() -> list[str]:
    """What the process has open, less sockets: those belong to whoever asks the server."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:  # the listing itself
            continue
    return sorted(name.split(":")[0] for name in found if not name.startswith("socket:"))


def unfinished() -> list[str]:
    """Files in the temporary folder, and unfinished ones wherever the pack writes."""
    folders = [Path(folder_paths.get_temp_directory()), Path(folder_paths.get_output_directory())]
    found = [p for folder in folders for p in folder.rglob(".trace-*")]
    return sorted(str(p) for p in [*found, *Path(tempfile.gettempdir()).rglob("*")] if p.is_file())


def heap() -> dict[str, int]:
    """Bytes that the C library has given out, and bytes that it keeps for later, of all its arenas."""
    import ctypes

    class Info(ctypes.Structure):  # struct mallinfo2 of the GNU C library
        _fields_ = [
            (name, ctypes.c_size_t)
            for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
        ]

    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return {}
    ask.restype = Info
    info = ask()
    return {"heap in use": info.uordblks + info.hblkhd, "heap kept": info.fordblks}


def count() -> dict:
    """All the figures; see ``soak.LEAKS`` for what they mean."""
    from comfy.model_patcher import ModelPatcher

    modules, patchers = alive(torch.nn.Module), alive(ModelPatcher)
    tensors = alive(torch.Tensor)
    return {
        "adapters": sum(type(m).__module__.startswith("peft.") for m in modules),
        "hooks": sum(len(getattr(m, name, None) or ()) for m in modules for name in HOOKS),
        "patches": sum(
            len(p.patches) + len(p.object_patches) + len(getattr(p, "hook_patches", ())) for p in patchers
        ),
        "wrappers": sum("model_function_wrapper" in p.model_options for p in patchers),
        "models": len(patchers),
        "modules": len(modules),
        "threads": sorted(t.name for t in threading.enumerate() if not t.name.startswith(POOLS)),
        "open files": open_files(),
        "temporary files": unfinished(),
        "weights": weights(),
        "trained": sum(p.requires_grad for p in tensors),
        "tensors": len(tensors),
        "tensor bytes": sum(t.untyped_storage().nbytes() for t in tensors if t.layout == torch.strided),
        "objects": len(gc.get_objects()),
        "native threads": len(os.listdir("/proc/self/task")),
        **heap(),
    }


@routes.get("/soak/count")
async def counted(request):
    return web.json_response(count())


@routes.get("/soak/freed")
async def freed(request):
    """Whether ``POST /free`` was taken up, and how many full collections Python has run."""
    waiting = PromptServer.instance.prompt_queue.get_flags(reset=False)
    return web.json_response({"waiting": len(waiting), "collections": gc.get_stats()[2]["collections"]})


@routes.post("/soak/plant")
async def plant(request):
    """One thing of each sort is left behind, and one layer's weights are changed."""
    from peft import LoraConfig, inject_adapter_in_model

    model, layer = held["demo-sd"][0], torch.nn.Linear(2, 2)
    adapted = inject_adapter_in_model(LoraConfig(r=1, target_modules=["0"]), torch.nn.Sequential(layer))
    clone = model.clone()
    clone.patches["nothing"] = []
    clone.model_options["model_function_wrapper"] = None
    layer.register_forward_hook(print)
    wait = threading.Event()
    threading.Thread(target=wait.wait, name="planted", daemon=True).start()
    handle, name = tempfile.mkstemp(prefix=".trace-")
    with torch.inference_mode():
        next(model.model.diffusion_model.parameters()).data.add_(0.01)
    planted[:] = [clone, adapted, wait, handle, name]
    return web.json_response({})
