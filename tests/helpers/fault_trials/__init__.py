"""Randomised trials of faults: what people, files, disks and machines do to the software.

A :class:`Fault` is one sort of trouble, and its trial draws one case of it by hypothesis. A trial that finds
something raises one of :data:`PROBLEMS`. The tests run the trials and fail at the first problem;
``benchmarks/faults.py`` runs the same trials and counts.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyFailure

from trace_core.errors import TraceError

#: Modules of this package with trials; those of ENGINE need ComfyUI's model classes.
PLAIN = ("texts", "damage", "metadata", "disk", "writers")
ENGINE = ("shapes", "widgets", "cancel", "memory", "numbers", "company", "resuming")
FULL = 2400  #: trials of `make test-all`, over all faults
SHARE = 200  #: trials of `make test`


class LostFile(AssertionError):
    """A file is lost, half written, silently replaced, or left over."""


class ChangedModel(AssertionError):
    """The base model, or what hangs on it, is not as it was; or a later result differs."""


class UnclearError(AssertionError):
    """An error does not name the value and the remedy, or is none of the library's."""


PROBLEMS = {"lost files": LostFile, "changed base models": ChangedModel, "unclear errors": UnclearError}


@dataclass(frozen=True)
class Fault:
    """One sort of trouble.

    Attributes:
        title: row of the table.
        share: trials of this fault in a thousand trials of the tier.
        trial: ``trial(draw)``, where ``draw`` takes a hypothesis strategy.
        least: fewest trials of a run.
    """

    title: str
    share: int
    trial: Callable
    least: int = 4

    def trials(self, total: int) -> int:
        return max(self.least, round(self.share * total / 1000))


def faults(modules=(*PLAIN, *ENGINE)) -> list[Fault]:
    return [fault for name in modules for fault in importlib.import_module(f"fault_trials.{name}").FAULTS]


def run(fault: Fault, trials: int, start: int = 0, shrink: bool = True, count: bool = False) -> Counter:
    """Run a fault's trials; the same ``start`` draws the same trials.

    Args:
        shrink: look for the smallest case of a problem.
        count: count problems instead of raising them.

    Returns:
        the number of ``trials``, and of each sort of problem.
    """
    found = Counter(dict.fromkeys(("trials", *PROBLEMS), 0))

    @seed(start)
    @settings(
        max_examples=trials,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink) if shrink and not count else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(st.data())
    def body(data):
        try:
            fault.trial(data.draw)
        except AssertionError as error:
            name = next((n for n, problem in PROBLEMS.items() if isinstance(error, problem)), None)
            if not count or name is None:
                raise
            found[name] += 1
        found["trials"] += 1

    try:
        body()
    except FlakyFailure as error:  # a race is lost once and won again; it was lost all the same
        raise error.exceptions[0] from None
    return found


#: What a person can do about it: a remedy is an instruction, or the range that a value must lie in.
REMEDY = re.compile(
    r"\b(use|write|correct|give|choose|remove|shorten|put|leave|lower|raise|connect|make|save|download|apply|fill|"
    r"set|install|load|split|name|must|needs?|run|restart|widen|fuse|move|press|start over|separate|switch|"
    r"disconnect|take|close|erase|unload|it has|it erases|at least|at most|allowed)\b",
    re.IGNORECASE,
)
#: What belongs to Python and not to a sentence.
INTERNAL = re.compile(r"Traceback|NoneType|<class|object at 0x|\bself\.|unexpected keyword|lambda")
LONGEST = 2000


def clear(error: BaseException, *names: str) -> None:
    """Check that an error is one of the library's, names one of ``names``, and says what to do.

    Raises:
        UnclearError: saying which of these is missing.
    """
    text = str(error)
    if not any(
        cls.__name__ == TraceError.__name__ for cls in type(error).__mro__
    ):  # ComfyUI's pack has a copy
        raise UnclearError(f"{type(error).__name__}: {text[:300]}") from error
    if not text or len(text) > LONGEST or INTERNAL.search(text):
        raise UnclearError(f"no sentence for people: {text[:300]}") from error
    if names and not any(name in text for name in names):
        raise UnclearError(f"it names none of {names}: {text[:300]}") from error
    if not REMEDY.search(text):
        raise UnclearError(f"it has no remedy: {text[:300]}") from error


def attempt(work: Callable, *names: str):
    """``(result, None)`` of work that succeeds, or ``(None, error)`` if its error is clear.

    Raises:
        UnclearError: for any other exception.
    """
    try:
        return work(), None
    except AssertionError:
        raise
    except Exception as error:
        clear(error, *names)
        return None, error
