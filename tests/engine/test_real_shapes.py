"""The bench of real shapes: one small case through all its phases, and its results as a table."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from trace_core.text.templates import TEMPLATES

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(engine, monkeypatch):
    """The module ``benchmarks/real_shapes.py``, and ``tables.py`` beside it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for kind, prompts in list(TEMPLATES.items()):  # a small run takes fewer
        monkeypatch.setitem(TEMPLATES, kind, prompts)
    modules = []
    for name in ("real_shapes", "tables"):
        spec = importlib.util.spec_from_file_location(f"trace_benchmark_{name}", BENCHMARKS / f"{name}.py")
        modules.append(importlib.util.module_from_spec(spec))
        monkeypatch.setitem(sys.modules, spec.name, modules[-1])
        spec.loader.exec_module(modules[-1])
    return modules


@pytest.mark.full_engine
@pytest.mark.usefixtures("nothing_stays_loaded")
def test_small_case_runs_through_all_phases(bench, tmp_path):
    """A scaled float8 file: loaded whole, erased, saved, loaded by the stock loader, sampled, trained; its
    bytes are as they were.
    """
    real_shapes, _ = bench
    why = real_shapes.missing("FLUX scaled fp8", True)
    if why:
        pytest.skip(why)
    found = real_shapes.run_case("FLUX scaled fp8", tmp_path, True)
    assert list(found["seconds"]) == [
        "write",
        "load",
        "closed form",
        "save",
        "stock loader",
        "two steps",
        "two steps, erased",
        "finetune step",
    ]
    assert found["keys_left"] == [] and found["storage"] == "scaled float8_e4m3fn"
    assert found["stock_keys"] == [2, 2] and found["edit"][1] > 0.01 * found["edit"][0]
    assert found["base_identical"] and found["reloaded"] and found["peak"] >= found["after_load"] > 0
    json.dumps(found)


def test_cases_are_run_once_and_kept_one_by_one(bench, tmp_path, monkeypatch):
    real_shapes, tables = bench
    done, file = [], tmp_path / "real_shapes.json"
    good = {
        "seconds": {"closed form": 2.4, "finetune step": 9.6},
        "stock_keys": [2, 2],
        "base_identical": True,
        "storage": "bfloat16",
        "after_load": 2**30,
        "peak": 2**31,
        "keys_left": [],
    }

    def run_apart(name, small, timeout):
        done.append(name)
        if name == "FLUX fp8 e5m2":
            raise KeyboardInterrupt
        return {"failed": "ended with 1"} if name == "SD1.5 fp16" else good

    monkeypatch.setattr(real_shapes, "run_apart", run_apart)
    names = ["SD1.5 fp16", "FLUX bf16", "FLUX fp8 e5m2"]
    with pytest.raises(KeyboardInterrupt):
        real_shapes.run(names, results=file)
    real_shapes.run(names[:2], results=file)
    assert done == [*names, "SD1.5 fp16"], "what failed is tried again, what is there is not"
    monkeypatch.setattr(sys.modules[tables.real_shapes.__module__], "RESULTS", tmp_path)
    rows = tables.real_shapes().splitlines()
    assert rows[2] == "| SD1.5 fp16 | failed | failed | failed | failed |"
    assert rows[3] == "| FLUX bf16 | 2 s | 10 s | all keys | bit for bit |"
    assert (
        "| FLUX bf16 |" in tables.real_shapes_phases()
        and "| 2 | 10 | 1.0 | 2.0 | 0 |" in tables.real_shapes_phases()
    )
