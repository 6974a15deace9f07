"""Fusion in closed form: MACE's equation 7 evaluated densely and independently, and what becomes of the
parts of a file.
"""

from __future__ import annotations

import json

import pytest
import torch

from trace_core.backbones.base import CONTEXT, POOLED, Layer
from trace_core.closed_form.policies import POLICIES, keep_prompts
from trace_core.errors import LoraError, TraceError
from trace_core.lora import ErasureLora
from trace_core.lora.fusion import FusionConfig, check_compatible, compress, parse_strengths
from trace_core.lora.fusion.config import Adapter
from trace_core.lora.fusion.factors import assemble, balance, truncate
from trace_core.lora.fusion.sums import Packed, Stream, collect
from trace_core.lora.parts import entry_of
from trace_core.text.concepts import combined
from trace_core.text.encoding import BOS, GROUPS, TextEncoder
from trace_core.text.templates import TEMPLATES, fill

WIDTH, LENGTH, POOL = 32, 16, 12
KEEP = ["bird", "green car", "sunflower"]
CONTEXTS = {"object": ("small {}", "my {}")}
POLICY = POLICIES["trace"]
NOTHING = lambda *_: None  # noqa: E731


@pytest.fixture(autouse=True)
def few_templates(monkeypatch):
    monkeypatch.setitem(TEMPLATES, "object", ("{}", "a photo of a {}", "a {} on the table"))


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adapter(seed: int, *targets: str, rank: int = 3, layers=("k0", "k1"), columns=WIDTH) -> Adapter:
    """Random float64 factors on layers of :class:`FakeBackbone`, one part."""
    modules = {
        f"diffusion_model.{m}": (noise(seed + 7 * i, 10, rank), noise(seed + 7 * i + 1, rank, columns))
        for i, m in enumerate(layers)
    }
    lora = ErasureLora(modules, {"trace.concepts": json.dumps([[t, "", 1.0] for t in targets])})
    return Adapter(targets[0], lora, lora.parts(), {})


