"""Tiny models, the pack's nodes on them, and what must be as before when a run is over."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest import mock

import torch

from fake_clip import FakeClip
from fault_trials import ChangedModel

ROOT = Path(__file__).resolve().parents[3]
PACK = "/somewhere/trace-faults-0_x_1"
LEVEL = dict(channel_mult=[1], num_res_blocks=[1], transformer_depth=[1], transformer_depth_output=[1, 1])
FEW = ("a {}", "the {}")
#: what a finetune of the preset `fast` does here
LEAST = {"steps": 3, "batch": 4, "trajectories": 2, "keep_trajectories": 1, "refresh": 2}
KINDS = ("sd1", "flux")


@cache
def pack():
    """The pack as ComfyUI imports it, with few templates, short trainings and folders of its own."""
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    part("trace_core.text.templates").TEMPLATES["object"] = FEW
    part("trace_core.finetune.options").PRESETS["fast"] = LEAST
    folder = tempfile.TemporaryDirectory()  # removed with the process
    module.folder = folder
    host = part("nodes.host")
    host.temp_directory = lambda: Path(folder.name)
    host.output_loras = lambda: Path(folder.name) / "loras"
    host.lora_names = lambda: sorted(p.name for p in host.output_loras().glob("*.safetensors"))
    host.lora_path = _lora_path
    host.numbered_path = _numbered_path
    return module


def _numbered_path(folder: Path, pattern: str, ending: str = "") -> Path:
    number = 1
    while (path := folder / f"{pattern}_{number:05}_{ending}").exists():
        number += 1
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _lora_path(name: str) -> Path:
    path = part("nodes.host").output_loras() / name
    if not path.is_file():
        raise part("trace_core.errors").LoraError(f"'{name}' is in none of the LoRA folders. Choose another")
    return path


def part(name: str):
    if PACK not in sys.modules:
        pack()
    return importlib.import_module(f"{PACK}.{name}")


def node(name: str):
    return pack().NODE_CLASS_MAPPINGS[f"TRACE_{name}"]()


@cache
def tiny():
    return importlib.import_module("tiny_models")


def build(kind: str, **changes):
    """A new model of a kind."""
    own = LEVEL if kind == "sd1" else dict(depth=1, depth_single=1, pooled_dim=24)
    make = tiny().tiny_sd if kind == "sd1" else tiny().tiny_flux
    return make(**{**own, "context_dim": 32, **changes})


@cache
def clip(kind: str, width: int = 32, pooled: int = 24) -> FakeClip:
    return FakeClip(width, 24, ("l",) if kind == "sd1" else ("l", "t5xxl"), 0 if kind == "sd1" else pooled)


@cache
def model(kind: str):
    """The model that all trials of a kind share, as a server's workflows share theirs."""
    found = build(kind)
    run_once(found)
    return found


def run_once(found) -> None:
    """ComfyUI puts attributes of its own on a model when it loads it first."""
    conditions = [tiny().random_conditioning(found, seed=s) for s in (1, 2)]
    tiny().sample(found, *conditions, steps=1)
    unload()


def unload() -> None:
    import comfy.model_management

    comfy.model_management.unload_all_models()


def open_files() -> list[str]:
    """Regular files that the process has open."""
    found = []
    for number in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            name = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if name.startswith("/") and not name.startswith(("/dev/", "/proc/")):
            found.append(name)
    return sorted(found)


@contextmanager
def watched(*models, objects: bool = True):
    """Whatever happens inside, the models, open files, threads and temporary files are the same after it.

    Args:
        objects: also the objects that hold the weights, which ComfyUI replaces when it patches weights.

    Raises:
        ChangedModel: naming what differs.
    """
    unload()
    before = [tiny().Snapshot(m) for m in models]
    files, threads, folder = open_files(), threading.active_count(), Path(tempfile.gettempdir())
    left = {p.name for p in folder.glob(".trace*")}
    yield
    unload()
    different = [d for m, snapshot in zip(models, before) for d in snapshot.differences(tiny().Snapshot(m))]
    if not objects:
        different = [d for d in different if not d.startswith(("module ", "parameter "))]
    if open_files() != files:
        different.append(f"open files: {set(open_files()) ^ set(files)}")
    if threading.active_count() != threads:
        different.append(f"{threading.active_count() - threads} more threads")
    if new := {p.name for p in folder.glob(".trace*")} - left:
        different.append(f"left over: {new}")
    if different:
        raise ChangedModel("; ".join(different[:6]))


