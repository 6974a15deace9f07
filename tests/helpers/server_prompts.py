"""API prompts for the tests of a running ComfyUI, in pieces."""

from __future__ import annotations


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
    given = dict(model=("demo", 0), clip=("demo", 1), erase="cat", keep="", policy="projection", strength=1.0)
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
        width=32,
        height=32,
        checkpointing=False,
        preview_every=0,
    )
    return node("TRACE_LateStageFinetune", **{**given, **changes})


def applied(model: tuple, **changes) -> dict:
    given = dict(model=model, lora_file="none", strength=1.0, start_percent=0.0, end_percent=1.0)
    return node("TRACE_ApplyErasureLora", **{**given, **changes})
