"""The node contract in a running ComfyUI: what is served, how the stock nodes take our outputs, cancel,
errors.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import uuid
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trace_core.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
PHASES = [
    ("quickstart", "encode keep set"),
    ("quickstart", "sample before"),
    ("quickstart", "sample after"),
    ("trace-full", "sample keep"),
    ("trace-full", "sample erase"),
    ("trace-full", "train"),
    ("trace-full", "preview"),
]


def node(kind: str, /, **inputs) -> dict:
    return {
        "class_type": kind,
        "inputs": {k: list(v) if isinstance(v, tuple) else v for k, v in inputs.items()},
    }


def base(name: str = "demo-sd") -> dict:
    return {"demo": node("TRACE_LoadDemoModel", name=name)}


def picture(
    model: tuple, seed: int = 3, tag: str = "", prompt: str = "a photo of a cat, google style"
) -> dict:
    """Nodes that draw with the stock sampler and save as a PNG."""
    return {
        f"empty{tag}": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
        f"latent{tag}": node("VAEEncode", pixels=(f"empty{tag}", 0), vae=("demo", 2)),
        f"yes{tag}": node("CLIPTextEncode", clip=("demo", 1), text=prompt),
        f"no{tag}": node("CLIPTextEncode", clip=("demo", 1), text=""),
        f"sampler{tag}": node(
            "KSampler",
            model=model,
            seed=seed,
            steps=8,
            cfg=3.0,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            positive=(f"yes{tag}", 0),
            negative=(f"no{tag}", 0),
            latent_image=(f"latent{tag}", 0),
            denoise=1.0,
        ),
        f"decode{tag}": node("VAEDecode", samples=(f"sampler{tag}", 0), vae=("demo", 2)),
        f"image{tag}": node("PreviewImage", images=(f"decode{tag}", 0)),
    }


def erased(**changes) -> dict:
    given = dict(model=("demo", 0), clip=("demo", 1), erase="cat", keep="", policy="trace", strength=1.0)
    return node("TRACE_ClosedFormProjection", **{**given, **changes})


def tuned(**changes) -> dict:
    given = dict(
        model=("demo", 0),
        clip=("demo", 1),
        erase="cat",
        keep="",
        objective="trace",
        preset="fast",
        kind="auto",
        window="auto",
        window_start=0.2,
        window_end=1.0,
        steps=3,
        rank=4,
        lr=0.0,
        eta=-1.0,
        seed=1,
        width=0,
        height=0,
        checkpointing=False,
        preview_every=0,
    )
    return node("TRACE_LateStageFinetune", **{**given, **changes})


def applied(model: tuple, **changes) -> dict:
    given = dict(model=model, lora_file="none", strength=1.0, start_percent=0.0, end_percent=1.0)
    return node("TRACE_ApplyErasureLora", **{**given, **changes})


@pytest.fixture(scope="module")
def stock(info, harness):
    """``stock(kind, **inputs)``: a node of ComfyUI itself; inputs that this version added have their
    defaults.
    """

    def made(kind: str, **inputs) -> dict:
        required = {
            name: spec for name, spec in info[kind]["input"]["required"].items() if name not in inputs
        }
        widgets = {n: s for n, s in required.items() if harness.is_widget(s[0], s[1] if len(s) > 1 else {})}
        return node(kind, **{name: spec[1]["default"] for name, spec in widgets.items()}, **inputs)

    return made


@pytest.fixture(scope="module")
def draw(server):
    """``draw(prompt, "image")``: the pixels that a node saved, int16."""

    def run(prompt: dict, *names: str) -> list[np.ndarray]:
        outputs = server.run(prompt)
        return [np.asarray(server.picture(outputs[n]["images"][0]), dtype=np.int16) for n in names]

    return run


@pytest.fixture(scope="module")
def saved(server) -> str:
    """An erasure in a file, by its name in the loaders' list."""
    prompt = base() | {
        "erase": erased(),
        "save": node("TRACE_SaveErasureLora", lora=("erase", 1), name="t/%concepts%", license="CC0-1.0"),
    }
    return server.run(prompt)["save"]["text"][0]


