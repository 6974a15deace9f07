"""Run time of a command by phase."""

from __future__ import annotations

import time
import weakref

LONGEST = 12  #: phases that a line names; an evaluation has one for every class


class Clock:
    """Seconds by phase, in order of first appearance. One phase runs at a time; phases may repeat."""

    def __init__(self):
        self._began = self._since = time.perf_counter()
        self._name, self._seconds = "start", {}

    def enter(self, name: str) -> None:
        """End the current phase and begin ``name``."""
        if name != self._name:
            self._stop()
            self._name = name

    def _stop(self) -> None:
        now = time.perf_counter()
        self._seconds[self._name] = self._seconds.get(self._name, 0.0) + now - self._since
        self._since = now

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase so far, and ``all``, rounded to milliseconds."""
        self._stop()
        found = {k: round(v, 3) for k, v in self._seconds.items() if v >= 0.001}
        return found | {"all": round(time.perf_counter() - self._began, 3)}

    def line(self) -> str:
        """A line for people: ``load 1.2, encode concepts 3.4, save 0.1; 4.7 in all``."""
        *phases, (_, total) = self.seconds().items()
        phases = [(name, value) for name, value in phases if value >= 0.05]
        longest = sorted(phases, key=lambda phase: -phase[1])[:LONGEST]
        shown = [f"{name} {value:.1f}" for name, value in phases if (name, value) in longest]
        if len(phases) > len(longest):
            rest = sum(value for phase in phases if phase not in longest for value in phase[1:])
            shown.append(f"{len(phases) - len(longest)} more {rest:.1f}")
        return f"seconds: {', '.join(shown)}; {total:.1f} in all" if shown else f"seconds: {total:.1f} in all"


class Bars:
    """One progress bar per phase; each phase is also reported to the clock."""

    _all: weakref.WeakSet = weakref.WeakSet()

    def __init__(self, clock: Clock | None = None):
        self._bar, self.clock = None, clock
        self._all.add(self)

    @classmethod
    def close_all(cls) -> None:
        """Close every bar, so that a message has a line of its own."""
        for bars in cls._all:
            bars.close()

    def __call__(self, phase: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if self.clock:
            self.clock.enter(phase)
        if self._bar is None or self._bar.desc != phase:
            self.close()
            self._bar = tqdm(total=total, desc=phase, leave=False)
            self._bar.desc = phase
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
