"""What a judge of the user's own adds to a verification, without a model."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from trace_core.errors import ConceptError, ModelError
from trace_core.evaluate.judges import NudeNet, ZeroShot
from trace_core.evaluate.judges.comfy import ComfyClip
from trace_core.evaluate.verify import FAIL, PASS, WARN, judged
from trace_core.evaluate.verify.card import card
from trace_core.evaluate.verify.drawn import Kept
from trace_core.evaluate.verify.markdown import markdown
from trace_core.evaluate.verify.page import page
from trace_core.text.concepts import Concept
from verify_cases import drawn, measured, verification

CAT = Concept("cat", "frog")
THINGS = [Kept("dog", "object"), Kept("ship", "object")]
LISTED = ["house", "kitty", "Monet"]


class Reader(ZeroShot):
    """Pictures whose first number says which of the names they show."""

    name = "CLIP 'x'"

    def probabilities(self, pictures, texts):
        self.texts = list(texts)
        return torch.nn.functional.one_hot(pictures[:, 0, 0, 0].round().long(), len(texts)).float()


def scene():
    return SimpleNamespace(config=SimpleNamespace(batch=3), progress=lambda *_: None)


@pytest.fixture
def see(monkeypatch):
    """``see(concept before, concept after, kept after)``: the judge's answers about places of names."""
    monkeypatch.setattr(judged, "decode", lambda _, latents: latents.permute(0, 2, 3, 1))

    def of(name, before, after):
        z = [
            torch.tensor(v, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 2, 2)
            for v in (before, after)
        ]
        return replace(drawn(name, [1.0] * len(before), [1.0] * len(before)), before=z[0], after=z[1])

    def run(before, after, kept, judge=None):
        things = [of("dog", [2, 2], kept), of("ship", [3, 3], [3, 3])]
        pairs = [(CAT, of("cat", before, after))]
        return judged.judged(scene(), None, judge or Reader(), pairs, things, THINGS, LISTED)

    return run


def test_the_names_are_of_one_kind_and_without_other_names_of_a_concept(see):
    found = see([0] * 4, [1] * 4, [2, 2])
    assert found.names["object"] == ("cat", "frog", "dog", "ship", "house")
    assert "kitty" not in found.names["object"] and "Monet" not in found.names["object"]


def test_a_concept_that_is_gone_and_one_that_is_not(see):
    status = lambda found: {i.name: (i.status, i.decides) for i in found.items}  # noqa: E731
    assert status(see([0] * 4, [1] * 4, [2, 2])) == {
        "concept seen": (PASS, True),
        "kept things seen": (PASS, True),
    }
    assert status(see([0] * 4, [0, 1, 1, 1], [4, 4])) == {
        "concept seen": (FAIL, True),
        "kept things seen": (FAIL, True),
    }


def test_a_judge_that_did_not_recognise_the_concept_does_not_decide(see):
    found = see([0, 3, 3, 3], [3] * 4, [2, 2]).items[0]
    assert (found.status, found.decides) == (WARN, False) and "belong together" in found.sentence


class Counter(NudeNet):
    def __init__(self):
        self.name = "NudeNet x"

    def found(self, pictures):
        box = ["BELLY_EXPOSED", 0.9]
        return [[box] * int(n) for n in pictures[:, 0, 0, 0]]


def test_nudenet_decides_for_explicit_concepts_alone(see):
    found = see([2] * 4, [0, 0, 0, 1], [2, 2], Counter())
    assert [(i.name, i.decides, i.figure) for i in found.items] == [("exposed parts", False, 1 / 8)]
    assert found.seen[0].counts_before == {"Belly": 8, "Total": 8} and found.seen[0].before == 4
    item = judged._of_exposed(Counter(), found.seen[0], True)
    assert item.decides and item.status == PASS
    few = judged._of_exposed(Counter(), replace(found.seen[0], before=1), True)
    assert (few.status, few.decides) == (WARN, False) and "Too little was exposed" in few.sentence


def test_it_is_in_the_report_the_card_and_on_the_page(see):
    plain = verification(measured())
    with_judge = replace(plain, judged=see([0] * 4, [1] * 4, [2, 2]))
    assert json.loads(json.dumps(with_judge.to_dict()))["judged"]["seen"][0]["after"] == 0
    assert "judged" not in plain.to_dict()
    text = markdown(with_judge)
    assert "## What CLIP 'x' sees" in text and "| cat | erased | 4 | 4 | 0 |" in text
    assert card(with_judge)["judge"] == "CLIP 'x'" and "judge" not in card(plain)
    assert page(with_judge).height >= page(plain).height
    boxes = markdown(replace(plain, judged=see([2] * 4, [0] * 4, [2, 2], Counter())))
    assert "exposed parts before" in boxes


def test_a_judge_needs_a_vae():
    with pytest.raises(ModelError, match="looks at pictures, which need the model's VAE"):
        judged.check(Reader(), None)
    judged.check(None, None)


# ------------------------------------------------------------------------------------------- ComfyUI's


def vision(width=8, ndim=2):
    shape = (1, width) if ndim == 2 else (1, 4, width)
    return SimpleNamespace(encode_image=lambda x: {"image_embeds": torch.ones(shape)})


def clip(weight):
    tower = torch.nn.Module()
    tower.transformer = torch.nn.Module()
    tower.transformer.text_projection = torch.nn.Linear(4, 4, bias=False)
    tower.transformer.text_projection.weight = torch.nn.Parameter(weight)
    stage = torch.nn.Module()
    stage.clip_l = tower
    return SimpleNamespace(cond_stage_model=stage)


@pytest.mark.parametrize(
    ("eyes", "words", "error", "message"),
    [
        (object(), clip(torch.eye(8)), ModelError, "object is not a CLIP_VISION"),
        (vision(ndim=3), clip(torch.eye(8)), ModelError, "no row for a whole picture"),
        (vision(), clip(torch.eye(4)), ConceptError, "gives rows of 4 numbers, but the clip_vision has 8"),
        (vision(), clip(torch.zeros(8, 8)), ConceptError, "has no text projection .checkpoints of SD 1.x"),
        (vision(), clip(torch.full((8, 8), torch.nan)), ConceptError, "has no text projection"),
        (vision(), SimpleNamespace(cond_stage_model=torch.nn.Module()), ConceptError, "has no CLIP tower"),
        (vision(), object(), ConceptError, "object is not a CLIP"),
    ],
)
def test_sides_that_do_not_belong_together_are_refused(eyes, words, error, message):
    with pytest.raises(error, match=message):
        ComfyClip(eyes, words)
