"""Real shapes with random weights, in the files that people have: ``python benchmarks/real_shapes.py [CASE
...]``.

Each case runs in a process of its own: write the file, load it with ComfyUI's loader, closed form, save, the
stock LoRA loader, two sampling steps, one finetune step. It prints the seconds of each, the peak of memory,
the keys that the loader left, and whether the base is bit for bit as it was. Results are kept by engine
(``COMFYUI_PATH``) and case; cases that are there are not run again.

SD 1.5, SDXL and SD 3.5 medium are whole. The other transformers have their real widths and few blocks, and
text encoders of their real width and few narrow layers: neither would fit this machine whole. The seconds of
such a text encoder mean nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from trace_core import engine
from trace_core.backbones import backbone_for
from trace_core.backbones.sampling import SamplerConfig, sample
from trace_core.closed_form import erase
from trace_core.finetune import FinetuneConfig, finetune
from trace_core.lora import ErasureLora
from trace_core.text.concepts import Concept
from trace_core.text.synonyms import everyday
from trace_core.text.templates import TEMPLATES

sys.path.insert(0, str(Path(__file__).parent))
import formats  # noqa: E402
import shape_transformers  # noqa: E402
from shape_files import CASES, CHECKPOINTS, load, write  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "real_shapes.json"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "trace-real-shapes"

#: the keep list of FLUX and of small runs, which also take one template of each kind
FEW = ("bird", "a house")
CONCEPT = Concept("cat", "dog")

PEAKS = [0]  #: before each time that the system's count began anew

# ------------------------------------------------------------------------------------------------ one case


class Left(logging.Handler):
    """Hears which keys the loader did not find or did not know."""

    WORDS = ("missing", "unexpected", "left over keys")

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if any(word in text for word in self.WORDS) and not text.endswith(("[]", "dict_keys([])")):
            self.found.append(text[:300])


@contextmanager
def listening():
    """What the loader says of keys."""
    left = Left()
    logging.getLogger().addHandler(left)
    try:
        yield left
    finally:
        logging.getLogger().removeHandler(left)


def fingerprint(model) -> str:
    """Of everything that the network's tensors hold, also those of quantised ones."""
    digest = hashlib.blake2b()
    for name, p in sorted(model.model.named_parameters()):
        parts = (
            [p._qdata, *(v for v in vars(p._params).values() if isinstance(v, torch.Tensor))]
            if hasattr(p, "_qdata")
            else [p]
        )
        for part in parts:
            data = part.detach().as_subclass(torch.Tensor).cpu().contiguous().reshape(-1)
            digest.update(f"{name} {data.dtype}".encode())
            digest.update(data.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def finetune_step(model, clip, keep, pixels: int) -> dict:
    config = FinetuneConfig(
        steps=1,
        batch=4,
        trajectories=1,
        keep_trajectories=1,
        sampling_steps=2,
        cfg=1.0,
        rank=4,
        refresh=1,
        window=(0.2, 1.0),
        scope="text",
        width=pixels,
        height=pixels,
    )
    return finetune(model, clip, [CONCEPT], list(keep)[:2], config).report


@torch.inference_mode()  # as ComfyUI runs its nodes
def run_case(name: str, folder: Path, small: bool) -> dict:
    """All phases of a case; whatever fails ends it and is said."""
    import comfy.sd
    import comfy.utils

    out: dict = {"seconds": {}, "cpu_seconds": {}, "extra_bytes": {}, "small": small}

    @contextmanager
    def phase(label: str):
        start, busy, before = time.perf_counter(), time.process_time(), restart_peak()
        yield
        if before is not None:
            out["extra_bytes"][label] = max(status("VmHWM") - before, 0)
        out["seconds"][label] = round(time.perf_counter() - start, 2)
        out["cpu_seconds"][label] = round(time.process_time() - busy, 2)
        print(f"{name}: {label} {out['seconds'][label]} s", file=sys.stderr, flush=True)

    with phase("write"):
        path = write(name, folder, small)
    out["file_bytes"] = path.stat().st_size
    with phase("load"), listening() as left:
        model, clip = load(name, path, small)
    out |= {
        "keys_left": left.found,
        "model_bytes": model.model_size(),
        "storage": storage(model),
        "after_load": peak(),
    }
    out |= parameters(model, CASES[name].family)
    before = fingerprint(model)
    keep = everyday([CONCEPT])
    if small or CASES[name].family not in CHECKPOINTS:
        keep = FEW
        TEMPLATES.update({kind: prompts[:1] for kind, prompts in TEMPLATES.items()})
    pixels = 64 if small else 128
    sampler = SamplerConfig.for_model(model, steps=2, width=pixels, height=pixels)
    with phase("closed form"):
        lora = erase(model, clip, [CONCEPT], list(keep)).lora
    out["after_closed_form"] = peak()
    with phase("save"):
        saved = lora.save(folder / "erasure.safetensors")
    with phase("stock loader"):
        patched, _ = comfy.sd.load_lora_for_models(
            model, None, comfy.utils.load_torch_file(str(saved)), 1.0, 1.0
        )
    out["stock_keys"] = [len(patched.patches), len(lora.modules)]
    with phase("two steps"):
        base = sample(model, clip, ["a cat"], [0], sampler)
    with phase("two steps, erased"):
        erased = sample(patched, clip, ["a cat"], [0], sampler)
    out["edit"] = [float(base.norm()), float((erased - base).norm())]
    with phase("finetune step"):
        out["loss"] = finetune_step(model, clip, keep, pixels)["losses"][-1]
    backbone_for(model).load()  # takes patches off that are still on it
    out["base_identical"] = before == fingerprint(model)
    out["reloaded"] = torch.equal(
        ErasureLora.load(saved).delta(next(iter(lora.modules))), lora.delta(next(iter(lora.modules)))
    )
    out["peak"] = peak()
    return out


def parameters(model, family: str) -> dict[str, int]:
    """Parameters of a transformer, whole and with the few blocks of this bench."""
    if family not in shape_transformers.TRANSFORMERS:
        return {}
    here = sum(p.numel() for p in model.model.diffusion_model.parameters())
    return {"parameters": shape_transformers.parameters(family), "parameters_here": here}


def storage(model) -> str:
    from trace_core.backbones.weights import storage_of, stored

    backbone = backbone_for(model)
    name = next(n for n in backbone.lora_targets("linear") if "att" in n)
    return storage_of(stored(backbone.patcher, f"diffusion_model.{name}.weight"))


def status(name: str) -> int:
    """Bytes of an entry of this process's status on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def restart_peak() -> int | None:
    """Bytes in memory now, from where the peak is counted anew; None where the system cannot do that."""
    PEAKS.append(peak())
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return status("VmRSS")
    except OSError:
        return None


def peak() -> int:
    """Bytes: the largest resident memory of this process so far."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return max(*PEAKS, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


# ------------------------------------------------------------------------------------------------ all of them


def missing(name: str, small: bool) -> str | None:
    """Why this engine cannot run a case, or None."""
    case = CASES[name]
    if small and case.family == "FLUX.1-dev" and importlib.util.find_spec("comfy.quant_ops") is None:
        return "this ComfyUI takes FLUX's width for granted, so it loads no small FLUX"
    if case.family in shape_transformers.TRANSFORMERS and (why := shape_transformers.missing(case.family)):
        return why
    if case.fmt in formats.QUANTISED:
        import comfy.ops

        if not hasattr(comfy.ops, "mixed_precision_ops"):
            return "this ComfyUI has no such files"
    return formats.gguf_missing(engine.find().path) if case.fmt in formats.GGUF else None


def run_apart(name: str, small: bool, timeout: float) -> dict:
    """A case in a process of its own; its files are deleted afterwards."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        command = [
            sys.executable,
            __file__,
            "--case",
            name,
            "--folder",
            folder,
            *(["--small"] if small else []),
        ]
        try:
            # spinning threads starve beside other work
            environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, timeout=timeout, env=environment
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"took more than {timeout:g} s"}
        lines = done.stdout.strip().splitlines()
        return (
            json.loads(lines[-1])
            if done.returncode == 0 and lines
            else {"failed": f"ended with {done.returncode}"}
        )


def run(
    names: list[str] | None = None,
    small: bool = False,
    again: bool = False,
    timeout: float = 3600.0,
    results: Path = RESULTS,
) -> dict:
    """Every case that is not there yet, kept after each."""
    found = engine.load(cpu=True)
    data = json.loads(results.read_text()) if results.exists() else {}
    here = data.setdefault(
        found.version, {"torch": torch.__version__, "python": platform.python_version(), "cases": {}}
    )
    here["cores"] = os.cpu_count()
    for name in names or CASES:
        if name in here["cases"] and "failed" not in here["cases"][name] and not again:
            continue
        why = missing(name, small)
        print(f"{found.version}: {name}" + (f": {why}" if why else ""), flush=True)
        here["cases"][name] = {"missing": why} if why else run_apart(name, small, timeout)
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(data, indent=1) + "\n")
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="CASE", help=f"any of: {'; '.join(CASES)} (default: all)")
    parser.add_argument(
        "--small", action="store_true", help="few layers and few prompts, to see that it runs"
    )
    parser.add_argument("--again", action="store_true", help="also cases that are there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds a case may take")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        engine.load(cpu=True)
        print(json.dumps(run_case(args.case, args.folder, args.small)))
        return
    unknown = [name for name in args.names if name not in CASES]
    if unknown:
        parser.error(f"'{unknown[0]}' is no case; take any of: {'; '.join(CASES)}")
    run(args.names, args.small, args.again, args.timeout, args.out)


if __name__ == "__main__":
    main()
