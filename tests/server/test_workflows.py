"""Every template, queued over HTTP in a real ComfyUI, and its pictures judged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from trace_core.demo.people import IMPLYING
from trace_core.lora import ErasureLora

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(p.stem for p in (ROOT / "workflows").glob("*.json"))

#: What each template erases: the judge's head and class, and a word that names it in a prompt.
ERASED = {
    "quickstart": [("object", "cat", ("cat", "kitty"))],
    "trace-full": [("object", "cat", ("cat",))],  # and not its synonym, which the erasure was not told
    "flux": [("object", "dog", ("dog",))],
    "style": [("style", "twitter style", ("twitter style",))],
    "several-concepts": [("object", n, (n,)) for n in ("cat", "truck", "pizza")],
    "people": [("person", n, (n,)) for n in ("Anna Berg", "Kirubo", "Mira van Holt")],
    "implicit-content": [("trait", "eye patch", (*IMPLYING, "eye patch"))],
    "combined-concepts": [("style", "google style", ("dog, google style",))],
    "apply-and-stack": [("object", "cat", ("cat", "kitty")), ("object", "truck", ("truck",))],
    "fuse": [("object", n, (n,)) for n in ("cat", "truck", "pizza")],
    "mace": [("object", n, (n,)) for n in ("cat", "truck")],
    "ant": [("object", "cat", ("cat",))],
    "trce": [("object", "cat", ("cat", "kitty"))],
    "verify": [("object", "cat", ("cat", "kitty"))],
    "merge-into-checkpoint": [("object", "cat", ("cat", "kitty"))],
}
#: What prompts ask for beside that: the judge's head and classes.
KNOWN = "object", ("cat", "dog", "house", "pizza", "truck", "ship", "apple")
KNOWN_OF = {
    "people": ("person", ("Viola Brackwell", "Anna Lou Fenwick", "Peter Berg")),
    "implicit-content": ("person", ("Viola Brackwell", "Walter Underhill")),
}


@pytest.fixture(scope="module")
def domain(workflow):
    """``domain(name)``: what the judge of a template's model can tell apart."""
    from trace_core.demo.domain import domain

    def of(name: str):
        loaders = [n for n in workflow(name).values() if n["class_type"] == "TRACE_LoadDemoModel"]
        return domain(loaders[0]["inputs"]["name"])

    return of


@pytest.fixture(scope="module")
def runs(server, workflow):
    """``runs(name)``: outputs of a template by node, each run once."""
    done = {}

    def run(name: str) -> dict:
        if name not in done:
            done[name] = server.run(workflow(name), 900)
        return done[name]

    return run


def compared(outputs: dict) -> dict:
    return next(o for o in outputs.values() if "trace_pairs" in o)


def recognised(server, domain, entries: list[dict], head: str) -> list[str]:
    """The judge's names of some pictures."""
    arrays = [np.asarray(server.picture(e), dtype=np.float32) / 255 for e in entries]
    if head == "trait":
        (name,) = domain.traits
        return [
            name if shown else "" for shown in domain.shows(torch.from_numpy(np.stack(arrays)), head, name)
        ]
    classes = domain.heads[head]
    return [classes[i] for i in domain.judge(torch.from_numpy(np.stack(arrays)), head).argmax(-1).tolist()]


def test_there_is_a_judgement_for_each():
    assert set(NAMES) == set(ERASED)


@pytest.mark.parametrize("name", NAMES)
def test_template_is_what_the_maker_writes(name, maker, harness, info):
    written = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
    assert written == maker.build(name, info, harness), "run tests/server/make_workflows.py"