def test_node_contract_is_unchanged(info, maker):
    """Ids, inputs, their order and defaults stand in people's workflows: change the snapshot only by
    adding to it.
    """
    assert maker.contract(info) == json.loads((ROOT / "tests" / "server" / "object_info.json").read_text())


#: Words that people type for what a node does; each must find it.
SEARCHED = {
    "TRACE_ClosedFormProjection": {"unlearn", "forget", "remove concept", "concept erasure", "UCE", "MACE"},
    "TRACE_LateStageFinetune": {"unlearn", "forget", "remove concept", "concept erasure", "ESD"},
    "TRACE_FuseErasureLoras": {"MACE", "unlearn"},
    "TRACE_ApplyErasureLora": {"load LoRA", "unlearn"},
    "TRACE_SaveErasureLora": {"save LoRA"},
    "TRACE_CompareErasure": {"before after"},
    "TRACE_ErasurePresets": {"artists", "unlearn"},
    "TRACE_LoadDemoModel": {"example model"},
}
REPORTING = {
    "TRACE_ClosedFormProjection",
    "TRACE_LateStageFinetune",
    "TRACE_FuseErasureLoras",
    "TRACE_ApplyErasureLora",
}


def ours(info: dict) -> dict:
    return {name: spec for name, spec in info.items() if name.startswith("TRACE_")}


def test_nodes_are_found_by_what_people_search_for(info):
    if "search_aliases" not in info["TRACE_LoadDemoModel"]:
        pytest.skip("this ComfyUI has no search aliases")
    for name, spec in ours(info).items():
        assert SEARCHED[name] <= set(spec["search_aliases"]), name
        assert len(set(spec["search_aliases"])) == len(spec["search_aliases"]), name


def test_nodes_with_a_panel_say_so_to_the_cache(info):
    if "has_intermediate_output" not in info["TRACE_LoadDemoModel"]:
        pytest.skip("this ComfyUI sends no output of nodes that come from the cache")
    assert {name for name, spec in ours(info).items() if spec["has_intermediate_output"]} == REPORTING


def test_rarely_used_widgets_are_folded_away(info, harness):
    """And those that everybody needs are not."""
    for name, spec in ours(info).items():
        shown = [
            n
            for n, form, options in harness.inputs_of(spec)
            if harness.is_widget(form, options) and not options.get("advanced")
        ]
        assert len(shown) <= 7, name
        assert {"erase", "keep", "prompts", "strength", "objective", "preset", "kind", "seed"} & {
            n for n, *_ in harness.inputs_of(spec)
        } <= set(shown)


def test_pack_is_served(server, harness):
    templates = server.get("/workflow_templates")[harness.PACK]
    assert sorted(templates) == sorted(p.stem for p in (ROOT / "workflows").glob("*.json"))
    for name in templates:
        assert server.get(f"/api/workflow_templates/{harness.PACK}/{name}.json")["nodes"]
        assert (ROOT / "workflows" / f"{name}.jpg").stat().st_size < 60_000
    import requests

    for page in (ROOT / "web" / "docs").rglob("*.md"):
        url = f"{server.url}/extensions/{harness.PACK}/{page.relative_to(ROOT / 'web').as_posix()}"
        assert requests.get(url, timeout=10).text == page.read_text()


def test_translations_are_served(server):
    words = server.get("/i18n")
    assert words["zh"]["nodeDefs"]["TRACE_LoadDemoModel"]["display_name"] == "加载演示模型"
    assert words["ja"]["nodeDefs"]["TRACE_LoadDemoModel"]["display_name"] == "デモモデルを読み込む"
    assert set(words["en"]["nodeDefs"]) == set(words["zh"]["nodeDefs"])


def test_published_pack_loads_without_errors(server, harness):
    assert harness.PACK in server.log.read_text()
    failed = [line for line in server.log.read_text().splitlines() if "IMPORT FAILED" in line]
    assert not any(harness.PACK in line for line in failed)


