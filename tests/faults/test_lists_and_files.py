"""Lists, files, metadata and disks: no ComfyUI is needed."""

from __future__ import annotations

import pytest

import fault_trials

FAULTS = {fault.title: fault for fault in fault_trials.faults(fault_trials.PLAIN)}


@pytest.mark.parametrize("title", FAULTS)
def test_nothing_is_lost_and_errors_are_clear(trials, title):
    trials(FAULTS[title], shrink=True)
