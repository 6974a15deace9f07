"""Files that are written completely or not at all."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

#: open files of the process, as path prefixes
OPEN_FILES = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/self/fd/")
TEMPORARY = ".trace-"  #: name prefix of an unfinished file
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def real(path: str | Path) -> Path:
    """The absolute path without ``..`` and links. The file need not exist."""
    return Path(os.path.realpath(os.path.expanduser(path) if str(path).startswith("~") else path))


def is_stream(path: str | Path) -> bool:
    """Whether a path is an open stream or a device, such as ``/dev/stdout`` or a pipe, not a regular file."""
    path = Path(path)
    if str(path).startswith(OPEN_FILES):  # also if redirected to a file, whose contents must stay
        return path.exists()
    return path.exists() and not path.is_file() and not path.is_dir()


def write_whole(path: str | Path, data: bytes | Callable[[Path], object], temporary: str = TEMPORARY) -> Path:
    """Write a file completely and flush it to disk, or leave the existing file unchanged.

    A link stays a link, and its target is written.

    Args:
        data: the contents, or a function that writes them to a given path.
        temporary: name prefix of the unfinished file.

    Returns:
        ``path``.

    Raises:
        OSError: if the file cannot be written.
    """
    path = Path(path)
    if is_stream(path) and isinstance(data, bytes):
        with path.open("ab") as stream:
            stream.write(data)
        return path
    target, unfinished = real(path), None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(dir=target.parent, prefix=temporary, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            if isinstance(data, bytes):
                file.write(data)
            else:
                data(Path(unfinished))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(unfinished, target.stat().st_mode & 0o777 if target.exists() else 0o644)
        os.replace(unfinished, target)
    finally:
        if unfinished:  # already moved after success
            Path(unfinished).unlink(missing_ok=True)
    return path


def why(error: OSError) -> str:
    """The reason of an error, and a remedy."""
    remedy = (
        "make room there, or choose another folder"
        if error.errno in FULL
        else "choose a folder with write permission"
    )
    return f"{error.strerror or error}; {remedy}"


def canonical(data: bytes) -> bytes:
    """The same safetensors file with sorted metadata, so that equal contents give equal bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def own_memory(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors without shared memory, as safetensors requires. Layers may share a factor."""
    out, seen = {}, set()
    for key, tensor in state.items():
        tensor = tensor.contiguous()
        at = tensor.untyped_storage().data_ptr()
        out[key] = tensor.clone() if at in seen else tensor
        seen.add(at)
    return out