class Case:
    """Adapters through the library's own sums and solve, in float64, and everything an independent
    evaluation needs.
    """

    def __init__(self, fake, adapters, keep=KEEP, towers=("l",), pooled=0, **config):
        self.config = FusionConfig(**{"contexts": CONTEXTS, "keep_weight": 1.0, **config})
        self.adapters, self.keep = adapters, keep
        self.encoder = TextEncoder(fake.FakeClip(WIDTH, LENGTH, towers, pooled))
        self.backbone = fake.FakeBackbone(
            Layer, fake.random_weights(2, 10, WIDTH), fake.random_weights(1, 10, pooled) if pooled else []
        )
        self.backbone.layers = lambda stream: [
            layer for layer, _ in self.backbone._weights if layer.stream == stream
        ]
        everything = self.backbone._weights
        self.backbone.weights = lambda layers=None: (
            e for e in everything if layers is None or e[0] in layers
        )
        found = [
            Stream(self.backbone, s, adapters, self.config)
            for s in (CONTEXT, POOLED)
            if self.backbone.width(s)
        ]
        self.streams = {s.name: s for s in found if s.layers}
        collect(list(self.streams.values()), self.encoder, adapters, keep, self.config, NOTHING, {})
        for stream in self.streams.values():
            stream.solve(NOTHING, {})

    def rows(self, prompt: str, subject: str, share: float, stream=CONTEXT):
        """Weighted rows ``[n, d]`` of a prompt, from the definition: each row times the root of its
        weight.
        """
        rows = self.encoder.encode(prompt, subject)
        if stream == POOLED:
            return share**0.5 * rows.pooled[None].double()
        use = [g for g in range(len(GROUPS)) if g != BOS or self.config.start == "row"]
        present = [g for g in use if g in rows.groups]
        if self.config.weighting == "row":
            each = [1.0 / sum(g in use for g in rows.groups)] * len(rows.groups)
        else:
            each = [1.0 / (len(present) * rows.groups.count(g)) for g in rows.groups]
        each = torch.tensor([w if g in use else 0.0 for w, g in zip(each, rows.groups)], dtype=torch.float64)
        return (share * each).sqrt()[:, None] * rows.embeddings.double()

    def erased(self, a: Adapter, stream=CONTEXT):
        """C_i^T ``[n, d]``."""
        templates = [*TEMPLATES["object"], *CONTEXTS["object"]]
        return torch.cat(
            [
                self.rows(fill(t, c.target), c.target, c.weight / len(templates), stream)
                for c, _ in a.concepts
                for t in templates
            ]
        )

    def kept(self, stream=CONTEXT):
        prompts = keep_prompts(POLICY, self.keep, ["object"] * len(self.keep), CONTEXTS)
        found = [self.rows(p, e, len(self.keep) / len(prompts), stream) for p, e in prompts]
        return torch.cat(found) if found else torch.zeros(0, WIDTH, dtype=torch.float64)

    def lam(self, stream=CONTEXT):
        """lambda: alpha times the trace over d, start rows left out."""
        total = 0.0
        for rows, weight in [
            *((self.erased(a, stream), 1.0) for a in self.adapters),
            (self.kept(stream), self.config.keep_weight),
        ]:
            total += weight * rows.square().sum().item()
        if self.config.start == "row" and stream == CONTEXT and not self.encoder.bidirectional:
            total -= self.start_trace()
        width = WIDTH if stream == CONTEXT else POOL
        return self.config.alpha * total / width

    def start_trace(self):
        out = 0.0
        templates = [*TEMPLATES["object"], *CONTEXTS["object"]]
        prompts = [
            (fill(t, c.target), c.target, c.weight / len(templates))
            for a in self.adapters
            for c, _ in a.concepts
            for t in templates
        ]
        kept = keep_prompts(POLICY, self.keep, ["object"] * len(self.keep), CONTEXTS)
        prompts += [(p, e, self.config.keep_weight * len(self.keep) / len(kept)) for p, e in kept]
        for prompt, subject, share in prompts:
            out += self.rows(prompt, subject, share)[0].square().sum().item()
        return out

    def change(self, module: str, stream=CONTEXT):
        """The fused dW ``[out, d]`` of a module, before rounding."""
        found = []
        for number, a in enumerate(self.adapters):
            where = self.streams[stream].slices(a)
            if module in where:
                found.append(a.lora.modules[module][0] @ self.streams[stream].solved[number][where[module]])
        return sum(found)


def dense(a: Adapter, module: str) -> torch.Tensor:
    up, down = a.lora.modules[module]
    return up @ down


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a - b).norm() <= 1e-8 * b.norm()


THREE = [("cat",), ("red house",), ("truck", "lorry")]


def three():
    return [adapter(100 * i, *targets) for i, targets in enumerate(THREE)]


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


# ------------------------------------------------------------------------------------------- parts of a file

A, B, C = (f"diffusion_model.{m}" for m in "abc")
BASE = '{"kind": "sd1", "hash": "0123456789abcdef"}'


def made(
    seed: int, *targets: str, modules=(A, B), rank: int = 2, dtype=torch.float16, **metadata
) -> ErasureLora:
    factors = {m: (noise(seed + i, 5, rank), noise(seed + i + 50, rank, 4)) for i, m in enumerate(modules)}
    lora = ErasureLora.from_factors(factors, dtype)
    concepts = json.dumps([[t, "", 1.0] for t in targets])
    lora.metadata |= {
        "trace.concepts": concepts,
        "trace.base": BASE,
        "modelspec.title": "Erased: " + ", ".join(targets),
        **metadata,
    }
    return lora


def joined(*loras: ErasureLora) -> ErasureLora:
    out = loras[0]
    for lora in loras[1:]:
        out = ErasureLora.join(out, lora)
    return out