# ------------------------------------------------------------------------------------------- files and the
# stock nodes


def test_saved_file_draws_the_same_in_the_stock_loader(draw, saved):
    prompt = base() | {
        "stock": node("LoraLoaderModelOnly", model=("demo", 0), lora_name=saved, strength_model=1.0),
        "ours": applied(("demo", 0), lora_file=saved),
        **picture(("stock", 0), tag="1"),
        **picture(("ours", 0), tag="2"),
        **picture(("demo", 0), tag="3"),
    }
    stock, ours, without = draw(prompt, "image1", "image2", "image3")
    assert np.abs(stock - ours).max() <= 1
    assert np.abs(without - ours).max() > 50


def test_wire_and_file_and_model_are_the_same(draw, saved, stock):
    prompt = base() | {
        "erase": erased(),
        "wired": applied(("demo", 0), lora=("erase", 1)),
        "filed": applied(("demo", 0), lora_file=saved),
        "save": node("TRACE_SaveErasureLora", lora=("erase", 1), name="t/%concepts%"),
        "named": applied(("demo", 0), file_name=("save", 0)),
        "stock": stock("LoraModelLoader", model=("demo", 0), lora=("erase", 1), strength_model=1.0),
        **picture(("erase", 0), tag="1"),
        **picture(("wired", 0), tag="2"),
        **picture(("filed", 0), tag="3"),
        **picture(("stock", 0), tag="4"),
        **picture(("named", 0), tag="5"),
    }
    first, *others = draw(prompt, "image1", "image2", "image3", "image4", "image5")
    assert all(np.abs(first - other).max() <= 1 for other in others)


def test_strength_zero_is_the_base(draw, saved):
    prompt = base() | {"off": applied(("demo", 0), lora_file=saved, strength=0.0)}
    prompt |= picture(("off", 0), tag="1") | picture(("demo", 0), tag="2")
    off, without = draw(prompt, "image1", "image2")
    assert np.array_equal(off, without)


def test_window_changes_the_picture(draw, saved):
    prompt = base() | {
        "late": applied(("demo", 0), lora_file=saved, start_percent=0.6),
        "whole": applied(("demo", 0), lora_file=saved),
    }
    prompt |= picture(("late", 0), tag="1") | picture(("demo", 0), tag="2") | picture(("whole", 0), tag="3")
    late, without, whole = draw(prompt, "image1", "image2", "image3")
    assert 0 < np.abs(late - without).mean() < np.abs(whole - without).mean()


def test_metadata_of_the_file(server, saved):
    from trace_core.lora import ErasureLora

    info = ErasureLora.load(server.base / "output" / "loras" / saved).info()
    assert info["trace.concepts"] == [["cat", "", 1.0]]
    assert info["modelspec.license"] == "CC0-1.0"
    assert info["trace.base"]["kind"] == "sd1"


def test_stock_nodes_take_our_outputs(server, draw, info):
    save = next(name for name in ("SaveLoRA", "SaveLoRANode") if name in info)
    prompt = base() | {
        "erase": erased(eta=0.0),
        "tune": tuned(lora=("erase", 1)),
        "graph": node("LossGraphNode", loss=("tune", 2), filename_prefix="loss"),
        "save": node(save, lora=("tune", 1), prefix="loras/stock"),
        **picture(("tune", 0), tag="1"),
    }
    outputs = server.run(prompt)
    assert server.picture(outputs["graph"]["images"][0]).width > 400
    file = sorted((server.base / "output" / "loras").glob("stock_*.safetensors"))[-1]
    again = base() | {"ours": applied(("demo", 0), lora_file=file.name)} | picture(("ours", 0), tag="2")
    (second,) = draw(again, "image2")
    first = np.asarray(server.picture(outputs["image1"]["images"][0]), dtype=np.int16)
    assert np.abs(first - second).max() <= 1


