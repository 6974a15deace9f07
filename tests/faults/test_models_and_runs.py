"""Models, nodes and runs of all sorts, on ComfyUI's model classes."""

from __future__ import annotations

import pytest

import fault_trials


@pytest.mark.parametrize("module", fault_trials.ENGINE)
def test_the_base_model_stays_and_errors_are_clear(engine, trials, module):
    for fault in fault_trials.faults((module,)):
        trials(fault, shrink=False)
