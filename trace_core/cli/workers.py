"""Worker processes on this machine, each erasing one concept after another (on Ray: :mod:`.ray_workers`).

Each worker loads the model once. A pool starts workers and receives their events as tuples::

    ("ready",)                        the model is loaded
    ("step", what, done, total)       progress
    ("done", bytes)                   a part file
    ("refused", message)              a user error; a retry would not help
    ("failed", traceback)             an internal error
    ("lost", reason)                  the process ended or ran out of memory; the concept may be fine
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from ..errors import TraceError, is_out_of_memory
from ..methods import Eraser
from ..text.concepts import Concept
from .models import Source, open_model

START = 0  #: number of the preparation task; concepts count from 1
REPORT = "trace.report"  #: metadata key of a part file for the report
QUIET = 0.2  #: shortest time between two progress events of a worker, in seconds
PATIENCE = 5.0  #: seconds to wait for a worker to end


@dataclass(frozen=True)
class Setup:
    """The settings of a job, sent to each worker once.

    Attributes:
        cpu: as in :func:`trace_core.cli.engine.load`.
        size: bytes of the model's file.
        clip, vae, dtype: as on the command line.
    """

    model: str
    method: str
    concepts: tuple[Concept, ...]
    keep: tuple[str, ...]
    closed_form: Mapping
    finetune: Mapping
    seed: int
    threads: int
    cpu: bool | None = None
    size: int | None = None
    clip: tuple[str, ...] = ()
    vae: str | None = None
    dtype: str = "auto"

    @property
    def eraser(self) -> Eraser:
        """The method with the options of the job."""
        return Eraser(self.method, self.keep, self.seed, self.closed_form, self.finetune)

    @property
    def source(self) -> Source:
        """The model, its text encoders and its VAE."""
        return Source(self.model, self.clip, self.vae, self.dtype)


# ------------------------------------------------------------------------------------------- in the process


class PartMaker:
    """Loads the model in a worker process and makes the parts."""

    def __init__(self, setup: Setup):
        """Raises: TraceError: if the model is missing on this machine."""
        import torch

        from .engine import load

        torch.set_num_threads(setup.threads)
        load(setup.cpu)
        file = Path(setup.model)
        if setup.size is not None and file.is_file() and file.stat().st_size != setup.size:
            raise TraceError(
                f"'{setup.model}' has {file.stat().st_size} bytes here and {setup.size} where the job was "
                "started; use the same file"
            )
        self.setup, (self.model, self.clip, _) = setup, open_model(setup.source)
        self._given, self._start = None, None

    def work(self, number: int, start: bytes | None, tell: Callable[[str, int, int], None]) -> bytes | None:
        """The part file of a concept. For :data:`START`: the shared start of the parts, or None.

        Args:
            start: file of the shared start.
            tell: ``tell(what, done, total)``.
        """
        s, eraser = self.setup, self.setup.eraser
        if number == START:
            self.check()
            first = eraser.fit_start(self.model, self.clip, s.concepts, tell)
            return as_bytes(first) if first and len(s.concepts) > 1 else None
        if start is not None and self._given != start:
            self._given, self._start = start, from_bytes(start)
        hooks = {}
        if eraser.parts.finetune is not None:
            hooks["report"] = lambda p: tell(
                p.phase, *((p.step, p.steps) if p.phase == "train" else (p.done, p.total))
            )
        shared = self._start if start is not None else None
        part = eraser.fit_part(self.model, self.clip, s.concepts[number - 1], shared, tell, **hooks)
        return as_bytes(part.lora, {REPORT: json.dumps(part.report)})

    def check(self) -> None:
        """Refuse concepts that the text encoder cannot read, before any long work.

        Raises:
            ConceptError: naming the concept.
        """
        from ..text.encoding import TextEncoder
        from ..text.spelling import check_spelling

        encoder = TextEncoder(self.clip)
        if self.setup.closed_form.get("stream") != "pooled":
            check_spelling(encoder, self.setup.concepts)
        for concept in self.setup.concepts:
            encoder.encode(concept.target, concept.target)
            encoder.encode(concept.anchor, concept.anchor)


def as_bytes(lora, extra: dict[str, str] | None = None) -> bytes:
    """The bytes that :meth:`~trace_core.lora.ErasureLora.save` would write."""
    return lora.to_bytes(extra)


def from_bytes(data: bytes):
    from ..lora.erasure import ErasureLora

    return ErasureLora.from_bytes(data)


def as_event(action: Callable[[], tuple]) -> tuple:
    """The event that an action returns, or the event for the exception that it raises."""
    try:
        return action()
    except Exception as error:
        if is_out_of_memory(error):
            return "lost", "out of memory"
        if isinstance(error, TraceError):
            return "refused", str(error)
        return "failed", traceback.format_exc()


def serve(pipe, setup: Setup) -> None:
    """Main loop of a local worker. The worker ends when its parent process ends."""
    # Ctrl-C goes to every process of the terminal; the parent ends this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    maker: list[PartMaker] = []

    def begin() -> tuple:
        maker.append(PartMaker(setup))
        return ("ready",)

    event = as_event(begin)
    pipe.send(event)
    while event[0] in ("ready", "done"):
        number, start = pipe.recv()
        tell = throttled(lambda *where: pipe.send(("step", *where)))
        event = as_event(lambda: ("done", maker[0].work(number, start, tell)))
        pipe.send(event)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def throttled(tell: Callable) -> Callable:
    """Limit a progress callback to one call per :data:`QUIET` seconds."""
    last = -math.inf

    def report(*where):
        nonlocal last
        if time.monotonic() - last >= QUIET:
            last = time.monotonic()
            tell(*where)

    return report


# ------------------------------------------------------------------------------------------- local processes


class LocalWorker:
    """A worker process and its pipe."""

    def __init__(self, number: int, setup: Setup):
        # a forked process cannot use a GPU that its parent has used, so spawn
        context = multiprocessing.get_context("spawn")
        self.number, (self.pipe, theirs) = number, context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, setup), daemon=True, name=f"trace-worker-{number}"
        )
        with _environment(number, setup), _no_interrupts():
            self.process.start()
        theirs.close()  # then the pipe ends when the process ends

    def give(self, number: int, start: bytes | None) -> None:
        try:
            self.pipe.send((number, start))
        except OSError:
            pass  # the process has ended; reading the pipe will report it

    def hear(self) -> tuple:
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(PATIENCE)
            code = self.process.exitcode
            return (
                "lost",
                f"killed by signal {-code}" if code and code < 0 else f"ended with exit code {code}",
            )

    def stop(self) -> None:
        self.process.kill()
        self.process.join(PATIENCE)
        self.pipe.close()


@contextmanager
def _environment(number: int, setup: Setup):
    """Environment of a new process: its number of threads, and one of several GPUs."""
    wanted = {"OMP_NUM_THREADS": str(setup.threads), **_gpu(number, setup)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _gpu(number: int, setup: Setup) -> dict[str, str]:
    """Distribute the visible GPUs among the workers."""
    import torch

    count = 0 if setup.cpu else torch.cuda.device_count()
    if count < 2:
        return {}
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = seen if len(seen) == count else [str(i) for i in range(count)]
    return {"CUDA_VISIBLE_DEVICES": names[(number - 1) % count]}


@contextmanager
def _no_interrupts():
    """Block Ctrl-C. A process started meanwhile inherits the block until it sets its own handler."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class LocalPool:
    """Workers on this machine."""

    def __init__(self, setup: Setup):
        self.setup, self.workers = setup, []

    def hire(self, number: int) -> LocalWorker:
        self.workers.append(LocalWorker(number, self.setup))
        return self.workers[-1]

    def fire(self, worker: LocalWorker) -> None:
        self.workers.remove(worker)
        worker.stop()

    def listen(self, timeout: float) -> list[tuple[LocalWorker, tuple]]:
        """Events of the workers, after at most ``timeout`` seconds."""
        speaking = wait([w.pipe for w in self.workers], timeout)
        return [(w, w.hear()) for w in self.workers if w.pipe in speaking]

    def close(self) -> None:
        for worker in list(self.workers):
            self.fire(worker)


def forced_cpu() -> bool | None:
    """True if this process is forced onto the CPU despite a GPU; workers must then use the CPU too."""
    import torch

    from .engine import load

    load()
    return True if torch.cuda.is_available() and sys.modules["comfy.cli_args"].args.cpu else None
