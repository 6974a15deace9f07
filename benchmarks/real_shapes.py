"""Real shapes with random weights, in the files that people have: ``python benchmarks/real_shapes.py [CASE
...]``.

Each case runs in a process of its own: write the file, load it with ComfyUI's loader, closed form, save, the
stock LoRA loader, two sampling steps, one finetune step. It prints the seconds of each, the peak of memory,
the keys that the loader left, and whether the base is bit for bit as it was. Results are kept by engine
(``COMFYUI_PATH``) and case; cases that are there are not run again.

SD 1.5 and SDXL are whole. FLUX.1 dev has its real widths, but one double and one single block instead of 19
and 38, and a T5 of one narrow layer on its real vocabulary and width: neither would fit this machine whole.
The seconds of its text encoder mean nothing.
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
from dataclasses import dataclass
from pathlib import Path

import torch

from trace_core import engine
from trace_core.backbones import backbone_for, compat
from trace_core.backbones.sampling import SamplerConfig, sample
from trace_core.closed_form import erase
from trace_core.finetune import FinetuneConfig, finetune
from trace_core.lora import ErasureLora
from trace_core.text.concepts import Concept
from trace_core.text.synonyms import everyday
from trace_core.text.templates import TEMPLATES

sys.path.insert(0, str(Path(__file__).parent))
import formats  # noqa: E402
from training_memory import SHAPES  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "real_shapes.json"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "trace-real-shapes"
#: the keep list of FLUX and of small runs, which also take one template of each kind
FEW = ("bird", "a house")
CONCEPT = Concept("cat", "dog")


@dataclass(frozen=True)
class Case:
    """A family and a format; ``kept``: in which precision the loader is told to keep it, as it does by
    itself on a GPU.
    """

    family: str
    fmt: str
    kept: torch.dtype | None = None


CASES = {
    "SD1.5 fp16": Case("SD1.5", "fp16"),
    "SD1.5 fp8 e4m3": Case("SD1.5", "fp8 e4m3", torch.float8_e4m3fn),
    "FLUX bf16": Case("FLUX.1-dev", "bf16"),
    "FLUX fp8 e4m3": Case("FLUX.1-dev", "fp8 e4m3", torch.float8_e4m3fn),
    "FLUX fp8 e5m2": Case("FLUX.1-dev", "fp8 e5m2", torch.float8_e5m2),
    "FLUX bf16, weight_dtype fp8_e4m3fn": Case("FLUX.1-dev", "bf16", torch.float8_e4m3fn),
    **{f"FLUX {fmt}": Case("FLUX.1-dev", fmt) for fmt in ("scaled fp8", *formats.QUANTISED, *formats.GGUF)},
    "SDXL fp16": Case("SDXL", "fp16", torch.float16),
}


# ------------------------------------------------------------------------------------------------ the file


def network(family: str, small: bool) -> tuple[object, dict]:
    """ComfyUI's configuration of a family, and its network's weights by key, random, in float16 or (FLUX)
    bfloat16.
    """
    import comfy.supported_models

    name, config, _ = SHAPES[family]
    config = dict(config)
    if family == "FLUX.1-dev":
        config |= {"depth": 1, "depth_single_blocks": 1}
        config |= (
            {"hidden_size": 256, "num_heads": 2, "context_in_dim": 256, "vec_in_dim": 256} if small else {}
        )
    elif small:
        config |= {
            "num_res_blocks": [1],
            "channel_mult": [1],
            "transformer_depth": [1],
            "transformer_depth_output": [1, 1],
        }
    config = compat.flux_config(sys.modules["comfy"], config) if family == "FLUX.1-dev" else config
    found = getattr(comfy.supported_models, name)(config)
    found.set_inference_dtype(torch.float32, None)
    if family != "FLUX.1-dev":
        found.unet_config["num_heads" if family == "SD1.5" else "num_head_channels"] = (
            8 if family == "SD1.5" else 64
        )
    model = found.get_model({}, device=torch.device("meta")).diffusion_model
    state = random_weights(model, torch.bfloat16 if family == "FLUX.1-dev" else torch.float16)
    return found, {
        k.replace("_norm.weight", "_norm.scale") if family == "FLUX.1-dev" else k: v for k, v in state.items()
    }


def random_weights(module: torch.nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Normal matrices of norm 1 a row, vectors of one or nothing: enough for finite pictures."""
    generator, out = torch.Generator().manual_seed(0), {}
    for key, value in module.state_dict().items():
        if value.ndim < 2:
            out[key] = (
                torch.ones(value.shape, dtype=dtype)
                if key.endswith(("scale", "weight"))
                else torch.zeros(value.shape, dtype=dtype)
            )
        else:
            made = torch.empty(value.shape, dtype=torch.bfloat16).normal_(generator=generator)
            out[key] = made.mul_(value[0].numel() ** -0.5).to(dtype)
    return out


