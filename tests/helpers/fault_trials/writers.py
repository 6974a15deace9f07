"""Several writers and readers of one name, in threads and in processes."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

from hypothesis import strategies as st

from fault_trials import Fault, LostFile, UnclearError
from fault_trials.disk import WRITERS, expected, lora
from trace_core.errors import LoraError
from trace_core.lora.erasure import ErasureLora

WAITS = st.lists(st.floats(0, 0.004), min_size=2, max_size=5)  #: seconds before each begins to write


def one_whole(path: Path, allowed: list[bytes]) -> None:
    """The file is one of the whole ones, and alone."""
    if path.read_bytes() not in allowed:
        raise LostFile(f"{path.name} is none of the {len(allowed)} files that were written")
    if len(list(path.parent.iterdir())) != 1:
        raise LostFile(f"left over: {[p.name for p in path.parent.iterdir()]}")


def in_threads(work: list, waits: list[float]) -> None:
    """Run all nearly at once.

    Raises:
        UnclearError: for the first exception of a thread.
    """
    errors, start = [], threading.Barrier(len(work))

    def run(one, wait):
        try:
            start.wait()
            time.sleep(wait)
            one()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=both) for both in zip(work, [*waits, 0.0])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        if isinstance(errors[0], AssertionError):
            raise errors[0]
        raise UnclearError(f"{type(errors[0]).__name__}: {errors[0]}")


def threads(draw) -> None:
    """The last one wins, and its file is whole; a reader meanwhile reads a whole file."""
    writer, waits = draw(st.sampled_from(list(WRITERS))), draw(WAITS)
    count = len(waits)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cat.safetensors"
        path.write_bytes(expected("LoRA", 0))
        fingerprints = {lora(seed).fingerprint for seed in range(count)}

        def read():
            for _ in range(3):
                if writer == "LoRA" and ErasureLora.load(path).fingerprint not in fingerprints:
                    raise LostFile("a reader saw a file that nobody wrote")

        writing = [lambda seed=seed: WRITERS[writer](path, seed) for seed in range(count)]
        in_threads([*writing, read], waits)
        one_whole(path, [expected(writer, seed) for seed in range(count)])


def first_only(draw) -> None:
    """Of several who may not replace a file, exactly one writes it, and the others are told."""
    waits, told = draw(WAITS), []
    count = len(waits)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cat.safetensors"

        def write(seed: int) -> None:
            try:
                lora(seed).save(path, replace=False)
            except FileExistsError:
                told.append(seed)

        in_threads([lambda seed=seed: write(seed) for seed in range(count)], waits)
        one_whole(path, [expected("LoRA", seed) for seed in set(range(count)) - set(told)])
        if len(told) != count - 1:
            raise LostFile(f"{count - len(told)} of {count} wrote the file")


def processes(draw) -> None:
    """As with threads, in processes of their own; one of them may be killed while it writes."""
    waits, killed = draw(WAITS)[:3], draw(st.booleans())
    count = len(waits)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cat.safetensors"
        path.write_bytes(expected("LoRA", 0))
        data = [lora(seed).to_bytes() for seed in range(count)]
        children = [child(path, seed, wait, killed and seed == 1) for seed, wait in enumerate(waits)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        if any(code and not (killed and number == 1) for number, code in enumerate(codes)):
            raise UnclearError(f"a writer ended with {codes}")
        for left in path.parent.glob(".trace-*.tmp"):  # of the one that was killed
            if not killed:
                raise LostFile(f"left over: {left.name}")
            left.unlink()
        one_whole(path, data)


def child(path: Path, seed: int, wait: float, killed: bool) -> int:
    """A process that writes the file; the number of its process."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        time.sleep(wait + 0.03 * killed)  # the one that is killed comes last
        if killed:
            os.fsync = lambda *_: os._exit(9)
        for _ in range(3):
            lora(seed).save(path)
        code = 0
    except LoraError:
        code = 2
    finally:
        os._exit(code)


FAULTS = (
    Fault("two writers, in threads", 25, threads),
    Fault("two first writers, in threads", 20, first_only),
    Fault("two writers, in processes, one killed", 12, processes),
)
