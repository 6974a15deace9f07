"""The model of a command: a demo model, a checkpoint, or a diffusion model with separate encoder files.

The functions behind ComfyUI's own loader nodes load everything. GGUF files go through the loader nodes of
ComfyUI-GGUF (city96).
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import TraceError
from ..lora.contents import TEXT_LAYERS, contents
from . import engine

DEMO_MODELS = ("demo-sd", "demo-flux", "demo-people")
DTYPES = {
    "auto": None,
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp8_e4m3fn": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
}
ENDINGS = (".safetensors", ".sft", ".gguf")
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")  #: in the name of one part of a model
#: key prefixes of a file with more than a diffusion model
TEXT_ENCODERS = ("cond_stage_model.", "conditioner.", "text_encoders.", "text_model.")
VAES = ("first_stage_model.", "vae.")
GGUF_NODES = "dequant.py"  #: a file that only ComfyUI-GGUF has, whatever its folder is called
GGUF_PACK = "trace_comfyui_gguf"  #: name under which its modules are imported; ComfyUI uses the folder's


@dataclass(frozen=True)
class Source:
    """The values of ``--model``, ``--clip``, ``--vae`` and ``--dtype``."""

    model: str
    clip: tuple[str, ...] = ()
    vae: str | None = None
    dtype: str = "auto"

    @classmethod
    def of(cls, args) -> Source:
        return cls(
            args.model,
            tuple(getattr(args, "clip", None) or ()),
            getattr(args, "vae", None),
            getattr(args, "dtype", None) or "auto",
        )

    @property
    def is_demo(self) -> bool:
        return self.model in DEMO_MODELS

    def files(self) -> list[Path]:
        """The files, checked to exist and to have a format without code.

        Raises:
            TraceError: naming the option.
        """
        if self.is_demo:
            other = (
                "--clip"
                if self.clip
                else "--vae"
                if self.vae
                else "--dtype"
                if self.dtype != "auto"
                else None
            )
            if other:
                raise TraceError(f"{other} needs a model file; {self.model} includes everything")
            return []
        return [
            _file("--model", self.model),
            *(_file("--clip", c) for c in self.clip),
            *([_file("--vae", self.vae)] if self.vae else []),
        ]


def _file(option: str, name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        raise TraceError(
            f"{option} '{name}' is a folder; name a file in it. A model in the folders of diffusers has to "
            "be one file, as ComfyUI reads it"
        )
    if not path.is_file():
        raise TraceError(
            f"--model '{name}' is no demo model ({', '.join(DEMO_MODELS)}) and no file"
            if option == "--model"
            else f"{option} '{name}' is not a file"
        )
    if path.suffix.lower() not in ENDINGS:
        raise TraceError(
            f"{option} '{path.name}' must be a .safetensors or .gguf file; other formats can run code when "
            "opened"
        )
    if (shard := SHARD.search(path.name)) and int(shard[1]) > 1:
        raise TraceError(
            f"{option} '{path.name}' is one of {int(shard[1])} parts of a model; name a file that holds all "
            "of it"
        )
    return path


def load(model: str, clip: str | Sequence[str] = (), vae: str | None = None, dtype: str = "auto") -> tuple:
    """``(model, clip, vae)``: ComfyUI's own objects. A ComfyUI is found and imported first.

    Args:
        model: a name of :data:`DEMO_MODELS`, a checkpoint, or a diffusion model's file.
        clip: files of the text encoders, for a file without them.
        vae: file of the VAE, for a file without one; without any VAE the third object is None.
        dtype: precision of the weights in memory, one of :data:`DTYPES`.

    Raises:
        TraceError: if a file is missing or has the wrong content.
        EngineNotFound: if there is no ComfyUI.
    """
    if dtype not in DTYPES:
        raise TraceError(f"dtype '{dtype}' is unknown; use one of {', '.join(DTYPES)}")
    return open_model(Source(str(model), (clip,) if isinstance(clip, str) else tuple(clip), vae, dtype))


def open_model(source: Source | str, vae: bool = False, clock=None):
    """``(model, clip, vae)`` of a demo model, a checkpoint, or a diffusion model with separate files.

    Args:
        vae: True if the command draws pictures and needs a VAE.

    Raises:
        TraceError: if a file is missing, does not match its option, or a needed file is not given. The files'
            keys are checked before anything is loaded.
    """
    source = Source(source) if isinstance(source, str) else source
    files = source.files()
    if clock:
        clock.enter("load")
    if source.is_demo:
        engine.load()
        from ..demo import loader

        return loader.load(source.model)
    path, has = files[0], _contents(files[0])
    for file in map(Path, source.clip):
        if file.suffix.lower() != ".gguf" and not any(
            mark in key for key in _keys(file, "a text encoder") for mark in TEXT_LAYERS
        ):
            raise TraceError(
                f"--clip '{file.name}' is not a text encoder: it has none of the layers of CLIP or T5"
            )
    if not source.clip and not has["clip"]:
        raise TraceError(
            f"'{path.name}' has no text encoder; give its files with --clip, one option per file "
            f"({', '.join(_encoders())}), or use a full checkpoint"
        )
    if vae and not source.vae and not has["vae"]:
        raise TraceError(f"'{path.name}' has no VAE, which pictures need; give a VAE file with --vae")
    engine.load()
    model, clip, decoder = _model(path, source, has)
    if source.clip:
        clip = _clip(model, source.clip)
    _check_clip(model, clip, source)
    return model, clip, _vae(source.vae) if source.vae else decoder


def _encoders() -> list[str]:
    """The text encoder files of every kind of model."""
    from ..backbones.families import KINDS

    return list(dict.fromkeys(f"{kind.title}: {kind.encoders}" for kind in KINDS.values()))


def _contents(path: Path) -> dict[str, bool]:
    """Which parts a file has, from its tensor names."""
    if path.suffix.lower() == ".gguf":
        return {"clip": False, "vae": False}
    keys = _keys(path, "a checkpoint")
    if (found := contents(keys)) not in ("", "a model", "a text encoder"):
        raise TraceError(
            f"--model '{path.name}' is {found}, not a model"
            + ("; a LoRA is given with --lora, beside its base model" if found == "a LoRA" else "")
        )
    return {
        "clip": any(k.startswith(TEXT_ENCODERS) for k in keys),
        "vae": any(k.startswith(VAES) for k in keys),
    }


def _keys(path: Path, what: str) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise TraceError(f"ComfyUI cannot load '{path.name}' as {what}: {error}") from error


def _model(path: Path, source: Source, has: dict[str, bool]) -> tuple:
    import comfy.sd
    import torch

    options = {"dtype": getattr(torch, DTYPES[source.dtype])} if DTYPES[source.dtype] else {}
    if path.suffix.lower() == ".gguf":
        if options:
            raise TraceError(
                "--dtype applies to .safetensors models; a .gguf file defines how its weights are stored"
            )
        return (
            _loaded(
                path, "a diffusion model", lambda: gguf().UnetLoaderGGUF().load_unet(_gguf_name(path))[0]
            ),
            None,
            None,
        )
    if not (has["clip"] or has["vae"]):
        return (
            _loaded(
                path,
                "a diffusion model",
                lambda: comfy.sd.load_diffusion_model(str(path), model_options=options),
            ),
            None,
            None,
        )
    parts = _loaded(
        path,
        "a checkpoint",
        lambda: comfy.sd.load_checkpoint_guess_config(
            str(path),
            output_vae=not source.vae and has["vae"],
            output_clip=not source.clip,
            model_options=options,
        ),
    )
    if parts[0] is None:
        raise TraceError(
            f"'{path.name}' has no diffusion model; give --model a checkpoint or a diffusion model"
        )
    return parts[:3]


def _loaded(path: Path, what: str, action: Callable):
    """The result of one of ComfyUI's loaders. Any exception of theirs becomes a user error."""
    try:
        found = action()
    except TraceError:
        raise
    except Exception as error:
        text = str(error).split("\n")[0]
        raise TraceError(
            f"ComfyUI cannot load '{path.name}' as {what}: {text or type(error).__name__}"
        ) from error
    if found is None:
        raise TraceError(f"ComfyUI cannot load '{path.name}' as {what}: it does not recognise the model type")
    return found


