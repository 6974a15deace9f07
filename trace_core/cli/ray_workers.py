"""Workers on a Ray cluster, with the same interface as the local ones in :mod:`trace_core.cli.workers`."""

from __future__ import annotations

import math
import os
import socket
from dataclasses import replace
from pathlib import Path

from ..errors import TraceError
from .workers import PartMaker, Setup, as_event


class RayPartMaker:
    """A Ray actor that works in one thread and reports progress in another.

    Errors are returned as values, which separates them from a lost process.
    """

    def __init__(self, setup: Setup):
        self.setup, self.maker, self.where = setup, None, None

    def begin(self) -> tuple:
        def begin() -> tuple:
            try:
                self.maker = PartMaker(self.setup)
            except TraceError as error:
                raise TraceError(
                    f"on {socket.gethostname()}: {error}; with --ray the checkpoint needs the same path on "
                    "every machine"
                ) from error
            return ("ready",)

        return as_event(begin)

    def work(self, number: int, start: bytes | None) -> tuple:
        self.where = None
        return as_event(lambda: ("done", self.maker.work(number, start, self._tell)))

    def _tell(self, *where) -> None:
        self.where = where

    def look(self) -> tuple | None:
        return self.where


class RayWorker:
    def __init__(self, ray, number: int, actor):
        self._ray, self.number, self.actor, self._looking = ray, number, actor, None
        self.answer = actor.begin.remote()

    def give(self, number: int, start: bytes | None) -> None:
        self._looking, self.answer = None, self.actor.work.remote(number, start)

    def hear(self) -> tuple:
        """The event that the current task ended with, once ``answer`` is ready."""
        answer, self.answer = self.answer, None
        try:
            return self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            return "failed", str(error)
        except self._ray.exceptions.RayError as error:
            return "lost", " ".join(str(error).split())[:200]

    def look(self) -> tuple | None:
        """The latest progress event, if any. Never waits."""
        self._looking = self._looking or self.actor.look.remote()
        if not self._ray.wait([self._looking], timeout=0)[0]:
            return None
        found, self._looking = self._looking, None
        try:
            where = self._ray.get(found)
        except self._ray.exceptions.RayError:
            return None  # the answer of the task reports the error
        return where and ("step", *where)


class RayPool:
    """Workers on a Ray cluster. Part files travel through Ray."""

    def __init__(self, setup: Setup, address: str, count: int):
        """Args:
            address: address of a cluster, ``auto`` for the cluster of this machine, ``local`` to start one.

        Raises:
            TraceError: if Ray is not installed, or no cluster answers.
        """
        try:
            import ray
        except ImportError:
            raise TraceError(
                "--ray needs Ray, which is not installed; run `pip install ray`, or leave --ray out"
            ) from None
        self._ray, self.workers = ray, []
        self._mine = not ray.is_initialized()
        if self._mine:
            _join(ray, address, count)
        gpus = 0 if setup.cpu else ray.cluster_resources().get("GPU", 0)
        share = 1 / math.ceil(count / gpus) if gpus else 0
        ray.method(concurrency_group="look")(RayPartMaker.look)  # marks the method for that group
        self._actor = ray.remote(num_cpus=1, num_gpus=share, max_restarts=0, concurrency_groups={"look": 1})(
            RayPartMaker
        )
        here = lambda name: str(Path(name).resolve())  # noqa: E731
        files = (
            {}
            if setup.size is None
            else {
                "model": here(setup.model),
                "clip": tuple(map(here, setup.clip)),
                "vae": here(setup.vae) if setup.vae else None,
            }
        )
        self._setup = ray.put(replace(setup, **files))

    def hire(self, number: int) -> RayWorker:
        self.workers.append(RayWorker(self._ray, number, self._actor.remote(self._setup)))
        return self.workers[-1]

    def fire(self, worker: RayWorker) -> None:
        self.workers.remove(worker)
        self._ray.kill(worker.actor)

    def listen(self, timeout: float) -> list[tuple[RayWorker, tuple]]:
        """Events of the workers, as :meth:`LocalPool.listen` returns them."""
        waiting = [w.answer for w in self.workers if w.answer is not None]
        there = self._ray.wait(waiting, timeout=timeout)[0] if waiting else []
        heard = [(w, w.hear()) for w in self.workers if w.answer in there]
        busy = [w for w in self.workers if w.answer is not None]
        return heard + [(w, where) for w in busy if (where := w.look())]

    def close(self) -> None:
        for worker in list(self.workers):
            self.fire(worker)
        if self._mine:
            self._ray.shutdown()


def _join(ray, address: str, count: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # send no usage statistics
    options: dict = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options |= {"num_cpus": count, "include_dashboard": False, "object_store_memory": 100 << 20}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise TraceError(
            f"--ray {address}: no Ray cluster answers ({error}); start one with `ray start --head`, or use "
            "`--ray local`"
        ) from error
