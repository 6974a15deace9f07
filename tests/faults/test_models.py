"""Models, nodes and other nodes' patches of all sorts, on ComfyUI's model classes."""

from __future__ import annotations

import pytest

import fault_trials

MODULES = ("shapes", "widgets", "memory", "company")


@pytest.mark.parametrize("module", MODULES)
def test_the_base_model_stays_and_errors_are_clear(engine, trials, module):
    for fault in fault_trials.faults((module,)):
        trials(fault, shrink=False)
