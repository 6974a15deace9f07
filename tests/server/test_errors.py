"""Errors of a running ComfyUI name the value and the remedy."""

from __future__ import annotations

import pytest

from server_prompts import applied, base, erased, node, picture, tuned


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
            "does not fit this FLUX.1 model",
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