# ------------------------------------------------------------------------------------------- the runs


def closed_form(kind: str):
    return node("ClosedFormProjection").erase(
        model(kind), clip(kind), "cat -> dog", "bird\nhouse", "projection", 1.0, neighbours=0
    )["result"][1]


def start(kind: str):
    """The closed form's LoRA, made once."""
    return _start(kind)


_start = cache(closed_form)


def finetune(kind: str):
    return node("LateStageFinetune").train(
        model(kind),
        clip(kind),
        "cat -> dog",
        "bird",
        "trace",
        "fast",
        "auto",
        "custom",
        0.2,
        1.0,
        steps=0,
        rank=2,
        lr=0.01,
        eta=0.5,
        seed=0,
        width=32,
        height=32,
        checkpointing=False,
        preview_every=2,
        lora=start(kind),
        sampling_steps=2,
        cfg=1.0,
        neighbours=0,
    )["result"][1]


@cache
def second(kind: str):
    return node("ClosedFormProjection").erase(
        model(kind), clip(kind), "ship -> car", "bird", "projection", 1.0, neighbours=0
    )["result"][1]


def fusion(kind: str):
    return node("FuseErasureLoras").fuse(
        model(kind), clip(kind), "house", "fuse", lora_1=start(kind), lora_2=second(kind)
    )["result"][1]


class Pixels:
    """A VAE that shows the first three channels."""

    def decode(self, latents):
        return latents[:, :3].sigmoid().movedim(1, -1).repeat_interleave(8, 1).repeat_interleave(8, 2)


def evaluation(kind: str):
    edited = node("ApplyErasureLora").apply(model(kind), "none", 1.0, 0.0, 0.9, lora=start(kind))["result"][0]
    return node("CompareErasure").compare(
        model(kind), edited, clip(kind), Pixels(), "a cat\na house", 0, 2, 2, -1.0, "cat", width=64, height=64
    )["result"][2]


RUNS: dict[str, Callable] = {
    "closed form": closed_form,
    "finetune": finetune,
    "fusion": fusion,
    "evaluation": evaluation,
}


def data(result) -> bytes:
    """The bytes of a run's result: of a LoRA's file, or of pictures."""
    if isinstance(result, torch.Tensor):
        return result.contiguous().numpy().tobytes()
    return part("nodes.wire").erasure_of(result).to_bytes()


@cache
def undisturbed(name: str, kind: str) -> tuple[bytes, int]:
    """The bytes of a run's result, and how often it asks whether it was cancelled."""
    start(kind), second(kind)
    with cancelled_at(None) as asked:
        result = RUNS[name](kind)
    unload()
    return data(result), asked[0]


@contextmanager
def cancelled_at(at: int | None):
    """The user presses cancel when a run asks for the ``at``-th time, from 0. Yields how often it asked."""
    import comfy.model_management

    asked, ask = [0], part("nodes.host").stop_if_interrupted

    def stop_if_interrupted() -> None:
        if asked[0] == at:
            comfy.model_management.interrupt_current_processing(True)
        asked[0] += 1
        ask()

    try:
        with mock.patch.object(part("nodes.host"), "stop_if_interrupted", stop_if_interrupted):
            yield asked
    finally:
        comfy.model_management.interrupt_current_processing(False)


def same_again(name: str, kind: str) -> None:
    """The next run gives the same bytes as an undisturbed one.

    Raises:
        ChangedModel: if it does not.
    """
    if data(RUNS[name](kind)) != undisturbed(name, kind)[0]:
        raise ChangedModel(f"{name} on {kind} gives another result after the trouble")
