"""Fusion in closed form: MACE's equation 7 evaluated densely and independently."""

from __future__ import annotations

import json

import pytest
import torch

from fusion_sums import KEEP, LENGTH, NOTHING, POOL, WIDTH, Case, adapter, close, dense, noise, three
from trace_core.backbones.base import CONTEXT, POOLED
from trace_core.errors import TraceError
from trace_core.lora.fusion import FusionConfig
from trace_core.lora.fusion.factors import assemble, balance, truncate
from trace_core.lora.fusion.sums import Packed
from trace_core.lora.parts import entry_of
from trace_core.text.concepts import combined
from trace_core.text.encoding import TextEncoder


@pytest.mark.parametrize("weighting", ["row", "group"])
@pytest.mark.parametrize("towers", [("l",), ("t5xxl",)])
def test_fusion_is_the_dense_solution_of_equation_7(fake, weighting, towers):
    """``W* = (sum (W + dW_i) C_i C_i^T + beta W P P^T + lambda W) (sum C_i C_i^T + beta P P^T + lambda
    I)^-1``, with a dense solve.
    """
    case = Case(fake, three(), towers=towers, weighting=weighting, start="row", keep_weight=0.5)
    for layer, weight in case.backbone.weights():
        left, right = case.lam() * weight, case.lam() * torch.eye(WIDTH, dtype=torch.float64)
        for a in case.adapters:
            C = case.erased(a).T
            left, right = left + (weight + dense(a, layer.module)) @ C @ C.T, right + C @ C.T
        P = case.kept().T
        left, right = left + 0.5 * weight @ P @ P.T, right + 0.5 * P @ P.T
        wanted = torch.linalg.solve(right, left, left=False) - weight
        assert close(case.change(layer.module), wanted)


def test_the_gradient_of_the_objective_is_zero(fake):
    """Of eq. 7 itself, by automatic differentiation."""
    case = Case(fake, three(), start="row", weighting="row")
    module = "diffusion_model.k1"
    change = case.change(module).clone().requires_grad_()
    loss = (
        case.lam() * change.square().sum() + case.config.keep_weight * (change @ case.kept().T).square().sum()
    )
    for a in case.adapters:
        loss = loss + ((change - dense(a, module)) @ case.erased(a).T).square().sum()
    (gradient,) = torch.autograd.grad(loss, change)
    scale = sum(dense(a, module).norm() * case.erased(a).square().sum() for a in case.adapters)
    assert gradient.norm() <= 1e-10 * scale


