"""The nodes in a running ComfyUI draw what the stock nodes and the command line make of the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from server_prompts import applied, base, erased, node, picture, tuned
from trace_core.cli import main
from trace_core.methods import METHODS


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
        "tune": tuned(lora=("erase", 1), objective="esd"),
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


def test_same_seed_same_tensors_as_the_command_line(engine, server, tmp_path):
    """The nodes and the command line are two ways to one file."""
    prompt = base() | {
        "closed": erased(),
        "first": erased(**METHODS["trace"].closed_form),
        "tune": tuned(lora=("first", 1)),
        "save": node("TRACE_SaveErasureLora", lora=("closed", 1), name="cli/closed"),
        "both": node("TRACE_SaveErasureLora", lora=("tune", 1), name="cli/both"),
    }
    outputs = server.run(prompt)
    trained = [
        "--method",
        "trace",
        "--preset",
        "fast",
        "--steps",
        "3",
        "--size",
        "32",
        "--rank",
        "4",
        "--seed",
        "1",
    ]
    for which, more in {"save": ["--method", "projection"], "both": trained}.items():
        out = tmp_path / f"{which}.safetensors"
        command = [
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
        assert main(command) == 0
        ours, theirs = load_file(server.base / "output" / "loras" / outputs[which]["text"][0]), load_file(out)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
