"""The losses of GEM and AEGIS, against their papers' formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from trace_core.finetune.objectives import OBJECTIVES
from trace_core.finetune.objectives.aegis import (
    MU,
    adversarial_target,
    correction,
    embedding_loss,
    inner,
    next_omega,
    retention,
)
from trace_core.finetune.objectives.gem import nearer_to_anchor

SHAPE = (3, 4, 5, 6)


def some(seed: int, shape=SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------- GEM


@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
def test_margin_is_gems(eta):
    """``max(0, ||v(c) - v0(a)|| - eta ||v(c) - v0(c)||)``, number by number."""
    references = {"uncond": some(1), "concept": some(2)}
    for out in (some(3), references["concept"], references["uncond"], 0.3 * some(1) + 0.7 * some(2)):
        found = nearer_to_anchor(out, references, torch.ones(3), eta).numpy()
        anchor, concept = (
            [
                np.sqrt(sum((o - r) ** 2 for o, r in zip(x.ravel(), y.ravel())))
                for x, y in zip(out.numpy(), ref)
            ]
            for ref in (references["uncond"].numpy(), references["concept"].numpy())
        )
        wanted = [max(0.0, a - eta * c) for a, c in zip(anchor, concept)]
        assert np.abs(found - wanted).max() < 1e-8


def test_gem_stops_on_the_anchors_side_of_the_middle():
    """At eta 1 the plane in the middle between both references is where the loss ends."""
    references = {"uncond": some(1), "concept": some(2)}
    for share, zero in ((0.49, False), (0.51, True)):
        out = (
            references["concept"] + share * (references["uncond"] - references["concept"])
        ).requires_grad_()
        error = nearer_to_anchor(out, references, torch.ones(3), 1.0)
        assert (error == 0).all() == zero
        (gradient,) = torch.autograd.grad(error.sum(), out)
        assert gradient.any() != zero


def test_gem_has_a_gradient_where_training_starts():
    """There the student is the base model, and the norm to the concept's prediction is zero."""
    references = {"uncond": some(1), "concept": some(2)}
    out = some(2).requires_grad_()
    (gradient,) = torch.autograd.grad(nearer_to_anchor(out, references, torch.ones(3), 1.0).sum(), out)
    assert gradient.isfinite().all() and gradient.any()


# ------------------------------------------------------------------------------------- AEGIS


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_target_leads_away_from_the_adversarial_embedding(eta):
    empty, other = some(1), some(2)
    found = adversarial_target({"uncond": empty, "adversarial": other}, eta).numpy()
    assert np.abs(found - ((1 + eta) * empty.numpy() - eta * other.numpy())).max() < 1e-8


def test_embedding_stands_between_student_and_base_model():
    out, student, concept = some(1), some(2), some(3)
    wanted = sum(((out.numpy() - r.numpy()) ** 2).sum() for r in (student, concept))
    assert abs(embedding_loss(out, student, concept).item() - wanted) < 1e-8


def test_retention_is_the_gradient_of_half_the_squared_distance():
    up, down = some(1, (7, 2)).requires_grad_(), some(2, (2, 5)).requires_grad_()
    wanted = torch.autograd.grad((up @ down).square().sum() / 2, (up, down))
    found = retention(up.detach(), down.detach())
    assert all((f - w).abs().max() < 1e-8 for f, w in zip(found, wanted))


@pytest.mark.parametrize("omega", [0.0, 0.4, 1.0])
def test_only_a_conflict_is_corrected_by_the_share_omega(omega):
    erase, retain = [some(1, (7, 2)), some(2, (2, 5))], [some(3, (7, 2)), some(4, (2, 5))]
    if inner(erase, retain) > 0:
        retain = [-r for r in retain]
    along, size = inner(erase, retain), inner(retain, retain)
    factor = correction(along, size, omega)
    left = inner([e + factor * r for e, r in zip(erase, retain)], retain)
    assert left == pytest.approx((1 - omega) * along, abs=1e-8)
    assert correction(-along, size, omega) == 0.0
    assert correction(0.0, 0.0, omega) == 0.0, "before the first step the weights are the base model's"


def test_omega_stays_between_0_and_1():
    omega = 0.0
    for _ in range(100):
        omega = next_omega(omega, -1.0)
    assert omega == 1.0 and next_omega(omega, 1.0) == 1.0 - MU and next_omega(0.0, 1.0) == 0.0


def test_peers_say_what_they_are():
    assert OBJECTIVES["gem"].terms[0].weight == 100.0 and OBJECTIVES["gem"].whole
    assert OBJECTIVES["aegis"].also_needs == ("concept",) and OBJECTIVES["aegis"].adversary


# ------------------------------------------------------------------------------------- tokens


class Reader(nn.Module):
    """As much of a backbone as a token needs."""

    def width(self, stream: str) -> int | None:
        return 3 if stream == "pooled" else 6


def condition(count: int, seed: int) -> dict:
    return {
        "c_crossattn": some(seed, (count, 5, 6)).float(),
        "y": some(seed + 1, (count, 8)).float(),
        "guidance": 3.0,
    }


def test_a_token_takes_the_last_row_and_changes_the_pooled_vector():
    from trace_core.finetune.adversarial import Token
    from trace_core.finetune.prompts import ConditionBatch

    empty, backbone = condition(1, 0), Reader()
    token = Token(backbone, empty, torch.Generator().manual_seed(0))
    given = condition(2, 4)
    ((_, made),) = token.into(ConditionBatch(backbone, [([0, 1], given)])).parts
    assert torch.equal(made["c_crossattn"][:, :-1], given["c_crossattn"][:, :-1])
    assert torch.equal(made["y"], given["y"]) and made["guidance"] == 3.0
    row = made["c_crossattn"][:, -1]
    scale = empty["c_crossattn"].square().mean().sqrt()
    assert torch.equal(row[0], row[1]) and torch.allclose(row[0], scale * token.values["c_crossattn"][0, 0])
    before = token.state()
    token.descend(made["c_crossattn"].sum() + made["y"][:, :3].sum(), 0.25)
    after = token.state()
    assert all(torch.allclose(a, b - 0.25) for a, b in zip(after, before)), "both gradients are positive"
    ((_, moved),) = token.into(ConditionBatch(backbone, [([0, 1], given)])).parts
    assert torch.equal(moved["y"][:, 3:], given["y"][:, 3:]), "what is not text stays"
    token.restore(before)
    assert all(torch.equal(a, b) for a, b in zip(token.state(), before))
