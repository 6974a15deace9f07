"""Kept things whose rows stay exactly as they are."""

from __future__ import annotations

import pytest
import torch

from closed_form_cases import CAT, KINDS
from trace_core.closed_form import ClosedFormConfig, erase, exact
from trace_core.errors import TraceError
from trace_core.text.concepts import combined, with_default_anchor
from trace_core.text.encoding import FIRST_EOT, SUBJECT, TextEncoder, align
from trace_core.text.templates import TEMPLATES, fill

KEEP = ["bird", "house", "tree"]


def rows_of(encoder, entry):
    """The rows that are constraints: the entry's own words and the prompt's end."""
    for template in TEMPLATES["object"][: exact.PROMPTS]:
        rows = encoder.encode(fill(template, entry), entry)
        yield rows.embeddings[rows.rows(SUBJECT) + rows.rows(FIRST_EOT)].double()


@pytest.mark.parametrize("kind", KINDS)
def test_kept_rows_do_not_move_and_the_concept_is_gone(one, kind):
    family, model = one(kind)
    encoder = TextEncoder(family.clip)
    moved = {}
    for name in ("exact", "by weight"):
        config = ClosedFormConfig(energy=1.0, eta=0.0, exact=name == "exact")
        result = erase(model, family.clip, [CAT], KEEP, config)
        edit = result.edits["context"]
        moved[name] = max(
            ((edit.map(rows) - rows).norm() / rows.norm()).item()
            for entry in KEEP
            for rows in rows_of(encoder, entry)
        )
        assert ("exact" in result.report) == (name == "exact")
        template = TEMPLATES["object"][0]
        pairs = align(*(encoder.encode(fill(template, t), t) for t in (CAT.target, CAT.anchor)))
        used = [i for i, group in enumerate(pairs.groups) if group >= SUBJECT]
        left = edit.map(pairs.erase[used]) - edit.map(pairs.want[used])
        assert left.norm() <= 1e-6 * (pairs.erase[used] - pairs.want[used]).norm()
    assert moved["exact"] <= 1e-6 < 1e-4 < moved["by weight"]


def test_large_keep_lists_enter_by_their_leading_directions():
    draw = torch.Generator().manual_seed(0)
    rows = {str(i): torch.randn(3, 32, generator=draw) for i in range(20)}
    directions, left_out = exact.ExactRows(rows).directions()
    assert directions.shape == (8, 32) and torch.allclose(directions @ directions.T, torch.eye(8).double())
    worst = max(
        (r - r @ directions.T @ directions).norm().item()
        for own in rows.values()
        for r in own.double() / own.double().norm(dim=1, keepdim=True)
    )
    assert left_out == pytest.approx(worst)


def test_what_is_nearest_to_a_concept_is_named(one, monkeypatch):
    family, model = one("sd1")
    config = ClosedFormConfig(exact=True)
    (found,) = erase(model, family.clip, [CAT], KEEP, config).report["exact"]
    assert found["concept"] == "cat" and found["keep"] in KEEP
    assert 0 < found["angle"] < 90 and 0 < found["outside"] <= 1
    monkeypatch.setattr(exact, "LITTLE", 1.1)
    warnings = erase(model, family.clip, [CAT], KEEP, config).report["warnings"]
    assert any(f"'{found['keep']}' is nearest" in w for w in warnings)


def test_a_default_keep_list_is_kept_by_weight(one):
    family, model = one("sd1")
    report = erase(model, family.clip, [CAT], [], ClosedFormConfig(exact=True)).report
    assert "exact" not in report and any("no keep list is given" in note for note in report["notes"])


def test_what_cannot_be_exact_is_said(one):
    family, model = one("sd1")
    red = with_default_anchor(combined("bird", "red background"), ["house"])
    report = erase(model, family.clip, [CAT, red], ["house"], ClosedFormConfig(exact=True)).report
    assert any(f"'{red.target}' keeps by weight" in note for note in report["notes"])
    with pytest.raises(
        TraceError, match="policy uce keeps by weight alone; use projection or leave exact out"
    ):
        ClosedFormConfig(policy="uce", exact=True)
