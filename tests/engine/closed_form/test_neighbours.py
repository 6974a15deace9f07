"""Near neighbours in the keep set, on ComfyUI's text encoders."""

from __future__ import annotations

import json

import pytest
import torch

from closed_form_cases import KINDS
from trace_core.backbones import backbone_for
from trace_core.closed_form import ClosedFormConfig, erase
from trace_core.demo import loader
from trace_core.text.concepts import Concept
from trace_core.text.encoding import FIRST_EOT, SUBJECT, TextEncoder
from trace_core.text.neighbours import alike
from trace_core.text.vocabulary import shipped

CAT = Concept("cat")
SHOWN = [kind for kind in KINDS if kind != "sdxl"]  #: whose text encoder is ComfyUI's own


@pytest.mark.parametrize("kind", SHOWN)
def test_the_report_and_the_file_name_the_neighbours(one, kind):
    family, model = one(kind)
    result = erase(model, family.clip, [CAT], ["house"], ClosedFormConfig(neighbours=3))
    near = result.report["neighbours"]["cat"]
    assert len(near) == 3
    assert set(near) <= {e for group in shipped()["object"].values() for e in group}
    assert not any(alike(name, "cat", "object") for name in near)
    assert json.loads(result.lora.metadata["trace.neighbours"]) == {"cat": near}
    assert result.report["keep"] == ["house"]


@pytest.mark.parametrize("kind", KINDS)
def test_zero_is_the_closed_form_without_neighbours(one, kind):
    family, model = one(kind)
    result = erase(model, family.clip, [CAT], ["house"], ClosedFormConfig(neighbours=0))
    assert result.report["neighbours"] == {}
    assert "trace.neighbours" not in result.lora.metadata


def test_an_encoder_without_input_embeddings_keeps_none_and_says_so(one):
    family, model = one("sdxl")
    report = erase(model, family.clip, [CAT], ["house"]).report
    assert report["neighbours"] == {}
    assert any("input embeddings" in note for note in report["notes"])


@pytest.mark.parametrize("kind", SHOWN)
def test_input_embeddings_need_no_layer(one, kind):
    family, _ = one(kind)
    encoder = TextEncoder(family.clip)
    means = encoder.input_means(["cat", "dog", "cat dog"])
    assert means.dtype == torch.float32 and len(means) == 3
    count = [len(encoder.content_ids(t)) for t in ("cat", "dog")]
    together = (means[0] * count[0] + means[1] * count[1]) / sum(count)
    torch.testing.assert_close(means[2], together)


@pytest.mark.parametrize("name", ["demo-sd", "demo-flux"])
def test_what_is_near_moves_less_on_a_demo_model(name):
    model, clip, _ = loader.load(name)
    encoder = TextEncoder(clip, read=backbone_for(model).read_rows)
    keep = ["pizza", "house", "google style"]
    results = {n: erase(model, clip, [CAT], keep, ClosedFormConfig(neighbours=n)) for n in (0, 5)}
    near = results[5].report["neighbours"]["cat"]
    assert len(near) == 5
    edits = {n: result.edits["context"] for n, result in results.items()}
    for entry in set(near) - set(keep):
        found = encoder.encode(f"an image of a {entry}", entry)
        rows = found.embeddings[found.rows(SUBJECT) + found.rows(FIRST_EOT)].double()
        change = {count: (edit.map(rows) - rows).norm() for count, edit in edits.items()}
        assert change[5] < 0.5 * change[0], entry
