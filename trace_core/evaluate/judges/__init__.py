"""Judges of pictures that a user brings: a CLIP, from a folder or from ComfyUI, and NudeNet."""

from __future__ import annotations

from pathlib import Path

from .folder import FolderClip
from .nudity import NUDENET, NudeNet
from .zero_shot import ZeroShot

__all__ = ["NUDENET", "FolderClip", "NudeNet", "ZeroShot", "judge_of"]


def judge_of(name: str) -> ZeroShot | NudeNet:
    """The judge that an option names.

    Args:
        name: ``nudenet``, or the path of a CLIP's folder in the form of transformers.

    Raises:
        TraceError: if NudeNet is not installed, or the folder is not a CLIP.
    """
    if name.strip().casefold() == NUDENET and not Path(name).is_dir():
        return NudeNet()
    return FolderClip(name)
