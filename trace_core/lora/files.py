"""Files that are written completely or not at all."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load
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


def write_whole(
    path: str | Path,
    data: bytes | Callable[[Path], object],
    temporary: str = TEMPORARY,
    replace: bool = True,
) -> Path:
    """Write a file completely and flush it to disk, or leave the existing file unchanged.

    A link stays a link, and its target is written.

    Args:
        data: the contents, or a function that writes them to a given path.
        temporary: name prefix of the unfinished file.
        replace: False refuses a file that exists, also one that another program made in the meantime.

    Returns:
        ``path``.

    Raises:
        FileExistsError: if ``replace`` is False and the file exists.
        OSError: if the file cannot be written.
    """
    path = Path(path)
    if is_stream(path) and isinstance(data, bytes):
        with path.open("ab") as stream:
            stream.write(data)
        return path
    target, unfinished, taken = real(path), None, False
    try:
        _make_folder(target.parent)
        handle, unfinished = tempfile.mkstemp(dir=target.parent, prefix=temporary, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            if isinstance(data, bytes):
                file.write(data)
            else:
                data(Path(unfinished))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(unfinished, target.stat().st_mode & 0o777 if target.exists() else 0o644)
        if not replace:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # takes the name, or fails
            taken = True
        os.replace(unfinished, target)
    except BaseException:
        if taken:
            target.unlink(missing_ok=True)
        raise
    finally:
        if unfinished:  # already moved after success
            Path(unfinished).unlink(missing_ok=True)
    return path


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None


def why(error: OSError) -> str:
    """The reason of an error, and a remedy."""
    remedy = (
        "make room there, or choose another folder"
        if error.errno in FULL
        else "another program made this file in the meantime, so choose another name"
        if isinstance(error, FileExistsError)
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


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, in memory of their own.

    Mapped tensors would change with the file, and a file cut short would end the process.

    Raises:
        OSError: if the file cannot be read.
        SafetensorError, ValueError: if it is damaged.
    """
    data = path.read_bytes()
    try:
        state = load(data)
    except (KeyError, RuntimeError, TypeError) as error:  # a type of numbers that torch has not
        raise ValueError(f"{type(error).__name__}: {error}") from error
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return state, header.get("__metadata__") or {}


def own_memory(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors without shared memory, as safetensors requires. Layers may share a factor."""
    out, seen = {}, set()
    for key, tensor in state.items():
        tensor = tensor.contiguous()
        at = tensor.untyped_storage().data_ptr()
        out[key] = tensor.clone() if at in seen else tensor
        seen.add(at)
    return out
