"""Windows of the trajectory: what is one, what lies in it, and where a concept is decided."""

from __future__ import annotations

import pytest
import torch

from trace_core.errors import TraceError
from trace_core.finetune.trajectory import Points
from trace_core.finetune.windows import DECIDED, LATEST, auto_window, check_window, influence, inside

PERCENTS = (0.0, 0.1, 0.3, 0.45, 0.7)
SIGMAS = (14.0, 9.0, 4.0, 2.0, 0.5)


def points(in_x0: tuple[float, ...], trajectories: int = 3) -> Points:
    """Trajectories on which the concept changes x0 by so much (root mean square) at each step, in shuffled
    order.
    """
    generator = torch.Generator().manual_seed(0)
    rows = [(p, s, d) for p, s, d in zip(PERCENTS, SIGMAS, in_x0) for _ in range(trajectories)]
    rows = [rows[i] for i in torch.randperm(len(rows), generator=generator)]
    percent, sigma, change = (torch.tensor(column) for column in zip(*rows))
    neutral = torch.randn(len(rows), 2, 3, 3, generator=generator)
    signs = torch.randn(neutral.shape, generator=generator).sign()
    concept = neutral + signs * (change / sigma).view(-1, 1, 1, 1)
    numbers = torch.zeros(len(rows), dtype=torch.long)
    return Points(neutral, sigma, percent, numbers, numbers, {"concept": concept, "neutral": neutral})


# ------------------------------------------------------------------------------------- check_window


@pytest.mark.parametrize("window", [(0.0, 1.0), (0, 1), (0.2, 0.3), (0.0, 1e-6), (0.999, 1.0)])
def test_windows_are_accepted(window):
    check_window(*window)


@pytest.mark.parametrize(
    "window",
    [
        (0.5, 0.5),
        (0.6, 0.4),
        (-0.1, 1.0),
        (0.0, 1.1),
        (1.0, 1.0),
        (float("nan"), 1.0),
        (0.0, float("nan")),
        (20, 80),
    ],
)
def test_what_is_no_window_is_named(window):
    with pytest.raises(
        TraceError, match=f"the window is {window[0]} to {window[1]}; it must be 0 <= start < end <= 1"
    ):
        check_window(*window)


# ------------------------------------------------------------------------------------- inside


def test_late_is_in_the_window_with_both_ends_and_early_before_it():
    percent = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    assert inside(percent, (0.25, 0.75), "late").tolist() == [False, True, True, True, False]
    assert inside(percent, (0.25, 0.75), "early").tolist() == [True, False, False, False, False]
    assert inside(percent, (0.25, 0.75), "all").tolist() == [True] * 5


@pytest.mark.parametrize("start", [0.0, 0.3, 0.9])
def test_early_and_late_part_the_trajectory(start):
    percent = torch.rand(100, generator=torch.Generator().manual_seed(0))
    early, late = (inside(percent, (start, 1.0), when) for when in ("early", "late"))
    assert torch.equal(early, ~late) and inside(percent, (start, 1.0), "all").all()


# ------------------------------------------------------------------------------------- the measured window


def test_influence_is_the_change_of_the_finished_picture():
    """A prediction's error of 1 moves x0 by sigma; the mean is over trajectories."""
    percents, found = influence(points((3.0, 0.0, 2.0, 1.0, 5.0)))
    assert percents.tolist() == pytest.approx(PERCENTS)
    assert found.tolist() == pytest.approx([9.0, 0.0, 4.0, 1.0, 25.0], rel=1e-5)


@pytest.mark.parametrize("decided", range(5))
def test_window_starts_where_a_concept_is_decided_at_once(decided):
    change = tuple(float(i == decided) for i in range(5))
    assert auto_window(points(change)) == (pytest.approx(min(PERCENTS[decided], LATEST)), 1.0)


@pytest.mark.parametrize(("early", "start"), [(1 - 1e-3, 0.1), (1 + 1e-3, 0.3)])
def test_a_share_of_the_influence_lies_before_the_start(early, start):
    """All of it in two steps; the first lasts half as long, and a little more or less than its share
    decides.
    """
    before, after = (1 - DECIDED) * early, DECIDED / early
    change = (0.0, (after / 0.2) ** 0.5, (before / 0.15) ** 0.5, 0.0, 0.0)
    assert auto_window(points(change))[0] == pytest.approx(start)


def test_large_errors_late_do_not_hide_what_was_decided_early():
    """In prediction space this concept seems to be decided at the end."""
    made = points((6.0, 0.1, 0.1, 0.1, 1.0))
    change = (made.predictions["concept"] - made.predictions["neutral"]).abs()
    assert change[made.percent > 0.6].mean() > 4 * change[made.percent < 0.05].mean()
    assert auto_window(made)[0] == 0.0


def test_a_concept_that_changes_nothing_gets_a_window_all_the_same():
    start, end = auto_window(points((0.0,) * 5))
    check_window(start, end)
    assert start <= LATEST


def test_the_number_of_trajectories_does_not_move_the_window():
    change = (1.0, 2.0, 3.0, 2.0, 1.0)
    assert auto_window(points(change, 1)) == auto_window(points(change, 7))
