"""Sums over prompts, the factors that come of them, and what is reported."""

from __future__ import annotations

import pytest
import torch

from solver_cases import CONCEPTS, KEEP, LENGTH, WIDTH, Case, random_rows
from trace_core.backbones.base import Layer
from trace_core.closed_form import POLICIES, ClosedFormConfig, ContextEdit, Gram
from trace_core.closed_form.accumulate import accumulate
from trace_core.closed_form.effects import negative_prompt_warnings
from trace_core.closed_form.export import export
from trace_core.closed_form.policies import keep_prompts
from trace_core.errors import ConceptError
from trace_core.lora import ErasureLora
from trace_core.text.concepts import Concept, combined
from trace_core.text.encoding import TextEncoder
from trace_core.text.prompts import asks_for


def test_keep_prompts_hold_the_parts_of_a_combination_and_never_both():
    red, contexts = (
        combined("cat", "red background"),
        {"style": ("a cat, {}",), "object": ("a {}, red background",)},
    )
    keep = ["cat", "dog", "red background", "blue background"]
    prompts = keep_prompts(
        POLICIES["projection"], keep, ["object", "object", "style", "style"], contexts, [red]
    )
    texts = {prompt for prompt, _ in prompts}
    assert not any(asks_for(text, red) for text in texts)
    assert "cat on a blue background" in texts and any(
        "dog" in text and "red background" in text for text in texts
    )
    assert keep_prompts(POLICIES["uce"], ["dog"], ["object"], {}, [red])[1:] == [
        ("cat", "cat"),
        ("red background", "red background"),
    ]


