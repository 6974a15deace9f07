"""What the tests of the closed form on ComfyUI's models share."""

from __future__ import annotations

import hashlib

import torch

from engine_cases import unload
from trace_core.closed_form import ClosedFormConfig
from trace_core.text.concepts import Concept

KINDS = ("sd1", "sdxl", "flux")
KEEP = ("bird", "car", "house")
CAT = Concept("cat", "dog")
EXACT = ClosedFormConfig(eta=0.0, energy=1.0)


def fingerprint(patcher) -> dict:
    """Everything of a model that an erasure might touch."""
    network = patcher.model
    return {
        "weights": {k: _digest(v) for k, v in network.state_dict().items()},
        "modules": [(name, type(m), id(m)) for name, m in network.named_modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()],
        "gradients": [(p.requires_grad, p.grad is None, id(p)) for p in network.parameters()],
        "training": [m.training for m in network.modules()],
        "patches": {k: [id(x) for x in v] for k, v in patcher.patches.items()},
        "object_patches": dict(patcher.object_patches),
        "backup": sorted(patcher.backup),
        "options": repr(patcher.model_options),
        "uuid": patcher.patches_uuid,
    }


def _digest(tensor) -> tuple:
    data = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return tensor.dtype, tuple(tensor.shape), hashlib.sha256(data).hexdigest()


def patched_weights(patcher) -> dict[str, torch.Tensor]:
    """The weights as ComfyUI itself patches them, and the model put back."""
    unload()
    patcher.patch_model(device_to=torch.device("cpu"))
    state = {k: v.detach().clone() for k, v in patcher.model.state_dict().items()}
    patcher.unpatch_model(device_to=torch.device("cpu"))
    return state


def encode(family, prompt):
    rows, pooled = family.clip.encode_from_tokens(family.clip.tokenize(prompt), return_pooled=True)
    return rows[0].double(), None if pooled is None else pooled[0].double()


def distance(a, b) -> float:
    return (a - b).abs().max().item()