def same_tensors(a: ErasureLora, b: ErasureLora) -> bool:
    pairs = (
        [(x, y) for m in a.modules for x, y in zip(a.modules[m], b.modules[m])]
        if set(a.modules) == set(b.modules)
        else [(1, 2)]
    )
    return all(isinstance(x, torch.Tensor) and x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


def test_a_file_without_parts_is_one():
    lora = made(0, "cat", "kitty")
    (part,) = lora.parts()
    assert part.targets == ["cat", "kitty"] and part.strength == 1.0 and part.kind == "auto"
    assert part.slices == {A: slice(0, 2), B: slice(0, 2)}
    assert made(0, "x", **{"trace.parameters": '{"kind": "style"}'}).parts()[0].kind == "style"
    assert ErasureLora(lora.modules).parts()[0].concepts == ()


def test_joined_files_know_their_parts(tmp_path):
    one, two, three = (
        made(0, "cat"),
        made(1, "dog", modules=(B, C), rank=3),
        made(2, "sun", "moon", modules=(A,)),
    )
    lora = ErasureLora.load(joined(one, two, three).save(tmp_path / "x.safetensors"))
    parts = lora.parts()
    assert [p.targets for p in parts] == [["cat"], ["dog"], ["sun", "moon"]]
    assert [dict(p.slices) for p in parts] == [
        {A: slice(0, 2), B: slice(0, 2)},
        {B: slice(2, 5), C: slice(0, 3)},
        {A: slice(2, 4)},
    ]
    for part, source in zip(parts, (one, two, three)):
        for module, ranks in part.slices.items():
            assert torch.equal(lora.modules[module][0][:, ranks], source.modules[module][0])
            assert torch.equal(lora.modules[module][1][ranks], source.modules[module][1])
    assert lora.info()["trace.concepts"] == [
        ["cat", "", 1.0],
        ["dog", "", 1.0],
        ["sun", "", 1.0],
        ["moon", "", 1.0],
    ]
    assert lora.metadata["modelspec.title"] == "Erased: cat, dog, sun, moon"


def test_two_edits_of_the_same_concepts_are_one_part():
    """A closed form and the finetune that started from it."""
    lora = joined(made(0, "cat", "dog"), made(1, "Dog", "cat", rank=4))
    (part,) = lora.parts()
    assert "trace.parts" not in lora.metadata
    assert part.slices[A] == slice(0, 6)
    again = joined(lora, made(2, "sun"))
    assert [p.slices[A] for p in again.parts()] == [slice(0, 6), slice(6, 8)]


def test_nothing_is_written_where_nothing_is_known():
    assert (
        ErasureLora.join(ErasureLora(made(0, "a").modules), ErasureLora(made(1, "a").modules)).metadata == {}
    )


@pytest.mark.parametrize("target", ["dog", " DOG "])
def test_a_part_can_be_taken_out(target):
    one, two, three = made(0, "cat"), made(1, "dog", modules=(B, C)), made(2, "sun", "moon")
    lora = joined(one, two, three)
    left = lora.without(target)
    assert same_tensors(left, joined(one, three))
    assert left.metadata["modelspec.title"] == "Erased: cat, sun, moon"
    assert [p.targets for p in left.parts()] == [["cat"], ["sun", "moon"]]
    assert same_tensors(left.without("sun", "moon"), one)
    assert "trace.parts" not in left.without("moon", "sun").metadata
    assert len(lora.parts()) == 3, "the file itself is as it was"


def test_what_a_concept_says_beside_its_part_stays():
    one = made(0, "cat", **{"trace.concepts": '[["cat", "dog", 1.0, 0.5, ["more"]]]'})
    lora = joined(one, made(1, "sun"), made(2, "moon")).without("moon")
    assert lora.info()["trace.concepts"][0] == ["cat", "dog", 1.0, 0.5, ["more"]]


def test_what_cannot_be_taken_out():
    lora = joined(made(0, "cat"), made(1, "sun", "moon"))
    with pytest.raises(LoraError, match="'elk' is not erased by this file; it erases 'cat', 'sun', 'moon'"):
        lora.without("elk")
    with pytest.raises(
        LoraError, match="'sun' was erased together with 'moon', in one edit, and cannot be taken out alone"
    ):
        lora.without("sun")
    with pytest.raises(LoraError, match="without 'cat', 'sun', 'moon' nothing is left"):
        lora.without("cat", "sun", "moon")
    with pytest.raises(LoraError, match="erases nothing that it names"):
        ErasureLora(made(0, "cat").modules).without("cat")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("strength", [0.0, 0.1, 1 / 3, 0.5, 2.0, -1.7, 1e-6])
def test_strength_can_be_undone_to_the_last_bit(tmp_path, dtype, strength):
    one, two = made(0, "cat", dtype=dtype), made(1, "dog", dtype=dtype)
    lora = joined(one, two)
    path = lora.graded({"cat": strength}).save(tmp_path / "x.safetensors")
    graded = ErasureLora.load(path)
    assert [p.strength for p in graded.parts()] == [strength, 1.0]
    for module in lora.modules:
        wanted = strength * one.delta(module) + two.delta(module)
        assert torch.allclose(graded.delta(module), wanted, rtol=1e-5, atol=1e-6)
    further = graded.graded({"dog": 0.3}).graded({"cat": 0.7}).graded({"dog": 1.0})
    assert [p.strength for p in further.parts()] == [0.7, 1.0]
    back = further.graded({"cat": 1.0})
    assert same_tensors(back, lora) and back.metadata == {**lora.metadata, "format": "pt"}


def test_strength_zero_changes_no_weight():
    """Not 0 itself, so that it can be undone, but nothing that float32 could add."""
    one, two = made(0, "cat"), made(1, "dog")
    graded, alone = joined(one, two).graded({"cat": 0}), two
    for module in (A, B):
        weight = noise(9, 5, 4).float()
        up, down = (f.float() for f in graded.modules[module])
        other = (alone.delta(module), alone.modules[module])
        assert (up[:, :2] @ down[:2]).abs().max() < 1e-28
        assert torch.equal(weight + up[:, :2] @ down[:2], weight)
        assert torch.allclose(graded.delta(module), other[0], rtol=1e-6, atol=1e-7)


def test_strengths_do_not_multiply():
    lora = joined(made(0, "cat"), made(1, "dog"))
    assert same_tensors(lora.graded({"cat": 0.5}).graded({"cat": 0.5}), lora.graded({"cat": 0.5}))
    assert same_tensors(lora.graded({"cat": 0.0}).graded({"cat": 0.25}), lora.graded({"cat": 0.25}))
    whole = made(0, "cat")
    assert [p.strength for p in whole.graded({"cat": 0.5}).parts()] == [0.5]
    assert same_tensors(whole.graded({"cat": 0.5}).graded({"cat": 1}), whole)


@pytest.mark.parametrize(
    "wrong",
    [
        {"elk": 1.0},
        {"cat": float("nan")},
        {"cat": 11.0},
        {"cat": "1"},
        {"cat": True},
        {"sun": 0.5},
        {"sun": 0.5, "moon": 0.6},
    ],
)
def test_strengths_that_are_refused(wrong):
    lora = joined(made(0, "cat"), made(1, "sun", "moon"))
    with pytest.raises(LoraError):
        lora.graded(wrong)
    assert [p.strength for p in lora.graded({"sun": 0.5, "moon": 0.5}).parts()] == [1.0, 0.5]


GOOD = [
    {"concepts": [["cat", "", 1.0]], "strength": 1.0, "ranks": 2},
    {"concepts": [["dog", "", 1.0]], "strength": 1.0, "ranks": 2},
]
HOSTILE = {
    "no JSON": "{nope", "deep": "[" * 100_000, "a number": "5", "nothing": "[]", "null": "null",
    "numbers": "[1, 2]",
    "far too many": json.dumps(GOOD[:1] * 20_000),
    "no ranks": [{**GOOD[0], "ranks": None}, GOOD[1]],
    "negative ranks": [{**GOOD[0], "ranks": -2}, {**GOOD[1], "ranks": 6}],
    "too many ranks": [{**GOOD[0], "ranks": 3}, GOOD[1]],
    "too few ranks": [{**GOOD[0], "ranks": 1}, GOOD[1]],
    "ranks of other layers": [{**GOOD[0], "ranks": [2, 2, 2]}, GOOD[1]],
    "true ranks": [{**GOOD[0], "ranks": [True, 2]}, GOOD[1]],
    "ranks without end": [{**GOOD[0], "ranks": 10**400}, GOOD[1]],
    "text for ranks": [{**GOOD[0], "ranks": "2"}, GOOD[1]],
    "strength that is none": [{**GOOD[0], "strength": "much"}, GOOD[1]],
    "infinite strength": '[{"concepts": [["cat", "", 1.0]], "strength": Infinity, "ranks": 2}, {"concepts": '
                         '[], "ranks": 2}]',
    "strength without end": [{**GOOD[0], "strength": 1e300}, GOOD[1]],
    "concepts that are none": [{**GOOD[0], "concepts": "cat"}, GOOD[1]],
    "concept without a name": [{**GOOD[0], "concepts": [["", "", 1.0]]}, GOOD[1]],
    "concept of negative weight": [{**GOOD[0], "concepts": [["cat", "", -1.0]]}, GOOD[1]],
    "unknown kind": [{**GOOD[0], "kind": "__class__"}, GOOD[1]],
    "list for a kind": [{**GOOD[0], "kind": []}, GOOD[1]],
    "unknown precision": [{**GOOD[0], "dtype": "int8"}, GOOD[1]],
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_parts(tmp_path, name):
    """Nothing but a LoraError, a short one; and what does not need the parts still works."""
    lora = joined(made(0, "cat"), made(1, "dog"))
    text = HOSTILE[name] if isinstance(HOSTILE[name], str) else json.dumps(HOSTILE[name])
    lora.metadata["trace.parts"] = text
    assert ErasureLora(lora.modules, {**lora.metadata, "trace.parts": json.dumps(GOOD)}).parts()[1].slices[
        B
    ] == slice(2, 4)
    for use in (
        lora.parts,
        lambda: lora.without("cat"),
        lambda: lora.graded({"cat": 0.5}),
        lambda: joined(lora, made(2, "sun")),
    ):
        with pytest.raises(LoraError) as caught:
            use()
        assert len(str(caught.value)) < 300


def test_what_cannot_be_fused_is_refused_by_name():
    good, names = made(0, "cat"), ["a.safetensors", "b.safetensors"]
    for other, message in (
        (ErasureLora(good.modules), "b.safetensors does not say what it erases"),
        (ErasureLora({}, good.metadata), "b.safetensors changes nothing; leave it out"),
        (
            made(1, "dog", **{"trace.window": "[0.2, 1]"}),
            r"b.safetensors is for the window \(0.2, 1.0\), a.safetensors for",
        ),
        (
            made(1, "dog", **{"trace.base": '{"kind": "sd1", "hash": "ffff"}'}),
            "b.safetensors was made on another base .ffff. than a.safe",
        ),
        (
            made(1, "dog", **{"trace.base": '{"kind": "flux", "hash": "ffff"}'}),
            "b.safetensors is for flux models, a.safetensors for sd1",
        ),
    ):
        with pytest.raises(LoraError, match=message):
            check_compatible([good, other], names)
    check_compatible([good, made(1, "dog", **{"trace.base": "garbage"})], names)


def test_strength_lines():
    assert parse_strengths("cat = 0.5\n# all\n\na = b=2 # more\nVan Gogh=-1") == {
        "cat": 0.5,
        "a = b": 2.0,
        "Van Gogh": -1.0,
    }
    for wrong in ("cat", "= 1", "cat = x", "cat = 11", "cat = nan", "cat = 1\nCat = 2"):
        with pytest.raises(LoraError, match=r"^list, line \d"):
            parse_strengths(wrong, "list")


def test_a_file_can_be_cut_alone():
    """Strengths are in it, its parts are one."""
    lora = joined(made(0, "cat"), made(1, "dog")).graded({"cat": 0.5})
    cut, lost = compress(lora, 3)
    assert (
        cut.rank == 3
        and [p.targets for p in cut.parts()] == [["cat", "dog"]]
        and "trace.parts" not in cut.metadata
    )
    errors = [((cut.delta(m) - lora.delta(m)).norm() / lora.delta(m).norm()).item() for m in lora.modules]
    assert max(errors) == pytest.approx(lost["worst"], abs=2e-3)
    same_rank, nothing = compress(lora, 9)
    assert nothing["worst"] == 0.0 and same_rank.rank == 4


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
