"""``erase --jobs N``: one erasure per concept, in separate processes, fused into one file.

Each finished concept is a file in a folder beside the output. A stopped job therefore continues without
repeating work. The result does not depend on the number of processes: each concept is erased separately, from
the same seed, on the same number of threads.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import TraceError
from ..text.concepts import Concept
from .folder import Folder
from .models import open_model
from .outputs import keep, may_replace
from .timing import Bars
from .training import Stopped
from .workers import REPORT, START, LocalPool, Setup

RETRIES = 3  #: further attempts at a concept after its worker is lost
FALSE_STARTS = 3  #: workers lost in a row before any was ready
TICK = 0.5  #: seconds between two polls of the workers


@dataclass
class Lost:
    """A concept that cannot be erased, with the reason."""

    number: int
    reason: str


class Foreman:
    """Assigns concepts to workers and replaces lost workers.

    Attributes:
        lost: concepts that cannot be erased.
        hired: number of workers started.
    """

    def __init__(self, pool, workers: int, write: Callable[[int, bytes], str | None], show: Display):
        self.pool, self.workers, self.write, self.show = pool, workers, write, show
        self.at: dict = {}  #: task number of each worker; None while it waits
        self.ready: set = set()  #: workers that have loaded the model
        self.tries: dict[int, int] = {}
        self.lost: list[Lost] = []
        self.hired = self._false_starts = 0
        self.full = False  #: the last part could not be written to disk

    def run(self, todo: Sequence[int], start: bytes | None = None, shared: bool = False) -> None:
        """Run all tasks in order. Failed concepts go to :attr:`lost`, and the others still run.

        Args:
            todo: task numbers; :data:`~trace_core.cli.workers.START` comes first, if present.
            start: the shared start of the parts, if it exists already.
            shared: True if the concepts must wait for the result of :data:`~trace_core.cli.workers.START`.

        Raises:
            TraceError: if no worker can start, or the preparation fails.
            RuntimeError: for an internal error, with the worker's traceback.
        """
        self.todo, self.start, self.shared = deque(todo), start, shared
        while self.todo or any(n is not None for n in self.at.values()):
            while len(self.at) < min(
                self.workers, len(self.todo) + sum(n is not None for n in self.at.values())
            ):
                self._hire()
            for worker, event in self.pool.listen(TICK):
                self._handle_event(worker, *event)
            self.show.draw()

    def _hire(self) -> None:
        free = min(set(range(1, self.workers + 1)) - {w.number for w in self.at})
        worker = self.pool.hire(free)
        self.hired += 1
        self.at[worker] = None
        self.show.step(free, "starts")

    def _handle_event(self, worker, kind: str, *details) -> None:
        number = self.at[worker]
        if kind == "step":
            if number is not None:
                self.show.step(worker.number, number, *details)
            return
        if kind == "ready":
            self._false_starts = 0
            self.ready.add(worker)
        elif kind == "done":
            self._done(worker, number, *details)
        else:
            self._worker_ended(worker, number, kind, *details)
        self._assign_tasks()

    def _done(self, worker, number: int, data: bytes | None) -> None:
        if data is not None:
            failed = self.write(number, data)
            if failed and not self.full:
                self.show.say(
                    f"warning: {failed}. Work continues; finished parts stay in memory until there is room"
                )
            self.full = bool(failed)
        if number == START:
            self.start, self.shared = data, False
        self.at[worker] = None
        self.show.done(worker.number, number)

    def _worker_ended(self, worker, number: int | None, kind: str, reason: str) -> None:
        """Handle the end of a worker: retry its task, or report why it cannot be done."""
        began = worker in self.ready
        del self.at[worker]
        self.ready.discard(worker)
        self.pool.fire(worker)
        self.show.idle(worker.number)
        if kind == "failed":
            raise RuntimeError(f"a worker failed{_at_task(self.show.name(number))}:\n{reason}")
        if kind == "lost":
            self.show.say(f"worker {worker.number} was lost{_at_task(self.show.name(number))} ({reason})")
        if number is None:
            self._false_starts += not began
            if kind == "refused":
                raise TraceError(reason)
            if self._false_starts >= FALSE_STARTS:
                raise TraceError(
                    f"workers end before they can begin ({reason}); is there memory for the model "
                    f"{self.workers} times? Use fewer --jobs"
                )
            return
        if kind == "refused":
            if number == START:
                raise TraceError(reason)
            self.lost.append(Lost(number, reason))
            return
        self.tries[number] = self.tries.get(number, 0) + 1
        if self.tries[number] > RETRIES:
            self.lost.append(
                Lost(
                    number,
                    f"its worker was lost {self.tries[number]} times ({reason}); if memory is short, use "
                    "fewer --jobs",
                )
            )
            if number == START:
                raise TraceError(f"the preparation for the concepts failed: {self.lost[-1].reason}")
            return
        self.todo.appendleft(number)

    def _assign_tasks(self) -> None:
        """Assign a task to every waiting worker."""
        for worker in [w for w in self.at if w in self.ready and self.at[w] is None]:
            if not self.todo or (self.shared and self.todo[0] != START):
                return
            self.at[worker] = self.todo.popleft()
            self.show.step(worker.number, self.at[worker], "begins")
            worker.give(self.at[worker], self.start)


def _at_task(name: str) -> str:
    return f" at {name}" if name else ""


class Display:
    """A progress bar for all concepts and a line per worker; without a terminal, a line per concept."""

    def __init__(self, concepts: Sequence[Concept], done: int, workers: int):
        from tqdm import tqdm

        self.concepts, self.live, self.count = concepts, sys.stderr.isatty(), done
        bars = range(1, workers + 1) if self.live else ()
        self._bar = tqdm(
            total=len(concepts),
            initial=done,
            desc="concepts",
            leave=False,
            dynamic_ncols=True,
            disable=not self.live,
        )
        self._lines = {n: tqdm(bar_format="{desc}", position=n, leave=False) for n in bars}

    def name(self, number: int | None) -> str:
        if number is None:
            return ""
        return f"'{self.concepts[number - 1].target}'" if number != START else "the preparation"

    def step(
        self,
        worker: int,
        number: int | str,
        what: str = "",
        done: int | None = None,
        total: int | None = None,
    ) -> None:
        if self.live:
            where = number if isinstance(number, str) else f"{self.name(number)}: {what}"
            line = f"worker {worker}: {where}" + (f" {done}/{total}" if total else "")
            self._lines[worker].set_description_str(
                line[: shutil.get_terminal_size().columns - 1], refresh=False
            )

    def done(self, worker: int, number: int) -> None:
        self.idle(worker)
        if number != START:
            self.count += 1
            self._bar.update(1)
            if not self.live:
                self.say(f"{self.count} of {len(self.concepts)}: {self.name(number)} is done")

    def idle(self, worker: int) -> None:
        self.step(worker, "waits")

    def draw(self) -> None:
        for line in self._lines.values():
            line.refresh()

    def say(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        for bar in (*self._lines.values(), self._bar):
            bar.close()


# ------------------------------------------------------------------------------------------- the job


def check(args, method, concepts: Sequence[Concept]) -> bool | None:
    """Whether to erase the concepts separately; None: as the method does by default.

    Raises:
        TraceError: for options that contradict each other.
    """
    if args.ray and args.jobs is None:
        raise TraceError("--ray needs --jobs N, the number of workers")
    if args.jobs is not None and args.jobs < 1:
        raise TraceError(f"--jobs is {args.jobs}; it must be at least 1")
    if args.jobs is not None and args.together:
        raise TraceError("--jobs erases each concept separately, --together all at once; leave one out")
    separate = True if args.jobs is not None or args.apart else False if args.together else None
    if args.resume and (
        args.jobs is not None
        or (len(concepts) > 1 and (method.per_concept if separate is None else separate))
    ):
        raise TraceError(
            "--resume keeps the state of one training, and here each concept has its own; use --jobs, "
            "which keeps every finished concept"
        )
    return separate


def pool_for(setup: Setup, jobs: int, ray: str | None):
    """Workers on this machine, or on the Ray cluster at the address ``ray``."""
    if ray is None:
        return LocalPool(setup)
    from .ray_workers import RayPool

    return RayPool(setup, ray, jobs)


def run(args, setup: Setup, clock=None):
    """Erase the missing concepts, then fuse all.

    Returns:
        the :class:`~trace_core.lora.result.Erasure` and the path of its file.

    Raises:
        TraceError: naming the concepts that cannot be erased; the finished parts stay.
        Stopped: on Ctrl-C; the finished parts stay.
    """
    folder = Folder(args.out, setup)
    folder.open()
    try:
        lost = _work(args, setup, folder, clock)
        if lost:
            reasons = "; ".join(
                f"'{setup.concepts[found.number - 1].target}': {found.reason}" for found in lost
            )
            raise TraceError(
                f"{len(lost)} of {len(setup.concepts)} concepts could not be erased. {reasons}. "
                f"{_left(setup, folder)}"
            )
        erasure = _fused(setup, folder, clock)
        if clock:
            clock.enter("save")
        path = keep(erasure.lora.to_bytes(), args.out, "the erasure", _left(setup, folder), may_replace(args))
    except KeyboardInterrupt:
        raise Stopped(f"stopped; {_left(setup, folder)}") from None
    folder.remove()
    return erasure, path


def _left(setup: Setup, folder: Folder) -> str:
    """A sentence on how much of the job is on disk and how much is not."""
    finished = sum(
        n not in folder.unwritten and folder.read(n) is not None for n in range(1, len(folder.files))
    )
    unwritten_count = len([n for n in folder.unwritten if n != START])
    unwritten_note = (
        f" ({unwritten_count} more did not fit on the disk and must be erased again)"
        if unwritten_count
        else ""
    )
    return (
        f"{finished} of {len(setup.concepts)} concepts are in '{folder.path}'{unwritten_note}; run the same "
        "command to continue"
    )


def _work(args, setup: Setup, folder: Folder, clock=None) -> list[Lost]:
    """Erase the concepts without a finished part. Returns those that cannot be erased."""
    from ..methods import METHODS

    numbers = range(1, len(setup.concepts) + 1)
    shared = METHODS[setup.method].per_concept and len(numbers) > 1
    start = folder.files[START].read_bytes() if shared and folder.read(START) else None
    if clock:
        clock.enter("concepts")
    todo = [n for n in numbers if folder.read(n) is None]
    if len(todo) < len(numbers):
        print(f"continuing: {len(numbers) - len(todo)} of {len(numbers)} concepts are finished")
    if not todo:
        return []
    workers = min(args.jobs, len(todo))
    pool, show = (
        pool_for(setup, workers, args.ray),
        Display(setup.concepts, len(numbers) - len(todo), workers),
    )
    try:
        foreman = Foreman(pool, workers, folder.write, show)
        foreman.run(todo if start else [START, *todo], start, shared and start is None)
    finally:
        show.close()
        pool.close()
    return foreman.lost


def _fused(setup: Setup, folder: Folder, clock=None):
    """Fuse the parts in this process. A single concept needs no fusion."""
    import torch

    from ..lora.result import Erasure

    parts = [folder.read(n) for n in range(1, len(folder.files))]
    parts = [Erasure(part, json.loads(part.metadata.pop(REPORT, "{}"))) for part in parts]
    if len(parts) == 1:
        return parts[0]
    torch.set_num_threads(setup.threads)
    model, clip, _ = open_model(setup.source, clock=clock)
    bars = Bars(clock)
    try:
        return setup.eraser.fuse(model, clip, parts, folder.read(START), bars)
    finally:
        bars.close()
