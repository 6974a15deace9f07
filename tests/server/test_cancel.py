"""Cancelling in a running ComfyUI, and what its page hears."""

from __future__ import annotations

import asyncio
import json
import time
import uuid

import aiohttp
import numpy as np
import pytest

from server_prompts import base, picture

PHASES = [
    ("quickstart", "encode keep set"),
    ("quickstart", "sample before"),
    ("quickstart", "sample after"),
    ("trace-full", "sample keep"),  # the other phases of a training are cancelled in one without a keep set
    ("trace-full", "sample erase"),
    ("trace-full", "train"),
    ("trace-full", "preview"),
]


def small(prompt: dict) -> dict:
    """The whole pipeline, short, with a preview at every step. A fresh seed keeps the training out of the
    cache; without a training, a fresh energy does so for the closed form.
    """
    out = json.loads(json.dumps(prompt))
    trains = any(entry["class_type"] == "TRACE_LateStageFinetune" for entry in out.values())
    for entry in out.values():
        if entry["class_type"] == "TRACE_LateStageFinetune":
            entry["inputs"] |= {
                "steps": 4,
                "preview_every": 1,
                "width": 32,
                "height": 32,
                "seed": uuid.uuid4().int % 2**31,
            }
        if entry["class_type"] == "TRACE_ClosedFormProjection" and not trains:
            entry["inputs"]["energy"] = 0.9 + 1e-6 * (uuid.uuid4().int % 10_000)
    return out


def live_phases(server, prompt_id: str) -> set[str]:
    return {
        e["phase"]
        for e in server.get("/trace/live")
        if e["prompt_id"] == prompt_id and e["state"] == "running"
    }


@pytest.mark.parametrize(("name", "phase"), PHASES)
def test_cancel_in_each_phase(server, workflow, name, phase):
    """It stops within a moment, says so, and the model draws what it drew before."""
    probe = base() | picture(("demo", 0), seed=11)
    drawn = [np.asarray(server.picture(server.run(probe)["image"]["images"][0]))]
    prompt = small(workflow(name))
    for entry in prompt.values():
        if entry["class_type"] == "TRACE_LateStageFinetune" and phase != "sample keep":
            entry["inputs"]["objective"] = "esd"
    prompt_id = server.queue(prompt)
    end = time.monotonic() + 240
    while phase not in live_phases(server, prompt_id):
        assert time.monotonic() < end, f"{phase} never came"
        assert prompt_id not in server.get(f"/history/{prompt_id}"), f"{phase} was not seen before the end"
        time.sleep(0.005)
    server.interrupt()
    pressed = time.monotonic()
    entry = server.wait(prompt_id, 60)
    assert time.monotonic() - pressed < 10
    assert any(m[0] == "execution_interrupted" for m in entry["status"]["messages"])
    assert "cancelled" in {e["state"] for e in server.get("/trace/live") if e["prompt_id"] == prompt_id}
    probe["sampler"]["inputs"]["seed"], again = 12, dict(probe)
    server.run(again)  # another seed, so that the first is sampled anew
    probe["sampler"]["inputs"]["seed"] = 11
    drawn.append(np.asarray(server.picture(server.run(probe)["image"]["images"][0])))
    assert np.array_equal(*drawn)


async def run_and_listen(server, prompt: dict) -> tuple[str, list]:
    """A run's id, and what a page hears of it: messages, and pictures as bytes."""
    client, heard = uuid.uuid4().hex, []
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.url}/ws?clientId={client}") as socket,
    ):
        prompt_id = await asyncio.to_thread(server.queue, prompt, client)
        async for message in socket:
            text = message.type == aiohttp.WSMsgType.TEXT
            heard.append(json.loads(message.data) if text else message.data)
            if text and heard[-1]["type"] in ("execution_success", "execution_error"):
                break
    return prompt_id, heard


@pytest.fixture(scope="module")
def after_cancel(server, workflow):
    """A workflow that was cancelled and is queued again: its id, its training's node, and what is heard."""
    prompt = small(workflow("trace-full"))
    node = next(n for n, entry in prompt.items() if entry["class_type"] == "TRACE_LateStageFinetune")
    prompt[node]["inputs"]["steps"] = 3
    prompt_id = server.queue(prompt)
    while "sample keep" not in live_phases(server, prompt_id):
        time.sleep(0.01)
    server.interrupt()
    server.wait(prompt_id, 60)
    again, heard = asyncio.run(asyncio.wait_for(run_and_listen(server, prompt), 240))
    return again, node, heard


def test_after_cancel_the_same_workflow_succeeds(server, after_cancel):
    prompt_id, *_ = after_cancel
    entry = server.wait(prompt_id)
    assert entry["status"]["status_str"] == "success"
    tuned_output = next(o for o in entry["outputs"].values() if "trace_losses" in o)
    assert len(tuned_output["trace_losses"]) == 3
    live = [e for e in server.get("/trace/live") if e["prompt_id"] == prompt_id]
    assert any(e["state"] == "done" and len(e["points"]) == 3 for e in live)


def test_events_over_the_socket(server, after_cancel):
    """What a panel hears while it trains: phases, every point once, the window, previews; the stock bar's
    events beside them.
    """
    prompt_id, node, heard = after_cancel
    texts = [m for m in heard if isinstance(m, dict)]
    assert texts[-1]["type"] == "execution_success"
    told = [m["data"] for m in texts if m["type"] == "trace.progress"]
    assert {e["prompt_id"] for e in told} == {prompt_id}
    events = [e for e in told if e["node"] == node]
    assert {"sample keep", "sample erase", "train"} <= {e["phase"] for e in events}
    assert [p["step"] for e in events for p in e["points"]] == [0, 1, 2]
    assert events[-1]["state"] == "done"
    assert 0 <= events[-1]["window"][0] < events[-1]["window"][1] <= 1
    assert any(isinstance(m, bytes) for m in heard), "a preview picture"
    assert any(m["type"] == "progress" and m["data"]["node"] == node and m["data"]["max"] == 3 for m in texts)
    live = server.get("/trace/live", node=node)
    assert [p["step"] for p in live["points"]] == [0, 1, 2]
    assert len(live["previews"]) == 4
    last = {k: live["previews"][-1][k] for k in ("filename", "subfolder", "type")}
    assert server.picture(last).height > 100