def test_stock_training_works_in_apply(server, draw, harness, info, stock):
    made = info["TrainLoraNode"]["output"].index("LORA_MODEL")
    train = base() | {
        "empty": node("EmptyImage", width=64, height=64, batch_size=1, color=255),
        "latent": node("VAEEncode", pixels=("empty", 0), vae=("demo", 2)),
        "yes": node("CLIPTextEncode", clip=("demo", 1), text="a photo of a cat"),
        "train": stock(
            "TrainLoraNode",
            model=("demo", 0),
            latents=("latent", 0),
            positive=("yes", 0),
            batch_size=1,
            grad_accumulation_steps=1,
            steps=2,
            learning_rate=0.01,
            rank=4,
            optimizer="AdamW",
            loss_function="MSE",
            seed=0,
            training_dtype="fp32",
            lora_dtype="fp32",
            algorithm="LoRA",
            gradient_checkpointing=False,
            existing_lora="[None]",
        ),
    }
    whole = (
        train
        | {"apply": applied(("demo", 0), lora=("train", made))}
        | picture(("apply", 0), tag="1")
        | picture(("demo", 0), tag="2")
    )
    trained, without = draw(whole, "image1", "image2")
    assert np.abs(trained - without).max() > 0
    with pytest.raises(harness.Failed, match="start_percent 0 and end_percent 1"):
        server.run(
            train
            | {
                "apply": applied(("demo", 0), lora=("train", made), start_percent=0.5),
                **picture(("apply", 0)),
            }
        )


def test_same_seed_same_tensors_as_the_command_line(server, tmp_path):
    """The nodes and the command line are two ways to one file."""
    prompt = base() | {
        "closed": erased(),
        "first": erased(**METHODS["trace"].closed_form),
        "tune": tuned(lora=("first", 1)),
        "save": node("TRACE_SaveErasureLora", lora=("closed", 1), name="cli/closed"),
        "both": node("TRACE_SaveErasureLora", lora=("tune", 1), name="cli/both"),
    }
    outputs = server.run(prompt)
    options = {
        "save": ["--method", "projection"],
        "both": ["--method", "trace", "--preset", "fast", "--steps", "3", "--rank", "4", "--seed", "1"],
    }
    for which, more in options.items():
        out = tmp_path / f"{which}.safetensors"
        command = [
            sys.executable,
            "-m",
            "trace_core",
            "erase",
            "--model",
            "demo-sd",
            "--erase",
            "cat",
            "--threads",
            "1",
            "--out",
            str(out),
            *more,
        ]
        subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
        ours, theirs = load_file(server.base / "output" / "loras" / outputs[which]["text"][0]), load_file(out)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)


# ------------------------------------------------------------------------------------------- cancel and
# errors


def small(prompt: dict) -> dict:
    """The whole pipeline, short, with a preview at every step; a fresh seed keeps it out of the cache."""
    out = json.loads(json.dumps(prompt))
    for entry in out.values():
        if entry["class_type"] == "TRACE_LateStageFinetune":
            entry["inputs"] |= {"steps": 4, "preview_every": 1, "seed": uuid.uuid4().int % 2**31}
        if entry["class_type"] == "TRACE_ClosedFormProjection":
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
    prompt_id = server.queue(small(workflow(name)))
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


def test_after_cancel_the_same_workflow_succeeds(server, workflow):
    prompt = small(workflow("trace-full"))
    prompt_id = server.queue(prompt)
    while "sample keep" not in live_phases(server, prompt_id):
        time.sleep(0.01)
    server.interrupt()
    server.wait(prompt_id, 60)
    outputs = server.run(prompt)
    tuned_output = next(o for o in outputs.values() if "trace_losses" in o)
    assert len(tuned_output["trace_losses"]) == 4
    assert any(e["state"] == "done" and len(e["points"]) == 4 for e in server.get("/trace/live"))


