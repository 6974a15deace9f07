"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

#: what the process has open, by name
OPEN_FILES = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/self/fd/")
TEMPORARY = ".trace-"  #: what a file is called before it is whole
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def real(path: str | Path) -> Path:
    """The file that a path means: absolute, without ``..`` and links, whether it is there or not."""
    return Path(os.path.realpath(os.path.expanduser(path) if str(path).startswith("~") else path))


def is_stream(path: str | Path) -> bool:
    """Whether a path is no place for a file but something that is written to as it is: ``/dev/stdout``, a
    pipe.
    """
    path = Path(path)
    if str(path).startswith(OPEN_FILES):  # they may be redirected to a file, of which nothing is to be lost
        return path.exists()
    return path.exists() and not path.is_file() and not path.is_dir()


def write_whole(path: str | Path, data: bytes | Callable[[Path], object], temporary: str = TEMPORARY) -> Path:
    """Write a file: all of it appears, on the disk, or what was there before stays.

    A link stays a link; what it points to is written.

    Args:
        data: the contents, or a function that writes them to the path it is given.
        temporary: how the name begins under which it is written.

    Returns:
        ``path``.

    Raises:
        OSError: if it cannot be written.
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
        if unfinished:  # moved away, if all went well
            Path(unfinished).unlink(missing_ok=True)
    return path


def why(error: OSError) -> str:
    """What went wrong, and what to do about it."""
    remedy = (
        "make room there, or choose another folder"
        if error.errno in FULL
        else "choose a folder that you may write to"
    )
    return f"{error.strerror or error}; {remedy}"


def canonical(data: bytes) -> bytes:
    """The same safetensors file with its metadata in alphabetical order: equal contents, equal bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def own_memory(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, contiguous, none in the memory of another (layers may share a factor), as
    safetensors wants them.
    """
    out, seen = {}, set()
    for key, tensor in state.items():
        tensor = tensor.contiguous()
        at = tensor.untyped_storage().data_ptr()
        out[key] = tensor.clone() if at in seen else tensor
        seen.add(at)
    return out