def test_an_edit_on_top_of_another():
    """I + U V^T of both is the product of the two maps."""
    one, two = (ContextEdit(random_rows(8, r, r), random_rows(8, r, 9 * r)) for r in (2, 3))
    x = random_rows(4, 8, 0)
    torch.testing.assert_close(one.then(two).map(x), one.map(two.map(x)), rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------- pieces


def test_gram_streams(monkeypatch):
    monkeypatch.setattr(Gram, "BLOCK", 7)
    rows, weights = random_rows(50, 6, 0), random_rows(50, 1, 1)[:, 0].abs()
    gram = Gram(6)
    for at in range(0, 50, 3):
        gram.add(rows[at : at + 3].float(), weights[at : at + 3])
    gram.add(rows[:0], weights[:0])
    assert gram.count == 50
    assert torch.allclose(gram.value(), (rows.float().double() * weights[:, None]).T @ rows.float().double())
    assert torch.equal(gram.value(), gram.value())


@pytest.mark.parametrize("columns", [None, 10])
def test_factors_are_the_edit_of_the_weight(columns):
    W = random_rows(5, 16, 0)
    width = columns or 16
    edit = ContextEdit(1e6 * random_rows(width, 3, 1), 1e-6 * random_rows(width, 3, 2))
    up, down = edit.factors(W, columns)
    assert up.dtype == down.dtype == torch.float32 and up.shape == (5, 3) and down.shape == (3, 16)
    wanted = W[:, :width] @ edit.U @ edit.V.T
    assert (up.double() @ down.double()[:, :width] - wanted).norm() <= 1e-6 * wanted.norm()
    assert not down[:, width:].any()
    assert torch.allclose(up.norm(dim=0), down.norm(dim=1), rtol=1e-5)


def test_export_reports_what_the_factors_do(fake):
    """``residual`` and ``keep_change``, recomputed from the rows themselves."""
    case = Case(fake, concepts=CONCEPTS, energy=0.9)
    lora, measured, _ = export(case.backbone, case.edits, case.sums)
    assert set(lora.modules) == set(measured) == {layer.module for layer, _ in case.backbone.weights()}
    rows = [(c - g, w) for c, g, w in case.pairs()]
    D = torch.stack([d * w**0.5 for d, w in rows]).T
    for layer, weight in case.backbone.weights():
        change = lora.delta(layer.module).double()
        report = measured[layer.module]
        assert report["residual"] == pytest.approx(
            ((weight + change) @ D).norm().item() / (weight @ D).norm().item(), rel=1e-2
        )
        assert report["relative_norm"] == pytest.approx((change.norm() / weight.norm()).item(), rel=1e-2)
        assert 0 < report["keep_change"] < 1


def test_a_cancelled_collection_stops(fake):
    class Stop(Exception):
        pass

    def progress(phase, done, total):
        raise Stop(phase)

    encoder = TextEncoder(fake.FakeClip(WIDTH, LENGTH))
    backbone = fake.FakeBackbone(Layer, fake.random_weights(1, 8, WIDTH))
    with pytest.raises(Stop):
        accumulate(backbone, encoder, POLICIES["projection"], CONCEPTS, KEEP, ClosedFormConfig(), progress)


def test_progress_reaches_every_concept(fake):
    seen = []
    encoder = TextEncoder(fake.FakeClip(WIDTH, LENGTH))
    backbone = fake.FakeBackbone(Layer, fake.random_weights(1, 8, WIDTH))
    accumulate(
        backbone, encoder, POLICIES["mace"], CONCEPTS, KEEP, ClosedFormConfig(), lambda *a: seen.append(a)
    )
    assert [s for s in seen if s[0] == "encode concepts"] == [("encode concepts", i, 3) for i in range(3)]
    assert any(s[0] == "encode keep set" for s in seen)


def test_pooled_vector_is_required_where_the_model_reads_one(fake):
    encoder = TextEncoder(fake.FakeClip(WIDTH, LENGTH))
    backbone = fake.FakeBackbone(Layer, fake.random_weights(1, 8, WIDTH), fake.random_weights(1, 8, 12))
    with pytest.raises(ConceptError, match="no pooled vector.*connect the CLIP of the same model"):
        accumulate(
            backbone, encoder, POLICIES["projection"], CONCEPTS, KEEP, ClosedFormConfig(), lambda *_: None
        )


def test_rows_of_another_width_are_refused(fake):
    encoder = TextEncoder(fake.FakeClip(WIDTH, LENGTH))
    backbone = fake.FakeBackbone(Layer, fake.random_weights(1, 8, WIDTH + 1))
    with pytest.raises(ConceptError, match="rows of 96 numbers, but the model reads 97; connect the CLIP"):
        accumulate(
            backbone, encoder, POLICIES["projection"], CONCEPTS, KEEP, ClosedFormConfig(), lambda *_: None
        )


# ------------------------------------------------------------------------------------- overshoot


def test_an_overshoot_is_told_of_as_a_negative_prompt():
    cat, strong = Concept("cat"), Concept("dog", strength=1.5)
    assert not negative_prompt_warnings(ClosedFormConfig(), [cat])
    assert not negative_prompt_warnings(ClosedFormConfig(strength=0.5, eta=0.5), [cat])
    assert not negative_prompt_warnings(ClosedFormConfig(policy="uce", strength=2.0), [cat])
    for config, concepts in (
        (ClosedFormConfig(eta=0.1), [cat]),
        (ClosedFormConfig(strength=1.2), [cat]),
        (ClosedFormConfig(), [cat, strong]),
    ):
        (warning,) = negative_prompt_warnings(config, concepts)
        assert "'cat'" in warning and "in a negative prompt may be drawn" in warning


def test_layers_share_the_factor_of_a_full_edit(tmp_path):
    """In memory, not in the file; a layer with more columns than text has its own."""
    edit = ContextEdit(torch.eye(8, dtype=torch.float64), random_rows(8, 8, 1))
    one, two, wide = random_rows(5, 8, 2).float(), random_rows(6, 8, 3).float(), random_rows(4, 11, 4).float()
    factors = {
        f"diffusion_model.{n}": edit.factors(w, 8, torch.float16) for n, w in enumerate((one, two, wide))
    }
    lora = ErasureLora.from_factors(factors)
    downs = [down for _, down in lora.modules.values()]
    assert downs[0] is downs[1] and torch.equal(downs[2][:, :8], downs[0]) and not downs[2][:, 8:].any()
    back = ErasureLora.load(lora.save(tmp_path / "x.safetensors"))
    assert all(torch.equal(a, b) for m in lora.modules for a, b in zip(lora.modules[m], back.modules[m]))
