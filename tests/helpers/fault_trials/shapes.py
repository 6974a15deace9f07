"""Models of any width and type, any rank and strength: a finite edit, and the weights as they were."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from fake_clip import FakeClip
from fault_trials import Fault, UnclearError, attempt, stage
from fault_trials.resuming import few_templates
from trace_core.closed_form import POLICIES, ClosedFormConfig, erase
from trace_core.lora.gating import apply
from trace_core.text.concepts import Concept

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, *FLOAT8)
PERCENT = (0.0, 0.2, 0.5, 1.0)
STRENGTH = st.one_of(st.floats(-10, 10), st.sampled_from((0.0, 1.0, -1.0, 1e-6, 10.0)))
CONCEPTS = (
    [Concept("cat", "dog")],
    [Concept("cat")],
    [Concept("cat", "dog"), Concept("red ship", "car", strength=0.5)],
    [Concept("cat on a red background", parts=("cat", "red background"))],
)


def build(draw):
    """A model of random sizes and weights, and its text encoder."""

    kind, dtype = draw(st.sampled_from(stage.KINDS)), draw(st.sampled_from(DTYPES))
    width, pooled = draw(st.integers(2, 24)) * 4, draw(st.integers(2, 12)) * 2
    changes = {"context_dim": width, "seed": draw(st.integers(0, 99)), "dtype": dtype}
    if kind == "flux":
        changes |= {"pooled_dim": pooled, "hidden": draw(st.sampled_from((32, 64))), "heads": 2}
    model = stage.build(kind, **changes)
    if dtype != torch.float32:
        model.model.manual_cast_dtype = torch.float32
        stage_operations(model)
    towers = ("l",) if kind == "sd1" else ("l", "t5xxl")
    return model, FakeClip(width, 24, towers, 0 if kind == "sd1" else pooled)


def stage_operations(model) -> None:
    """Layers compute in float32, as ComfyUI's do where a processor has not the weights' type."""
    for module in model.model.modules():
        if hasattr(module, "comfy_cast_weights"):
            module.comfy_cast_weights = True


def options(draw) -> dict:
    policy = draw(st.sampled_from(sorted(POLICIES)))
    out = {
        "policy": policy,
        "strength": draw(STRENGTH),
        "energy": draw(st.floats(0.01, 1.0)),
        "max_rank": draw(st.one_of(st.none(), st.integers(1, 12))),
        "keep_weight": draw(st.one_of(st.just(1.0), st.floats(0.01, 1000))),
        "alpha": draw(st.one_of(st.none(), st.floats(1e-6, 1000))),
        "eta": draw(st.one_of(st.none(), st.floats(0, 5))),
        "neighbours": draw(st.integers(0, 1)),
    }
    if policy == "projection":
        out |= {"exact": draw(st.booleans()), "robust": draw(st.sampled_from((0, 0, 1, 2)))}
    return out


def erasing(draw) -> None:
    """Erase, apply and draw; every value is finite, and the model's own weights are bit for bit as before."""
    model, clip = build(draw)
    stage.run_once(model)
    concepts, keep = (
        draw(st.sampled_from(CONCEPTS)),
        draw(st.sampled_from(([], ["bird"], ["bird", "house", "sea"]))),
    )
    with stage.watched(model, objects=False), few_templates():
        chosen = ClosedFormConfig(**options(draw))
        found, _ = attempt(lambda: erase(model, clip, concepts, keep, chosen))
        if found is None:
            return
        if not all(t.isfinite().all() for pair in found.lora.modules.values() for t in pair):
            raise UnclearError("the edit has values that are no numbers")
        start, end = sorted(draw(st.lists(st.sampled_from(PERCENT), min_size=2, max_size=2)))
        strength = draw(STRENGTH)
        edited, _ = attempt(lambda: apply(model, found.lora, strength, start, end), "start", "strength")
        if edited is None:
            return
        conditions = [stage.tiny().random_conditioning(model, seed=s) for s in (1, 2)]
        with torch.no_grad():  # as ComfyUI runs its nodes
            picture = stage.tiny().sample(edited, *conditions, steps=1)
        usual = abs(strength) <= 1 and abs(chosen.strength) <= 1 and (chosen.eta or 0) <= 1
        if usual and not picture.isfinite().all():
            raise UnclearError("the picture has values that are no numbers")


FAULTS = (Fault("any width, type, rank and strength", 45, erasing),)
