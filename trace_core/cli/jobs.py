"""``erase --jobs N``: one erasure a concept, in processes of their own, fused into one file.

What is finished is a file in a folder beside the output, so that nothing is made twice, whatever ends the
processes. The result does not depend on how many there are: each concept is made alone, from the same seed,
on the same number of threads.
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
from .outputs import keep
from .timing import Bars
from .training import Stopped
from .workers import REPORT, START, LocalPool, Setup

RETRIES = 3  #: of a concept whose worker is lost
FALSE_STARTS = 3  #: workers lost in a row before any was ready
TICK = 0.5  #: seconds between two looks at the workers, where nothing is said


@dataclass
class Lost:
    """A concept that cannot be made, and why."""

    number: int
    reason: str


class Foreman:
    """Gives concepts to workers, and others to those that are lost.

    Attributes:
        lost: concepts that cannot be made.
        hired: how many workers there have been.
    """

    def __init__(self, pool, workers: int, write: Callable[[int, bytes], str | None], show: Display):
        self.pool, self.workers, self.write, self.show = pool, workers, write, show
        self.at: dict = {}  #: what each worker is at: a number, or None while it waits for one
        self.ready: set = set()  #: those that have loaded the model
        self.tries: dict[int, int] = {}
        self.lost: list[Lost] = []
        self.hired = self._false_starts = 0
        self.full = False  #: the last part could not be written

    def run(self, todo: Sequence[int], start: bytes | None = None, shared: bool = False) -> None:
        """All that is to do, in order. Concepts that cannot be made are left in :attr:`lost`; the others are
        made all the same.

        Args:
            todo: numbers; :data:`~trace_core.cli.workers.START` comes first, if it is among them.
            start: what the parts share, if it is there.
            shared: the others must wait for :data:`~trace_core.cli.workers.START`, since they share what it
                makes.

        Raises:
            TraceError: if no worker can start, or what comes before the concepts fails.
            RuntimeError: for an error that is not the user's, with the worker's traceback.
        """
        self.todo, self.start, self.shared = deque(todo), start, shared
        while self.todo or any(n is not None for n in self.at.values()):
            while len(self.at) < min(
                self.workers, len(self.todo) + sum(n is not None for n in self.at.values())
            ):
                self._hire()
            for worker, event in self.pool.listen(TICK):
                self._hear(worker, *event)
            self.show.draw()

    def _hire(self) -> None:
        free = min(set(range(1, self.workers + 1)) - {w.number for w in self.at})
        worker = self.pool.hire(free)
        self.hired += 1
        self.at[worker] = None
        self.show.step(free, "starts")

    def _hear(self, worker, kind: str, *said) -> None:
        number = self.at[worker]
        if kind == "step":
            if number is not None:
                self.show.step(worker.number, number, *said)
            return
        if kind == "ready":
            self._false_starts = 0
            self.ready.add(worker)
        elif kind == "done":
            self._done(worker, number, *said)
        else:
            self._gone(worker, number, kind, *said)
        self._give()

    def _done(self, worker, number: int, data: bytes | None) -> None:
        if data is not None:
            failed = self.write(number, data)
            if failed and not self.full:
                self.show.say(
                    f"warning: {failed}. Work goes on; what is finished is kept in memory until there is room"
                )
            self.full = bool(failed)
        if number == START:
            self.start, self.shared = data, False
        self.at[worker] = None
        self.show.done(worker.number, number)

    def _gone(self, worker, number: int | None, kind: str, reason: str) -> None:
        """The worker has ended, with what it was at, or before it could begin."""
        began = worker in self.ready
        del self.at[worker]
        self.ready.discard(worker)
        self.pool.fire(worker)
        self.show.idle(worker.number)
        if kind == "failed":
            raise RuntimeError(f"a worker failed{_at(self.show.name(number))}:\n{reason}")
        if kind == "lost":
            self.show.say(f"worker {worker.number} was lost{_at(self.show.name(number))} ({reason})")
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
                    f"its worker was lost {self.tries[number]} times ({reason}); if that is for want of "
                    "memory, use fewer --jobs",
                )
            )
            if number == START:
                raise TraceError(f"the work before the concepts cannot be done: {self.lost[-1].reason}")
            return
        self.todo.appendleft(number)

    def _give(self) -> None:
        """Something to do for every worker that waits."""
        for worker in [w for w in self.at if w in self.ready and self.at[w] is None]:
            if not self.todo or (self.shared and self.todo[0] != START):
                return
            self.at[worker] = self.todo.popleft()
            self.show.step(worker.number, self.at[worker], "begins")
            worker.give(self.at[worker], self.start)


def _at(name: str) -> str:
    return f" at {name}" if name else ""


class Display:
    """A bar of all concepts and a line for each worker; where nobody watches, a line for each concept."""

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


# ------------------------------------------------------------------------------------------- the way through


def check(args, method, concepts: Sequence[Concept]) -> bool | None:
    """Whether the concepts are made apart (None: as the method has it), before anything is done.

    Raises:
        TraceError: for options that do not go together.
    """
    if args.ray and args.jobs is None:
        raise TraceError("--ray needs --jobs N, the number of workers")
    if args.jobs is not None and args.jobs < 1:
        raise TraceError(f"--jobs is {args.jobs}; it must be at least 1")
    if args.jobs is not None and args.together:
        raise TraceError("--jobs makes each concept in a process, --together all in one; leave one out")
    apart = True if args.jobs is not None or args.apart else False if args.together else None
    if args.resume and (
        args.jobs is not None or (len(concepts) > 1 and (method.per_concept if apart is None else apart))
    ):
        raise TraceError(
            "--resume keeps the state of one training, and here every concept has its own; use --jobs, "
            "which keeps what is finished"
        )
    return apart


def pool_for(setup: Setup, jobs: int, ray: str | None):
    """On this machine, or as :class:`~trace_core.cli.ray_workers.RayPool` at the address ``ray``."""
    if ray is None:
        return LocalPool(setup)
    from .ray_workers import RayPool

    return RayPool(setup, ray, jobs)


def run(args, setup: Setup, clock=None):
    """Make what is missing, then fuse all.

    Returns:
        the :class:`~trace_core.lora.result.Erasure` and where it was written.

    Raises:
        TraceError: naming the concepts that cannot be made; the finished ones stay.
        Stopped: on Ctrl-C; the finished ones stay.
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
                f"{len(lost)} of {len(setup.concepts)} concepts could not be made. {reasons}. "
                f"{_left(setup, folder)}"
            )
        erasure = _fused(setup, folder, clock)
        if clock:
            clock.enter("save")
        path = keep(erasure.lora.to_bytes(), args.out, "the erasure", _left(setup, folder))
    except KeyboardInterrupt:
        raise Stopped(f"stopped; {_left(setup, folder)}") from None
    folder.remove()
    return erasure, path


def _left(setup: Setup, folder: Folder) -> str:
    """What of a job is on the disk, and what is not."""
    there = sum(n not in folder.unwritten and folder.read(n) is not None for n in range(1, len(folder.files)))
    lost = len([n for n in folder.unwritten if n != START])
    gone = f" (no room was left on the disk for {lost} more, which must be made again)" if lost else ""
    return f"{there} of {len(setup.concepts)} concepts are in '{folder.path}'{gone}: the same command goes on"


def _work(args, setup: Setup, folder: Folder, clock=None) -> list[Lost]:
    """Make the concepts that are not there. Returns those that cannot be made."""
    from ..methods import METHODS

    numbers = range(1, len(setup.concepts) + 1)
    shared = METHODS[setup.method].per_concept and len(numbers) > 1
    start = folder.files[START].read_bytes() if shared and folder.read(START) else None
    if clock:
        clock.enter("concepts")
    todo = [n for n in numbers if folder.read(n) is None]
    if len(todo) < len(numbers):
        print(f"going on: {len(numbers) - len(todo)} of {len(numbers)} concepts are there")
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
    """The parts as one erasure, in this process; a concept alone is its own."""
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
