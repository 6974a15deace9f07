"""The test tiers and the ComfyUI they run on.

The folder of a test is its tier: ``unit`` needs no ComfyUI, ``engine`` needs its model classes, ``server``
and ``browser`` need a full checkout. What cannot run here is skipped with the reason.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

from trace_core import engine as engine_finder

TESTS = Path(__file__).resolve().parent
TIERS = ("unit", "engine", "faults", "server", "browser")
#: tiers, and files of the faults tier, that need no ComfyUI
NO_ENGINE = ("unit", "test_lists_and_files.py", "test_trials_find_faults.py")
NEED_CHECKOUT = ("full_engine", "server", "browser")
#: Files that take long, by about how many seconds. Workers take the longest first, so that none of them works
#: on alone at the end. `make test-fast` leaves these files out.
SECONDS = {
    "engine/test_docs.py": 150,
    "faults/test_models.py": 30,
    "faults/test_runs.py": 30,
    "faults/test_engine_trials_find_faults.py": 40,
    "faults/test_lists_and_files.py": 20,
    "faults/test_trials_find_faults.py": 20,
    "browser/test_browser.py": 200,
    "server/test_workflows.py": 150,
    "engine/test_jobs.py": 110,
    "engine/test_families.py": 80,
    "server/test_draws.py": 30,
    "server/test_cancel.py": 40,
    "server/test_soak.py": 40,
    "engine/test_cli.py": 40,
    "engine/test_attacks.py": 90,
    "engine/test_recover.py": 40,
    "engine/test_architectures.py": 40,
    "engine/test_demo_models.py": 30,
    "engine/test_gating_copies.py": 30,
    "engine/finetune/test_model_untouched.py": 30,
    "engine/finetune/test_command_line.py": 25,
    "engine/finetune/test_resume.py": 25,
    "engine/finetune/test_result.py": 25,
    "engine/test_carried.py": 25,
    "engine/test_work.py": 25,
    "engine/test_nodes.py": 25,
    "engine/test_verify.py": 100,
    "engine/test_judges.py": 45,
    "engine/test_papers.py": 40,
    "engine/formats/test_training.py": 25,
    "engine/test_attention.py": 20,
    "engine/test_compat.py": 20,
    "engine/test_lists.py": 20,
    "engine/formats/test_erasing.py": 20,
}

# Waiting threads sleep instead of spinning: beside another busy process, tiny models run 50 times as fast.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# On the path, the pack's `nodes` folder could answer for ComfyUI's nodes.py (`python -m pytest` puts it
# there).
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != TESTS.parent]


def _find_engine() -> tuple[engine_finder.Engine | None, str]:
    """The engine of this run, or None and the reason. A wrong COMFYUI_PATH is an error, not a reason to
    skip.
    """
    try:
        return engine_finder.find(), ""
    except engine_finder.EngineNotFound as error:
        if os.environ.get("COMFYUI_PATH"):
            raise pytest.UsageError(str(error)) from None
        return None, str(error)


def pytest_report_header() -> str:
    found, reason = _find_engine()
    if found is None:
        return f"engine: none ({reason})"
    return f"engine: {found.path}, {found.version}, {'checkout' if found.full else 'model classes only'}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--trials", type=int, default=None, help="trials of the faults tier, over all faults")
    parser.addoption("--trials-seed", type=int, default=0, help="another seed draws other trials")


def seconds(item: pytest.Item) -> int:
    return SECONDS.get(item.path.relative_to(TESTS).as_posix(), 0)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by `-m`
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    found, reason = _find_engine()
    items.sort(key=seconds, reverse=True)
    for item in items:
        tier = item.path.relative_to(TESTS).parts[0]
        if tier not in TIERS:
            raise pytest.UsageError(f"{item.path} is in none of the folders {', '.join(TIERS)}")
        item.add_marker(tier)
        if seconds(item):
            item.add_marker("slow")
        if item.path.name in NO_ENGINE:
            item.add_marker("once")
        elif tier not in NO_ENGINE and found is None:
            item.add_marker(pytest.mark.skip(reason=reason))
        elif any(item.get_closest_marker(name) for name in NEED_CHECKOUT) and not found.full:
            item.add_marker(
                pytest.mark.skip(reason=f"needs a ComfyUI checkout; {found.path} has only model classes")
            )


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Files go to workers whole, as with `--dist loadfile`, and those of the server tier to one worker, where
    they share a server.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFileOrServer(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "tests/server" if file.startswith("tests/server/") else file

    return ByFileOrServer(config, log)


@pytest.fixture(scope="session")
def engine() -> engine_finder.Engine:
    """ComfyUI, imported once for the whole run, on the CPU."""
    try:
        return engine_finder.load(cpu=True)
    except engine_finder.EngineNotFound as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def fake():
    """The module ``tests/helpers/fake_clip.py``."""
    return importlib.import_module("fake_clip")


@pytest.fixture(scope="session")
def tiny(engine):
    """The module ``tests/helpers/tiny_models.py``, which needs ComfyUI at import."""
    return importlib.import_module("tiny_models")
