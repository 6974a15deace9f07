"""What a caller of the finetune hears: points, evaluations, previews."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from finetune_cases import KINDS, SMALL, TINY, Listener, closed_form, run, same_factors
from trace_core.backbones import Backbone


@pytest.mark.parametrize("kind", KINDS)
def test_keep_points_are_sampled_once_and_erase_points_at_every_refresh(families, kind):
    heard = Listener()
    result = run(families[kind], families[kind].model(**TINY[kind]), replace(SMALL, steps=5), report=heard)
    first = [(p.phase, p.step) for p in heard.heard if p.phase.startswith("sample") and p.done == 0]
    assert first == [("sample keep", 0), ("sample erase", 0), ("sample erase", 2), ("sample erase", 4)]
    assert [p.step for p in heard.heard if p.phase == "train"] == [0, 1, 2, 3, 4, 5]
    assert [row["step"] for row in result.report["losses"]] == [0, 1, 2, 3, 4]
    last = heard.heard[-1]
    assert last.losses == {k: v for k, v in result.report["losses"][-1].items() if k != "step"}
    assert (
        last.steps_per_second > 0
        and last.eta_seconds == 0
        and last.bank_bytes == result.report["bank_bytes"] > 0
    )


def test_every_evaluation_is_counted(families, monkeypatch):
    """A forward pass of one sample is one, its backward pass two."""
    seen, plain = {"forward": 0, "trained": 0}, Backbone.predict

    def predict(self, x, *rest):
        seen["forward"] += len(x)
        seen["trained"] += len(x) * torch.is_grad_enabled()
        return plain(self, x, *rest)

    monkeypatch.setattr(Backbone, "predict", predict)
    result = run(families["sd1"], families["sd1"].model(**TINY["sd1"]), replace(SMALL, objective="ant"))
    assert result.report["evaluations"] == seen["forward"] + 2 * seen["trained"]
    assert seen["trained"] == SMALL.steps * SMALL.batch, "one forward and one backward a step"


def test_previews_show_the_student_on_the_same_prompts(families):
    shown = []
    config = replace(SMALL, preview_every=2, lr=0.1)
    run(
        families["sd1"],
        families["sd1"].model(**TINY["sd1"]),
        config,
        preview=lambda *given: shown.append(given),
    )
    assert [step for step, *_ in shown] == [0, 2, 4]
    assert {tuple(prompts) for *_, prompts in shown} == {("a cat", "a bird")}
    assert all(latents.shape == (2, 4, 4, 4) for _, latents, _ in shown)
    assert not torch.equal(shown[0][1], shown[2][1])


def test_first_preview_is_of_the_base_model(families):
    """So that what is erased stands beside what was, also where the closed form is in the starting point."""
    family, shown = families["sd1"], []
    model = family.model(**TINY["sd1"])
    for start in (None, closed_form(family, model)):
        run(
            family,
            model,
            replace(SMALL, preview_every=4),
            start=start,
            preview=lambda *given: shown.append(given),
        )
    (_, base, _), (_, plain, _), (_, again, _), (_, joined, _) = shown
    assert torch.equal(base, again)
    assert not torch.equal(plain, joined)


def test_a_preview_changes_no_result(families):
    family, model = families["sd1"], families["sd1"].model(**TINY["sd1"])
    plain = run(family, model)
    assert same_factors(
        run(family, model, replace(SMALL, preview_every=1), preview=lambda *given: None).lora, plain.lora
    )
