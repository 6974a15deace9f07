"""Workflows and files of before the policy was called `projection` still work."""

from __future__ import annotations

import json

import pytest

from trace_core.closed_form import ClosedFormConfig, erase
from trace_core.lora import ErasureLora
from trace_core.text.concepts import Concept

pytestmark = pytest.mark.full_engine


def test_the_policy_trace_is_the_policy_projection(families):
    model, clip = families["sd1"].model(), families["sd1"].clip
    before, now = (
        erase(model, clip, [Concept("cat", "dog")], ["house"], ClosedFormConfig(policy=name))
        for name in ("trace", "projection")
    )
    assert before.lora.to_bytes() == now.lora.to_bytes() and now.report["method"] == "projection"


def test_a_workflow_that_says_trace_is_valid_and_does_the_same(pack, families):
    node = pack.NODE_CLASS_MAPPINGS["TRACE_ClosedFormProjection"]
    assert node.VALIDATE_INPUTS("trace") is True and node.VALIDATE_INPUTS("projection") is True
    assert "magic" in node.VALIDATE_INPUTS("magic")
    model, clip = families["sd1"].model(), families["sd1"].clip
    made = [
        node().erase(model, clip, "cat -> dog", "house", p, 1.0)["result"] for p in ("trace", "projection")
    ]
    assert made[0][2] == made[1][2]


def test_a_file_that_says_trace_is_read_and_applied(families, tmp_path):
    model, clip = families["sd1"].model(), families["sd1"].clip
    lora = erase(model, clip, [Concept("cat", "dog")], ["house"]).lora
    old = lora.metadata | {"trace.method": json.dumps("trace")}
    parameters = json.loads(old["trace.parameters"]) | {"policy": "trace"}
    path = ErasureLora(lora.modules, old | {"trace.parameters": json.dumps(parameters)}).save(
        tmp_path / "old.safetensors"
    )
    read = ErasureLora.load(path)
    assert read.info()["trace.method"] == "trace" and [p.targets for p in read.parts()] == [["cat"]]
    assert read.fingerprint == lora.fingerprint
