"""What other nodes and ComfyUI do to a model between two phases: moves, unloading, patches, clip skip."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from fault_trials import ChangedModel, Fault, UnclearError, attempt, stage
from fault_trials.resuming import few_templates
from trace_core.closed_form import ClosedFormConfig, erase
from trace_core.finetune import FinetuneConfig, finetune
from trace_core.lora import ErasureLora
from trace_core.lora.gating import apply
from trace_core.text.concepts import Concept

CAT = [Concept("cat", "dog")]
TRAINING = FinetuneConfig(
    steps=2,
    batch=4,
    trajectories=1,
    keep_trajectories=1,
    refresh=1,
    sampling_steps=2,
    cfg=1.0,
    rank=2,
    lr=0.01,
    width=32,
    height=32,
    window=(0.2, 1.0),
    eta=0.5,
    neighbours=0,
)


def unload(model) -> None:
    stage.unload()


def low_memory(model) -> None:
    """Most of the weights wait outside the device, as on a small GPU."""
    load = getattr(model, "partially_load", None)
    if load is None:
        return
    with torch.no_grad():
        load(torch.device("cpu"), 1)


def sampled(model) -> None:
    conditions = [stage.tiny().random_conditioning(model, seed=s) for s in (1, 2)]
    stage.tiny().sample(model, *conditions, steps=1)


def loaded(model) -> None:
    import comfy.model_management

    comfy.model_management.load_models_gpu([model], force_full_load=True)


def moved(model) -> None:
    """Away from the device and back, as ComfyUI does for another model."""
    model.model.to(torch.device("cpu"))
    model.detach() if hasattr(model, "detach") else model.unpatch_model(torch.device("cpu"))


#: what may happen to a model without changing what it computes
MOVES = {"unload": unload, "low memory": low_memory, "sampled": sampled, "loaded": loaded, "moved": moved}


def moves(draw) -> None:
    """However often a model is moved between the phases, the result is the same bytes."""
    kind, model = draw(st.sampled_from(stage.KINDS)), None
    model, names = stage.model(kind), st.lists(st.sampled_from(list(MOVES)), max_size=3)
    before, between = draw(names), draw(names)
    with stage.watched(model, objects=False), torch.inference_mode(draw(st.booleans())):
        for name in before:
            MOVES[name](model)
        first = stage.closed_form(kind)
        for name in between:
            MOVES[name](model)
        second = stage.finetune(kind)
    for name, found in (("closed form", first), ("finetune", second)):
        if stage.data(found) != stage.undisturbed(name, kind)[0]:
            raise ChangedModel(f"{name} after {before} and {between} gives another result")


def stock_lora(model, draw):
    """Another LoRA, by the stock loader."""
    clone, key = model.clone(), "diffusion_model.out.2.weight"
    state = dict(model.model.named_parameters())
    key = key if key in state else "diffusion_model.img_in.weight"
    clone.add_patches({key: (0.01 * torch.ones_like(state[key]),)}, draw(st.floats(-2, 2)))
    return clone


def attention(model, draw):
    clone = model.clone()
    clone.set_model_attn2_patch(lambda q, k, v, extra: (q, k, 0.9 * v))
    return clone


def output_block(model, draw):
    clone = model.clone()
    clone.set_model_output_block_patch(lambda h, hsp, options: (h * 1.1, hsp))
    return clone


def wrapper(model, draw):
    clone = model.clone()
    clone.set_model_unet_function_wrapper(lambda f, args: f(args["input"], args["timestep"], **args["c"]))
    return clone


def guidance(model, draw):
    clone = model.clone()
    clone.set_model_sampler_cfg_function(lambda args: args["input"] - args["cond"])
    return clone


def schedule(model, draw):
    import comfy.model_sampling

    clone, own = model.clone(), model.get_model_object("model_sampling")
    shifted = type(own)(model.model.model_config)
    if isinstance(own, comfy.model_sampling.ModelSamplingFlux):
        shifted.set_parameters(shift=draw(st.floats(0.5, 3)))
    clone.add_object_patch("model_sampling", shifted)
    return clone


def erased_before(model, draw):
    kind = "flux" if "Flux" in type(model.model).__name__ else "sd1"
    lora = stage.part("nodes.wire").erasure_of(stage.second(kind))
    lora = ErasureLora(lora.modules, lora.metadata)  # of this library, not of the pack's copy
    start, end = draw(st.sampled_from(((0.0, 1.0), (0.1, 0.8))))
    return apply(model, lora, draw(st.floats(0.1, 2)), start, end)


PATCHES = (stock_lora, attention, output_block, wrapper, guidance, schedule, erased_before)


def patched(draw) -> None:
    """On a model with other nodes' patches: a finite result, or a sentence that names what is in the way."""
    kind = draw(st.sampled_from(stage.KINDS))
    base, model = stage.model(kind), stage.model(kind)
    for patch in draw(st.lists(st.sampled_from(PATCHES), min_size=1, max_size=3)):
        model = patch(model, draw)
    clip = stage.clip(kind)
    with stage.watched(base, objects=False), few_templates():
        config = ClosedFormConfig(neighbours=0, strength=draw(st.floats(-2, 2)))
        first, _ = attempt(lambda: erase(model, clip, CAT, ["bird"], config), "model")
        second, _ = attempt(lambda: finetune(model, clip, CAT, ["bird"], TRAINING), "model")
        for found in filter(None, (first, second)):
            if not all(t.isfinite().all() for pair in found.lora.modules.values() for t in pair):
                raise UnclearError("the edit has values that are no numbers")
            edited, _ = attempt(lambda found=found: found.apply(model, 1.0, *draw(WINDOW)))
            if edited is not None:
                sampled(edited)


WINDOW = st.sampled_from(((0.0, 1.0), (0.0, 0.5), (0.3, 1.0)))


def clip_skip(draw) -> None:
    """With another clip skip the text encoder gives other rows, and keeps its setting."""
    from trace_core.demo import sizes, text_towers

    kind, skip = draw(st.sampled_from(stage.KINDS)), draw(st.sampled_from((-1, -2, -3, -9)))
    if kind not in _clips:
        _clips[kind] = text_towers.sd_clip() if kind == "sd1" else text_towers.flux_clip()
        stage.tiny().initialise(_clips[kind].cond_stage_model)
        changes = (
            {"context_dim": sizes.CLIP_SD["hidden_size"]}
            if kind == "sd1"
            else {"context_dim": sizes.T5["d_model"], "pooled_dim": sizes.CLIP_FLUX["hidden_size"]}
        )
        _clips[kind] = _clips[kind], stage.build(kind, **changes)
        stage.run_once(_clips[kind][1])
    clip, model = _clips[kind]
    clip = clip.clone()
    clip.clip_layer(skip)
    with stage.watched(model), few_templates():
        config = ClosedFormConfig(neighbours=0, energy=draw(st.floats(0.5, 1)))
        found, _ = attempt(lambda: erase(model, clip, CAT, ["bird"], config), "CLIP", "clip", "layer")
        again, _ = attempt(lambda: erase(model, clip, CAT, ["bird"], config), "CLIP", "clip", "layer")
    if clip.layer_idx != skip:
        raise ChangedModel(f"clip skip was {skip} and is {clip.layer_idx}")
    if (found and found.lora.fingerprint) != (again and again.lora.fingerprint):
        raise ChangedModel(f"with clip skip {skip} the same run gives another result")


_clips: dict = {}

FAULTS = (
    Fault("moved or unloaded between phases", 8, moves),
    Fault("other LoRAs and patches on the model", 10, patched),
    Fault("clip skip changed", 8, clip_skip),
)
