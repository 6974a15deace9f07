"""Runs that are cancelled, that meet NaN, and that go on where they stopped."""

from __future__ import annotations

import pytest

import fault_trials

MODULES = ("cancel", "numbers", "resuming")


@pytest.mark.parametrize("module", MODULES)
def test_the_base_model_stays_and_the_next_run_is_the_same(engine, trials, module):
    for fault in fault_trials.faults((module,)):
        trials(fault, shrink=False)