def _clip(model, files: Sequence[str]):
    """Load text encoders as the model's family needs them."""
    import comfy.sd

    from ..backbones import backbone_for

    kind = getattr(comfy.sd.CLIPType, backbone_for(model).traits.clip_type)
    if any(Path(f).suffix.lower() == ".gguf" for f in files):
        loader = gguf().CLIPLoaderGGUF()
        return _loaded(
            Path(files[0]),
            "text encoders",
            lambda: loader.load_patcher(list(files), kind, loader.load_data(list(files))),
        )
    shown = Path(" and ".join(Path(f).name for f in files))
    return _loaded(shown, "text encoders", lambda: comfy.sd.load_clip(ckpt_paths=list(files), clip_type=kind))


def _vae(file: str):
    import comfy.sd
    import comfy.utils

    def action():
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(file, safe_load=True))
        if vae.first_stage_model is None:
            raise ValueError("it contains no VAE that ComfyUI recognises")
        return vae

    return _loaded(Path(file), "a VAE", action)


def _check_clip(model, clip, source: Source) -> None:
    """Check that there is a text encoder, and that its rows fit the model.

    Raises:
        TraceError: naming the remedy.
    """
    from ..backbones import backbone_for
    from ..backbones.clips import check_clip

    if clip is None or clip.cond_stage_model is None:
        raise TraceError(
            f"'{Path(source.model).name}' has no text encoder; give its files with --clip, or use a full "
            "checkpoint"
        )
    check_clip(backbone_for(model), clip)