def with_towers(config, state: dict, family: str) -> dict:
    """A whole checkpoint: the text towers under the keys of its family, and TAESD as the VAE."""
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.taesd.taesd

    make = comfy.sd1_clip.SD1ClipModel if family == "SD1.5" else comfy.sdxl_clip.SDXLClipModel
    text = random_weights(make(dtype=torch.float16), torch.float16)
    text = {k: torch.arange(v.shape[-1])[None] if k.endswith("position_ids") else v for k, v in text.items()}
    if family == "SD1.5":
        inside = "clip_l.transformer.text_model."
        text = {
            "cond_stage_model.transformer.text_model." + k.removeprefix(inside): v
            for k, v in text.items()
            if k.startswith(inside)
        }
    else:
        text = config.process_clip_state_dict_for_saving(text)
    vae = random_weights(comfy.taesd.taesd.TAESD(), torch.float16)
    vae |= {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
    return (
        {f"model.diffusion_model.{k}": v for k, v in state.items()}
        | text
        | {f"first_stage_model.{k}": v for k, v in vae.items()}
    )


def write(name: str, folder: Path, small: bool) -> Path:
    """The file of a case."""
    from safetensors.torch import save_file

    case, comfy = CASES[name], sys.modules["comfy"]
    config, state = network(case.family, small)
    path = (
        folder
        / f"{name.replace(' ', '-').replace(',', '')}.{'gguf' if case.fmt in formats.GGUF else 'safetensors'}"
    )
    if case.fmt in formats.GGUF:
        formats.write_gguf(path, state, case.fmt)
        return path
    metadata = {}
    if case.fmt in formats.FLOAT8:
        state = formats.cast(state, formats.FLOAT8[case.fmt])
    elif case.fmt == "scaled fp8":
        state = formats.scaled_float8(state)
    elif case.fmt in formats.QUANTISED:
        state, metadata = formats.quantised(state, case.fmt, comfy)
    if case.family != "FLUX.1-dev":
        state = with_towers(config, state, case.family)
    save_file({k: v.contiguous() for k, v in state.items()}, str(path), metadata)
    return path


def load(name: str, path: Path, small: bool):
    """``(model, clip)`` by ComfyUI's own loader, or city96's."""
    import comfy.sd

    case = CASES[name]
    options = {"dtype": case.kept} if case.kept else {}
    if case.family != "FLUX.1-dev":
        return comfy.sd.load_checkpoint_guess_config(
            str(path), output_vae=False, output_clip=True, model_options=options
        )[:2]
    if case.fmt in formats.GGUF:
        return formats.load_gguf(engine.find().path, path), narrow_t5(small)
    return comfy.sd.load_diffusion_model(str(path), model_options=options), narrow_t5(small)


def narrow_t5(small: bool):
    """FLUX's text encoder object: CLIP-L whole, T5 of one layer with its real width and vocabulary; both
    narrower in small runs.
    """
    import comfy.sd
    import comfy.supported_models_base
    import comfy.text_encoders.flux

    flux = comfy.text_encoders.flux
    target = comfy.supported_models_base.ClipTarget(
        flux.FluxTokenizer, flux.flux_clip(dtype_t5=torch.float32)
    )
    t5 = {"d_model": 4096, "d_ff": 512, "d_kv": 64, "num_heads": 4, "num_layers": 1}
    options = {"dtype": torch.float32, "t5xxl_model_config": t5}
    if small:
        t5["d_model"] = 256
        options["clip_l_model_config"] = {
            "hidden_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "projection_dim": 256,
        }
    clip = comfy.sd.CLIP(target, model_options=options)
    clip.cond_stage_model.load_state_dict(random_weights(clip.cond_stage_model, torch.float32), strict=False)
    return clip


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

    out: dict = {"seconds": {}, "cpu_seconds": {}, "small": small}

    @contextmanager
    def phase(label: str):
        start, busy = time.perf_counter(), time.process_time()
        yield
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
    before = fingerprint(model)
    keep = everyday([CONCEPT])
    if small or CASES[name].family == "FLUX.1-dev":
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


def storage(model) -> str:
    from trace_core.backbones.weights import storage_of, stored

    backbone = backbone_for(model)
    name = next(n for n in backbone.lora_targets("linear") if "attn" in n)
    return storage_of(stored(backbone.patcher, f"diffusion_model.{name}.weight"))


def peak() -> int:
    """Bytes: the largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


# ------------------------------------------------------------------------------------------------ all of them


def missing(name: str, small: bool) -> str | None:
    """Why this engine cannot run a case, or None."""
    case = CASES[name]
    if small and case.family == "FLUX.1-dev" and importlib.util.find_spec("comfy.quant_ops") is None:
        return "this ComfyUI takes FLUX's width for granted, so it loads no small FLUX"
    if case.fmt in formats.QUANTISED:
        import comfy.ops

        if not hasattr(comfy.ops, "mixed_precision_ops"):
            return "this ComfyUI has no such files"
    return formats.gguf_missing(engine.find().path) if case.fmt in formats.GGUF else None


def apart(name: str, small: bool, timeout: float) -> dict:
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
        here["cases"][name] = {"missing": why} if why else apart(name, small, timeout)
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