@pytest.mark.parametrize("name", NAMES)
def test_template_draws_reports_and_saves(name, runs, workflow, server):
    outputs = runs(name)
    found = compared(outputs)
    assert len(found["trace_pairs"]) >= 4
    for pair in found["trace_pairs"]:
        assert server.picture(pair["before"]).size == server.picture(pair["after"]).size == (64, 64)
    assert found["trace_report"][0].startswith("# Before and after")
    for number, node in workflow(name).items():
        if node["class_type"] == "TRACE_SaveErasureLora":
            file = server.base / "output" / "loras" / outputs[number]["text"][0]
            assert ErasureLora.load(file).info()["trace.concepts"]
        if node["class_type"] == "PreviewAny":
            assert outputs[number]["text"][0]


@pytest.mark.parametrize("name", NAMES)
def test_template_erases(name, runs, server, domain):
    pairs = compared(runs(name))["trace_pairs"]
    for head, wanted, words in ERASED[name]:
        named = [p for p in pairs if any(w in p["prompt"] for w in words)]
        assert len(named) >= 1
        before = recognised(server, domain(name), [p["before"] for p in named], head)
        after = recognised(server, domain(name), [p["after"] for p in named], head)
        assert before == [wanted] * len(named)
        assert wanted not in after


@pytest.mark.parametrize("name", NAMES)
def test_template_keeps_the_rest(name, runs, server, domain):
    words = [w for _, _, words in ERASED[name] for w in words]
    others, wanted = [], []
    head, known = KNOWN_OF.get(name, KNOWN)
    for pair in compared(runs(name))["trace_pairs"]:
        named = [n for n in known if f" {n}," in pair["prompt"] or f" {n} in the " in pair["prompt"]]
        if named and not any(w in pair["prompt"] for w in words):
            others.append(pair["after"])
            wanted += named
    assert len(others) >= 2
    assert recognised(server, domain(name), others, head) == wanted


def test_trace_full_shows_its_training(runs):
    tuned = next(o for o in runs("trace-full").values() if "trace_losses" in o)
    from trace_core.finetune.options import PRESETS

    steps = PRESETS["fast"]["steps"]
    assert [entry["step"] for entry in tuned["trace_losses"]] == list(range(steps))
    assert {"erase", "keep", "uncond"} <= set(tuned["trace_losses"][0])
    assert [p["step"] for p in tuned["trace_previews"]] == list(range(0, steps + 1, 20))
    assert 0 <= tuned["trace_window"][0] < tuned["trace_window"][1] <= 1


def test_reports_are_readable(runs):
    report = compared(runs("quickstart"))["trace_report"][0]
    assert report.startswith(
        "# Before and after\n\n**Erased.** 'cat' is recognised in 3 of 3 pictures before, 0 after"
    )


def test_a_combination_is_judged_by_both_parts(runs):
    report = compared(runs("combined-concepts"))["trace_report"][0]
    assert "**Erased.** 'dog + google style' is recognised in 2 of 2 pictures before, 0 after" in report
    assert "| naming an erased concept | 2 |" in report


def test_merged_checkpoint_holds_the_edit(runs, server):
    """The file's weights are the base model's and the edit's sum."""
    from safetensors.torch import load_file

    runs("merge-into-checkpoint")
    file = sorted((server.base / "output" / "checkpoints").glob("without-cat_*.safetensors"))[-1]
    merged, base = load_file(file), load_file(ROOT / "trace_core" / "demo" / "assets" / "demo-sd.safetensors")
    moved = {
        k
        for k in base
        if k.startswith("net.")
        and not torch.equal(merged["model.diffusion_model." + k[4:]].float(), base[k].float())
    }
    assert moved
    assert all("attn2.to_k" in k or "attn2.to_v" in k for k in moved)


def test_queued_again_it_comes_from_the_cache(server, workflow, info):
    """All of it, and what its panels show is in the outputs again where ComfyUI sends what comes from the
    cache.
    """
    first = workflow("quickstart")
    before = server.run(first)
    entry = server.wait(server.queue(first))
    cached = next(m[1]["nodes"] for m in entry["status"]["messages"] if m[0] == "execution_cached")
    assert set(cached) == set(first)
    if "has_intermediate_output" in info["TRACE_ClosedFormProjection"]:
        assert entry["outputs"] == before
