"""The trials of this tier, and how many there are of each fault."""

from __future__ import annotations

import pytest
import torch

import fault_trials


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Models this small are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trials(request):
    """``trials(fault)`` runs the share of a fault."""
    total = request.config.getoption("--trials") or fault_trials.SHARE
    start = request.config.getoption("--trials-seed")

    def run(fault: fault_trials.Fault, shrink: bool) -> None:
        wanted = fault.trials(total)
        found = fault_trials.run(fault, wanted, start, shrink)
        assert found["trials"] >= wanted, f"{fault.title}: {found['trials']} of {wanted} trials"

    return run
