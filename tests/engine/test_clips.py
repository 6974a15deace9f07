"""No CLIP, or one of another family: the same sentence from every way in, before any work."""

from __future__ import annotations

import importlib

import pytest

from trace_core.closed_form import erase
from trace_core.errors import ConceptError
from trace_core.finetune import FinetuneConfig, finetune
from trace_core.lora.fusion import fuse
from trace_core.text.concepts import Concept

CAT, KEEP = [Concept("cat", "dog")], ["bird"]
NONE = (
    "no CLIP is connected, or its loader found none in the file; connect the CLIP that belongs to this model"
)
OTHER = {
    ("sd1", "flux"): "rows of 192 numbers, but the model reads",
    ("sdxl", "sd1"): "rows of .* numbers, but the model reads 192",
    ("flux", "sd1"): "rows of .* numbers, but the model reads 192",
    ("sd1", "sdxl"): "rows of 192 numbers, but the model reads",
    ("flux", "sdxl"): "a pooled vector of 64 numbers, but the model reads 128",
}


class Worked(Exception):
    """The model was called, or a picture begun."""


def ways(model, clip, lora):
    def heard(*_):
        raise Worked

    return {
        "closed form": lambda: erase(model, clip, CAT, KEEP, progress=heard),
        "finetune": lambda: finetune(
            model, clip, CAT, KEEP, FinetuneConfig(width=32, height=32), report=heard
        ),
        "fuse": lambda: fuse(model, clip, [lora, lora], KEEP, progress=heard, names=["a", "b"]),
    }


@pytest.fixture(scope="module")
def erasures(families):
    return {
        kind: erase(families[kind].model(), families[kind].clip, CAT, KEEP).lora
        for kind in ("sd1", "sdxl", "flux")
    }


@pytest.mark.parametrize("way", ["closed form", "finetune", "fuse"])
@pytest.mark.parametrize("kind", ["sd1", "sdxl", "flux"])
def test_no_clip(families, erasures, nothing_stays_loaded, kind, way):
    model = families[kind].model()
    with pytest.raises(ConceptError, match=NONE):
        ways(model, None, erasures[kind])[way]()
    with pytest.raises(ConceptError, match="dict is not a CLIP; connect the CLIP"):
        ways(model, {}, erasures[kind])[way]()
    with pytest.raises(Worked):
        ways(model, families[kind].clip, erasures[kind])[way]()


@pytest.mark.parametrize("way", ["closed form", "finetune", "fuse"])
@pytest.mark.parametrize(("kind", "other"), OTHER)
def test_the_clip_of_another_family(families, erasures, nothing_stays_loaded, kind, other, way):
    with pytest.raises(
        ConceptError,
        match=f"the text encoder gives {OTHER[kind, other]}.*; connect the CLIP that belongs to this model",
    ):
        ways(families[kind].model(), families[other].clip, erasures[kind])[way]()


def test_a_clip_without_a_pooled_vector(families, fake, erasures):
    with pytest.raises(ConceptError, match="this CLIP returns no pooled vector, which the model needs"):
        erase(families["sdxl"].model(), fake.FakeClip(192, 24, ("l", "g")), CAT, KEEP)


def test_nodes(pack, families, nothing_stays_loaded):
    """MODEL from a loader of diffusion models alone, CLIP left open; no MODEL at all."""
    nodes, errors = pack.NODE_CLASS_MAPPINGS, importlib.import_module(f"{pack.__name__}.trace_core.errors")
    model, clip = families["sd1"].model(), families["sd1"].clip

    def run(node, model, clip):
        cls = nodes[node]
        given = {
            name: (options[1] or {}).get("default", options[0][0])
            for name, options in cls.INPUT_TYPES()["required"].items()
            if len(options) > 1
        }
        given |= {
            "model": model,
            "model_before": model,
            "model_after": model,
            "clip": clip,
            "vae": None,
            "erase": "cat -> dog",
            "keep": "bird",
        }
        wanted = getattr(cls, cls.FUNCTION)
        names = wanted.__code__.co_varnames[1 : wanted.__code__.co_argcount]
        return getattr(cls(), cls.FUNCTION)(**{k: v for k, v in given.items() if k in names})

    for node in ("TRACE_ClosedFormProjection", "TRACE_LateStageFinetune", "TRACE_CompareErasure"):
        with pytest.raises(errors.ConceptError, match=NONE):
            run(node, model, None)
        with pytest.raises(errors.ConceptError, match="connect the CLIP that belongs to this model"):
            run(node, model, families["flux"].clip)
        with pytest.raises(
            errors.ModelError, match="no model is connected; connect the MODEL output of a loader"
        ):
            run(node, None, clip)