@pytest.mark.parametrize("mu", [0.0, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("start", ["row", "held"])
def test_integration_regulariser_is_its_dense_solution(fake, mu, start):
    """``min ||(X - dW_i) C_i||^2 + mu sum ||X C_j||^2 + beta ||X P||^2 + lambda ||X||^2``, with the start
    row's constraint by Lagrange.
    """
    case = Case(fake, three(), integration=mu, start=start)
    stream, P = case.streams[CONTEXT], case.kept()
    start_row = case.encoder.encode("").embeddings[0].double()
    for i, a in enumerate(case.adapters):
        C, others = case.erased(a), [case.erased(b) for b in case.adapters if b is not a]
        G = (
            C.T @ C
            + mu * sum(o.T @ o for o in others)
            + P.T @ P
            + case.lam() * torch.eye(WIDTH, dtype=torch.float64)
        )
        for module, where in stream.slices(a).items():
            change = dense(a, module)
            if start == "row":
                wanted = torch.linalg.solve(G, change @ C.T @ C, left=False)
            else:
                mine = len(a.concepts)
                rest = sum(len(b.concepts) for b in case.adapters) - mine
                share = mine / (mine + mu * rest + len(KEEP))
                system = torch.zeros(WIDTH + 1, WIDTH + 1, dtype=torch.float64)
                system[:WIDTH, :WIDTH], system[WIDTH, :WIDTH], system[:WIDTH, WIDTH] = G, start_row, start_row
                right = torch.cat([change @ C.T @ C, share * change @ start_row[:, None]], 1)
                wanted = torch.linalg.solve(system, right, left=False)[:, :WIDTH]
            assert close(a.lora.modules[module][0] @ stream.solved[i][where], wanted)


def test_mu_1_is_the_fusion(fake):
    """One factorisation for all, or one for each adapter: the same to rounding."""
    one, each = Case(fake, three()), Case(fake, three(), integration=1 + 1e-13)
    assert all(
        close(one.change(f"diffusion_model.k{i}"), each.change(f"diffusion_model.k{i}")) for i in range(2)
    )


def test_held_start_is_the_limit_of_a_heavy_start_row(fake):
    case = Case(fake, three())
    start_row, heavy, P = case.encoder.encode("").embeddings[0].double(), 1e6, case.kept()
    module = "diffusion_model.k0"
    left = 0
    right = (
        P.T @ P
        + case.lam() * torch.eye(WIDTH, dtype=torch.float64)
        + heavy * len(KEEP) * start_row[:, None] @ start_row[None]
    )
    for a in case.adapters:
        own = (
            case.erased(a).T @ case.erased(a) + heavy * len(a.concepts) * start_row[:, None] @ start_row[None]
        )
        left, right = left + dense(a, module) @ own, right + own
    limit = torch.linalg.solve(right, left, left=False)
    assert (case.change(module) - limit).norm() <= 1e-5 * limit.norm()


def test_an_untouched_start_token_stays_untouched(fake):
    """What the closed form guarantees of each survives the fusion, exactly."""
    adapters = three()
    encoder = TextEncoder(fake.FakeClip(WIDTH, LENGTH))
    start_row = encoder.encode("").embeddings[0].double()
    for a in adapters:
        for module, (up, down) in a.lora.modules.items():
            a.lora.modules[module] = (
                up,
                down - (down @ start_row)[:, None] @ start_row[None] / start_row.square().sum(),
            )
    change = Case(fake, adapters).change("diffusion_model.k0")
    assert (change @ start_row).norm() <= 1e-12 * change.norm() * start_row.norm()


@pytest.mark.parametrize("start", ["row", "held"])
def test_one_alone_stays_itself(fake, start):
    case = Case(
        fake,
        [adapter(1, "cat", "lorry", "red house", "sun", "ship")],
        keep=[],
        keep_weight=0.0,
        alpha=1e-13,
        start=start,
    )
    for module in case.adapters[0].lora.modules:
        rows = case.erased(case.adapters[0])
        change = dense(case.adapters[0], module)
        assert ((case.change(module) - change) @ rows.T).norm() <= 1e-8 * (change @ rows.T).norm()


def test_pooled_layers_are_fused_by_pooled_rows(fake):
    """Their own sums; of SDXL's first layer only the text columns, the size columns stay as they are."""
    adapters = [adapter(i, t, layers=("p0",), columns=POOL + 6) for i, t in enumerate(("cat", "truck"))]
    case = Case(fake, adapters, pooled=POOL)
    assert set(case.streams) == {POOLED}
    C, P = [case.erased(a, POOLED) for a in adapters], case.kept(POOLED)
    G = sum(c.T @ c for c in C) + P.T @ P + case.lam(POOLED) * torch.eye(POOL, dtype=torch.float64)
    wanted = sum(
        dense(a, "diffusion_model.p0")[:, :POOL] @ c.T @ c for a, c in zip(adapters, C)
    ) @ torch.linalg.inv(G)
    lora, _ = assemble(adapters, list(case.streams.values()), case.config, {})
    up, down = lora.modules["diffusion_model.p0"]
    assert (lora.delta("diffusion_model.p0")[:, :POOL].double() - wanted).norm() <= 2e-3 * wanted.norm()
    sizes = sum(dense(a, "diffusion_model.p0")[:, POOL:] for a in adapters)
    assert (lora.delta("diffusion_model.p0")[:, POOL:].double() - sizes).norm() <= 2e-3 * sizes.norm()


def test_layers_without_text_rows_are_put_side_by_side(fake):
    adapters = [adapter(i, t, layers=("k0", "other")) for i, t in enumerate(("cat", "truck"))]
    case = Case(fake, adapters)
    lora, _ = assemble(adapters, list(case.streams.values()), case.config, {})
    wanted = sum(dense(a, "diffusion_model.other") for a in adapters)
    assert (lora.delta("diffusion_model.other").double() - wanted).norm() <= 2e-3 * wanted.norm()
    assert lora.modules["diffusion_model.other"][1].shape[0] == 6


@pytest.mark.parametrize("kind", ["fused", "sum"])
def test_figures_are_what_the_definitions_say(fake, kind):
    case = Case(fake, three())
    stream = case.streams[CONTEXT]
    lora, _ = assemble(case.adapters, [stream], case.config, {})
    stream.measure(case.backbone, case.adapters, lora, NOTHING, {})
    change = {
        m: lora.delta(m).double() if kind == "fused" else sum(dense(a, m) for a in case.adapters)
        for m in lora.modules
    }
    for number, a in enumerate(case.adapters):
        rows = case.erased(a).T
        off = sum(((change[m] - dense(a, m)) @ rows).square().sum() for m in change).sqrt()
        whole = sum((dense(a, m) @ rows).square().sum() for m in change).sqrt()
        assert stream.figures[kind]["residual"][number] == pytest.approx((off / whole).item(), rel=1e-5)
    P, weights = case.kept().T, {layer.module: w for layer, w in case.backbone.weights()}
    keep = (
        sum((change[m] @ P).square().sum() for m in change)
        / sum((weights[m] @ P).square().sum() for m in change)
    ).sqrt()
    assert stream.figures[kind]["keep_change"] == pytest.approx(keep.item(), rel=1e-5)


def test_packed_matrices():
    """Half the memory, the same matrices; rounded only beyond the limit."""
    matrices = [m @ m.T for m in (noise(i, 9, 9) for i in range(3))]
    packed, weight = Packed(9, 3), noise(7, 9, 9)
    for m in matrices:
        packed.add(m)
    assert all(torch.equal(packed[i], (m.triu() + m.triu(1).T)) for i, m in enumerate(matrices))
    weight = weight + weight.T
    assert packed.weigh(weight) == pytest.approx([(weight * m).sum().item() for m in matrices])
    assert Packed(9, Packed.LIMIT // 9)._dtype == torch.float32


def test_balance_keeps_the_digits_of_up():
    up, down = noise(0, 5, 4).half().double(), 1e-4 * noise(1, 4, 6)
    down[2] = 0
    left, right = balance(up, down)
    assert torch.equal(left @ right, left @ right)
    assert torch.allclose(left @ right, up @ down, rtol=1e-14, atol=0)
    assert torch.equal(left.half().double(), left)
    assert ((left.norm(dim=0) / right.norm(dim=1))[[0, 1, 3]].log2().abs() <= 1.01).all()


@pytest.mark.parametrize(
    ("shape", "rank"), [((30, 8, 20), 3), ((5, 40, 12), 3), ((30, 8, 20), 8), ((30, 2, 20), 4)]
)
def test_truncation_is_the_best_of_its_rank(shape, rank):
    out, inner, width = shape
    up, down = noise(0, out, inner), noise(1, inner, width)
    left, right, lost = truncate(up, down, rank)
    values = torch.linalg.svdvals(up @ down)
    best = (values[rank:].square().sum() / values.square().sum()).sqrt().item()
    assert left.shape[1] <= rank
    assert ((left @ right - up @ down).norm() / (up @ down).norm()).item() == pytest.approx(lost, abs=1e-12)
    assert lost == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "x"},
        {"integration": -1.0},
        {"integration": float("nan")},
        {"keep_weight": -0.1},
        {"alpha": 0.0},
        {"max_rank": 0},
        {"weighting": "x"},
        {"start": "x"},
    ],
)
def test_options_out_of_range(wrong):
    with pytest.raises(TraceError, match=next(iter(wrong))):
        FusionConfig(**wrong)


def test_a_combination_is_fused_on_prompts_of_both_parts_and_kept_apart(fake, monkeypatch):
    """The parts of a combined concept come back from the file's metadata."""
    asked = []
    plain = TextEncoder.encode_all
    heard = lambda prompts: (asked.append(prompt) or (prompt, subject) for prompt, subject in prompts)  # noqa: E731
    monkeypatch.setattr(TextEncoder, "encode_all", lambda self, prompts: plain(self, heard(prompts)))
    one, other = adapter(1, "dog"), adapter(2, "cat")
    both = combined("cat", "red background")
    other.lora.metadata["trace.concepts"] = json.dumps([entry_of(both)])
    other.parts = other.lora.parts()
    assert other.parts[0].concepts == (both,)
    Case(fake, [one, other], keep=["house"])
    erased = [p for p in asked if "cat" in p and "red" in p]
    assert erased and any(p != both.target for p in erased)
    assert any("cat" in p and "red" not in p for p in asked), "the cat elsewhere is kept"
    assert any("red" in p and "cat" not in p for p in asked), "and other things on red"