# ------------------------------------------------------------------------------------------- GGUF


def gguf():
    """The ``nodes`` module of ComfyUI-GGUF from ComfyUI's custom nodes.

    Raises:
        TraceError: if it is missing, or cannot be imported.
    """
    if f"{GGUF_PACK}.nodes" in sys.modules:
        return sys.modules[f"{GGUF_PACK}.nodes"]
    packs = engine.load().path / "custom_nodes"
    found = [
        f.parent
        for f in sorted(packs.glob("*/nodes.py"))
        if (f.parent / GGUF_NODES).is_file() and "UnetLoaderGGUF" in f.read_text("utf-8")
    ]
    if not found:
        raise TraceError(
            f"a .gguf file needs the custom nodes ComfyUI-GGUF, which are not in '{packs}'; install "
            "them there, or use a .safetensors file"
        )
    _open_to_nodes(engine.load().path)
    spec = importlib.util.spec_from_file_location(
        GGUF_PACK, found[0] / "__init__.py", submodule_search_locations=[str(found[0])]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules[GGUF_PACK] = package
    try:
        spec.loader.exec_module(package)
    except Exception as error:
        sys.modules.pop(GGUF_PACK, None)
        raise TraceError(f"the custom nodes in '{found[0]}' cannot be imported: {error}") from error
    return sys.modules[f"{GGUF_PACK}.nodes"]


def _open_to_nodes(engine: Path) -> None:
    """Make ComfyUI's own ``nodes`` module, which the custom nodes import, the first of that name."""
    if str(engine) in sys.path:
        sys.path.remove(str(engine))
    sys.path.insert(0, str(engine))


def _gguf_name(path: Path) -> str:
    """The name by which the loader node finds a file, after its folder is added to the model folders."""
    import folder_paths

    folder_paths.add_model_folder_path("diffusion_models", str(path.resolve().parent), is_default=True)
    return path.name