def test_events_over_the_socket(server):
    """What a panel hears while it trains: phases, every point once, the window, previews; the stock bar's
    events beside them.
    """
    client = uuid.uuid4().hex
    prompt = base() | {
        "tune": tuned(steps=3, seed=uuid.uuid4().int % 2**31, preview_every=1),
        **picture(("tune", 0)),
    }

    async def listen() -> list:
        heard = []
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{server.url}/ws?clientId={client}") as socket,
        ):
            await asyncio.to_thread(server.queue, prompt, client)
            async for message in socket:
                heard.append(
                    json.loads(message.data) if message.type == aiohttp.WSMsgType.TEXT else message.data
                )
                if isinstance(heard[-1], dict) and heard[-1]["type"] in (
                    "execution_success",
                    "execution_error",
                ):
                    return heard
        return heard

    heard = asyncio.run(asyncio.wait_for(listen(), 240))
    texts = [m for m in heard if isinstance(m, dict)]
    assert texts[-1]["type"] == "execution_success"
    events = [m["data"] for m in texts if m["type"] == "trace.progress"]
    assert {e["node"] for e in events} == {"tune"}
    assert len({e["prompt_id"] for e in events}) == 1
    assert {"sample keep", "sample erase", "train"} <= {e["phase"] for e in events}
    assert [p["step"] for e in events for p in e["points"]] == [0, 1, 2]
    assert events[-1]["state"] == "done"
    assert 0 <= events[-1]["window"][0] < events[-1]["window"][1] <= 1
    assert any(isinstance(m, bytes) for m in heard), "a preview picture"
    assert any(
        m["type"] == "progress" and m["data"]["node"] == "tune" and m["data"]["max"] == 3 for m in texts
    )
    live = server.get("/trace/live", node="tune")
    assert [p["step"] for p in live["points"]] == [0, 1, 2]
    assert len(live["previews"]) == 4
    assert (
        server.picture({k: live["previews"][-1][k] for k in ("filename", "subfolder", "type")}).height > 100
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"erase": erased(erase="cat -> cat")}, "the anchor equals the concept"),
        ({"erase": erased(erase="")}, "nothing to erase"),
        ({"erase": erased(keep="a -> b")}, "a keep list has no arrows"),
        ({"erase": erased(keep="cat")}, "stands in the erase list and in the keep list"),
        ({"apply": applied(("demo", 0))}, "no LoRA: choose a file"),
        (
            {"apply": applied(("demo", 0), lora=("erase", 1), start_percent=0.7, end_percent=0.3)},
            "start must be below end",
        ),
        ({"apply": tuned(model=("erase", 0), lora=("erase", 1))}, "on this model already"),
        ({"apply": tuned(width=13)}, "width is 13"),
        ({"apply": tuned(window="custom", window_start=0.9, window_end=0.1)}, "0.9"),
        (
            {
                "flux": node("TRACE_LoadDemoModel", name="demo-flux"),
                "apply": applied(("flux", 0), lora=("erase", 1)),
            },
            "does not fit this flux model",
        ),
        (
            {"save": node("TRACE_SaveErasureLora", lora=("erase", 1), name="../../x")},
            "leads out of output/loras",
        ),
    ],
)
def test_errors_name_the_value_and_the_remedy(server, harness, change, message):
    prompt = base() | {"erase": erased()} | change
    last = "apply" if "apply" in prompt else "erase"
    prompt |= {} if "save" in change else picture((last, 0))
    with pytest.raises(harness.Failed, match=message):
        server.run(prompt)
    server.run(base() | {"erase": erased()} | picture(("erase", 0)))


def test_a_missing_file_is_refused_before_anything_runs(server, harness):
    with pytest.raises(harness.Rejected, match="gone.safetensors"):
        server.queue(
            base() | {"apply": applied(("demo", 0), lora_file="gone.safetensors")} | picture(("apply", 0))
        )
    with pytest.raises(harness.Rejected, match="none of the LoRA folders"):
        server.queue(
            base() | {"apply": applied(("demo", 0), lora_file="../../../server.log")} | picture(("apply", 0))
        )
