"""The closed form's guarantees in float64, through the same collection of rows that an erasure uses."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from trace_core.backbones.base import CONTEXT, POOLED, Layer
from trace_core.closed_form import POLICIES, ClosedFormConfig, ContextEdit, Gram, projection, ridge, solvers
from trace_core.closed_form.accumulate import accumulate
from trace_core.closed_form.effects import negative_prompt_warnings
from trace_core.closed_form.export import export
from trace_core.closed_form.policies import erased_pairs, keep_prompts
from trace_core.closed_form.solve import solve
from trace_core.errors import ConceptError, TraceError
from trace_core.lora import ErasureLora
from trace_core.text.concepts import Concept, combined
from trace_core.text.encoding import AFTER, BOS, FIRST_EOT, PAD, SUBJECT, TextEncoder
from trace_core.text.prompts import asks_for
from trace_core.text.templates import TEMPLATES, fill

WIDTH, LENGTH = 96, 16
WIDE = 384  #: more than the concepts of CONCEPTS have directions
CONCEPTS = [Concept("cat", "dog"), Concept("caterpillar"), Concept("red house", "tree", weight=2.0)]
KEEP = ["bird", "green car", "sunflower", "boat", "person"]
CONTEXTS = {"object": ("small {}", "{} now", "my {}")}


@pytest.fixture(autouse=True)
def few_templates(monkeypatch):
    """So few that the concepts have fewer directions than a row has numbers."""
    monkeypatch.setitem(
        TEMPLATES, "object", ("{}", "a photo of a {}", "a {} on the table", "an image of a {}, red")
    )


def random_rows(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def definite(d: int, seed: int = 0, condition: float = 1e4) -> torch.Tensor:
    """A keep matrix with the given condition number."""
    q, _ = torch.linalg.qr(random_rows(d, d, seed))
    return (q * torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), d, dtype=torch.float64)) @ q.T


class Case:
    """An erasure through the real collect, with everything a test wants to look at."""

    def __init__(
        self, fake, policy="trace", concepts=None, width=WIDTH, towers=("l",), pooled=0, keep=KEEP, **config
    ):
        self.config = ClosedFormConfig(policy=policy, contexts=CONTEXTS, **config)
        self.policy = POLICIES[policy]
        self.concepts = [Concept("cat", "dog")] if concepts is None else concepts
        self.keep = keep
        self.encoder = TextEncoder(fake.FakeClip(width, LENGTH, towers, pooled))
        extra = fake.random_weights(1, 20, pooled + 6, seed=2) if pooled else []
        self.backbone = fake.FakeBackbone(Layer, fake.random_weights(4, 24, width), extra)
        if pooled:  # as in SDXL, size embeddings stand behind the pooled vector
            self.backbone._weights[-1] = (Layer("diffusion_model.p0", POOLED, pooled), extra[0])
        self.sums = accumulate(
            self.backbone, self.encoder, self.policy, self.concepts, self.keep, self.config, lambda *_: None
        )
        self.solved = {stream: solve(self.policy, part, self.config) for stream, part in self.sums.items()}
        self.edits = {stream: edit for stream, (edit, _) in self.solved.items()}

    def pairs(self):
        """``(erase, want, weight)`` of every row that is remapped, float64."""
        for concept in self.concepts:
            for pairs, weights, *_ in erased_pairs(self.policy, concept, "object", self.encoder, CONTEXTS):
                for c, g, w in zip(pairs.erase.double(), pairs.want.double(), weights.tolist()):
                    if w > 0:
                        yield c, g, w

    def differences(self) -> torch.Tensor:
        """Every ``c - g`` that is remapped and not zero, ``[n, d]``."""
        rows = [(c - g, c) for c, g, _ in self.pairs()]
        return torch.stack([d for d, c in rows if d.norm() > 1e-6 * c.norm()])

    def edited(self):
        """``(layer, W, W')`` in float64."""
        for layer, weight in self.backbone.weights():
            edit = self.edits[layer.stream]
            change = weight.clone().zero_()
            change[:, : layer.columns] = weight[:, : layer.columns] @ edit.U @ edit.V.T
            yield layer, weight, weight + change


# ------------------------------------------------------------------------------------- projection: exactness


@pytest.mark.parametrize("towers", [("l",), ("l", "t5xxl")])
@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0, -1.0, 1.7])
def test_full_rank_erases_every_row_in_every_layer(fake, strength, towers):
    """||W'(c - g)|| = |1 - s| ||W(c - g)||, to 1e-6 of ||W(c - g)||."""
    case = Case(fake, concepts=CONCEPTS, width=WIDE, towers=towers, energy=1.0, strength=strength, alpha=1e-3)
    D = case.differences()
    assert len(D) > 200, "too few rows to show anything"
    assert case.edits[CONTEXT].rank < WIDE, "an edit of full rank would erase everything"
    for _, weight, edited in case.edited():
        before, after = weight @ D.T, edited @ D.T
        error = (after - (1 - strength) * before).norm(dim=0) / before.norm(dim=0)
        assert error.max() <= 1e-6


def test_full_rank_erases_the_pooled_vector(fake):
    """... and leaves the columns behind it, which are no text, as they are."""
    case = Case(fake, concepts=CONCEPTS, towers=("l", "t5xxl"), pooled=128, energy=1.0)
    layer, weight, edited = list(case.edited())[-1]
    assert layer.stream == POOLED
    assert torch.equal(edited[:, 128:], weight[:, 128:])
    for concept in CONCEPTS:
        c, g = (
            case.encoder.encode(t).pooled.double()
            for t in (f"a {concept.target}", f"a {concept.anchor}".strip())
        )
        assert ((edited - weight)[:, :128] @ (c - g) + weight[:, :128] @ (c - g)).norm() <= 1e-6 * (
            weight[:, :128] @ (c - g)
        ).norm()


@pytest.mark.parametrize("smallest", [0, -3])
def test_full_rank_on_badly_scaled_rows(smallest):
    """Rows of very different length, near-duplicates of the longest and of the shortest, keep matrix of
    condition 1e8.
    """
    D = random_rows(20, 64, 0) * torch.logspace(0, smallest, 20, dtype=torch.float64)[:, None]
    near = [D[:5] + 1e-7 * random_rows(5, 64, 1), D[-5:] + 1e-5 * 10**smallest * random_rows(5, 64, 2)]
    D = torch.cat([D, D[:10] * 0.3, *near])
    edit, info = projection(D, definite(64, 2, 1e8))
    left = (D + D @ edit.V @ edit.U.T).norm(dim=1) / D.norm(dim=1)
    assert left.max() <= 1e-6
    assert 20 <= info["rank"] <= 30


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("from_gram", [False, True])
def test_energy_threshold_leaves_what_is_reported(fake, energy, from_gram, monkeypatch):
    """The share of ||P L^-1 D||^2 left, computed from the edit alone, is ``energy_left``, and one rank less
    leaves more.

    P takes off the direction of the start token, which must not change.
    """
    if from_gram:
        monkeypatch.setattr(solvers, "DIRECT_LIMIT", 0)
    case = Case(fake, concepts=CONCEPTS, energy=energy)
    edit, info = case.solved[CONTEXT]
    part = case.sums[CONTEXT]
    assert bool(part.rows) is not from_gram
    G = solvers.regularise(part.keep.value(), case.policy.alpha, trace=part.trace)
    weighted = torch.stack([(c - g) * w**0.5 for c, g, w in case.pairs()]).T

    def whiten(columns):
        return torch.linalg.solve_triangular(torch.linalg.cholesky(G), columns, upper=False)

    start = whiten(case.encoder.encode("").embeddings[:1].double().T)
    off = torch.eye(len(G), dtype=torch.float64) - start @ start.T / start.square().sum()

    def left(U, V):
        whitened, base = off @ whiten(weighted + U @ (V.T @ weighted)), off @ whiten(weighted)
        return (whitened.square().sum() / base.square().sum()).item()

    assert left(edit.U, edit.V) == pytest.approx(info["energy_left"], abs=1e-9)
    assert info["energy_left"] <= 1 - energy + 1e-12
    assert edit.rank == info["rank"] < WIDTH
    assert left(edit.U[:, :-1], edit.V[:, :-1]) > 1 - energy


def test_max_rank_is_obeyed_and_reported(fake):
    case = Case(fake, concepts=CONCEPTS, energy=1.0, max_rank=3)
    edit, info = case.solved[CONTEXT]
    assert edit.rank == info["rank"] == 3
    assert 0.05 < info["energy_left"] < 1


@pytest.mark.parametrize("energy", [0.9, 1.0])
def test_gram_form_is_the_direct_form(energy):
    """Few directions and a mild keep matrix: both forms find the same edit."""
    D, G = random_rows(12, 48, 3), definite(48, 4, 1e3)
    direct, gram = projection(D, G, 0.8, energy), solvers.projection_from_gram(D.T @ D, G, 0.8, energy)
    assert direct[1]["rank"] == gram[1]["rank"]
    assert direct[1]["energy_left"] == pytest.approx(gram[1]["energy_left"], abs=1e-9)
    assert (direct[0].U @ direct[0].V.T - gram[0].U @ gram[0].V.T).norm() <= 1e-7 * (
        direct[0].U @ direct[0].V.T
    ).norm()


def test_projection_is_the_constrained_least_squares_solution():
    """min tr(dW G dW^T) subject to dW D = -s W D, by its dense formula: dW = -s W D (D^T G^-1 D)^-1 D^T
    G^-1.
    """
    D, G, W = random_rows(9, 40, 5).T, definite(40, 6), random_rows(7, 40, 7)
    edit, _ = projection(D.T, G, 0.7, energy=1.0)
    inverse = torch.linalg.inv(G)
    dense = -0.7 * W @ D @ torch.linalg.inv(D.T @ inverse @ D) @ D.T @ inverse
    assert (W @ edit.U @ edit.V.T - dense).norm() <= 1e-8 * dense.norm()


def test_keep_set_changes_less_than_by_the_orthogonal_projection(fake):
    """The point of the G norm: on the keep rows it beats W(I - D D^+), which erases the same rows as
    exactly.
    """
    case = Case(fake, width=WIDE, energy=1.0)
    D = case.differences()
    basis = torch.linalg.svd(D, full_matrices=False)
    Q = basis.Vh[basis.S > 1e-9 * basis.S[0]]
    keep = case.sums[CONTEXT].keep.value()
    for _, weight, edited in case.edited():
        ours, orthogonal = edited - weight, -weight @ Q.T @ Q
        assert ((weight + orthogonal) @ D.T).norm() <= 1e-6 * (weight @ D.T).norm()
        damage = [((change @ keep) * change).sum().sqrt().item() for change in (ours, orthogonal)]
        assert damage[0] < 0.9 * damage[1]


def test_more_keep_weight_changes_the_keep_set_less(fake):
    changes = []
    for weight in (0.01, 1.0, 100.0):
        case = Case(fake, energy=1.0, max_rank=20, keep_weight=weight)
        rows = torch.cat([case.encoder.encode(k, k).embeddings for k in KEEP]).double()
        changes.append((case.edits[CONTEXT].map(rows) - rows).norm().item())
    assert changes[2] < changes[1] < changes[0]


# ------------------------------------------------------------------------------------- nothing to do


@pytest.mark.parametrize("policy", POLICIES)
def test_concept_equal_to_its_anchor_is_refused(fake, policy):
    """The parser refuses it; built by hand it must not give an edit either."""
    with pytest.raises(ConceptError, match="'cat -> cat' and its anchor give the text encoder the same rows"):
        Case(fake, policy, concepts=[Concept("cat", "cat")])


@pytest.mark.parametrize("policy", POLICIES)
def test_anchor_that_differs_only_for_people_is_refused(fake, policy):
    """Another spelling, the same tokens."""
    with pytest.raises(ConceptError, match="give the text encoder the same rows; name another anchor"):
        Case(fake, policy, concepts=[Concept("cat", "CAT 🐈")])


@pytest.mark.parametrize("solver", ["projection", "gram", "ridge"])
def test_no_difference_gives_exactly_no_change(solver):
    G, zero = definite(16), torch.zeros(5, 16, dtype=torch.float64)
    if solver == "projection":
        edit, info = projection(zero, G)
    elif solver == "gram":
        edit, info = solvers.projection_from_gram(zero.T @ zero, G)
    else:
        edit, info = ridge(zero, random_rows(5, 16, 0), G)
    assert info["rank"] == edit.rank == 0
    rows = random_rows(3, 16, 1)
    assert torch.equal(edit.map(rows), rows)


@pytest.mark.parametrize("policy", POLICIES)
def test_strength_zero_changes_nothing(fake, policy):
    for _, weight, edited in Case(fake, policy, strength=0.0).edited():
        assert torch.equal(weight, edited)


# ------------------------------------------------------------------------------------- the start token


@pytest.mark.parametrize("policy", POLICIES)
def test_the_start_token_is_never_remapped(fake, policy):
    encoder = TextEncoder(fake.FakeClip(WIDTH, LENGTH))
    for pairs, weights, *_ in erased_pairs(POLICIES[policy], Concept("cat", "dog"), "object", encoder, {}):
        assert BOS not in {g for g, w in zip(pairs.groups, weights) if w > 0}


def bos_change(fake, energy):
    """Largest ||dW bos|| / ||W bos|| over the layers."""
    case = Case(fake, concepts=CONCEPTS, width=WIDE, energy=energy)
    bos = case.encoder.encode("a cat", "cat").embeddings[0].double()
    return max(
        ((edited @ bos - weight @ bos).norm() / (weight @ bos).norm()).item()
        for _, weight, edited in case.edited()
    )


@pytest.mark.parametrize("energy", [0.9, 1.0])
def test_the_start_token_row_is_kept(fake, energy):
    """Every kept prompt begins with it, so the keep matrix guards it better than any other row."""
    assert bos_change(fake, energy) <= 1e-3


@pytest.mark.parametrize("energy", [0.9, 1.0])
def test_the_start_token_row_is_unchanged(fake, energy):
    """W' bos = W bos: the row is in every prompt and never carries a concept."""
    assert bos_change(fake, energy) <= 1e-10


# ------------------------------------------------------------------------------------- strengths that differ

GRADED = [
    Concept("cat", "dog", strength=0.5),
    Concept("caterpillar"),
    Concept("red house", "tree", 2.0, strength=1.5),
]


@pytest.mark.parametrize("form", ["direct", "gram", "gram of many rows"])
def test_graded_projection_is_the_constrained_least_squares_solution(form):
    """min tr(dW G dW^T) subject to dW d_i = -s s_i W d_i: dW = -s W D diag(s_i) (D^T G^-1 D)^-1 D^T G^-1."""
    D, G, W = random_rows(9, 40, 5).T, definite(40, 6), random_rows(7, 40, 7)
    grades = torch.tensor([1.0, 0.5, 2.0, 0.1, 1.0, 1.0, 0.7, 1.5, 0.3], dtype=torch.float64)
    if form == "direct":
        edit, _ = projection(D.T, G, 0.7, energy=1.0, grades=grades)
    elif form == "gram":
        edit, _ = solvers.projection_from_gram(D @ D.T, G, 0.7, 1.0, graded=(D * grades) @ D.T)
    else:  # the same rows five times, an fifth as heavy: as many as there are dimensions, so they are squared
        edit, _ = projection(D.T.repeat(5, 1) / 5**0.5, G, 0.7, energy=1 - 1e-15, grades=grades.repeat(5))
    inverse = torch.linalg.inv(G)
    dense = -0.7 * W @ (D * grades) @ torch.linalg.inv(D.T @ inverse @ D) @ D.T @ inverse
    assert (W @ edit.U @ edit.V.T - dense).norm() <= 1e-8 * dense.norm()


def test_every_concept_has_its_own_strength(fake):
    """||W'(c - g)|| = |1 - s_i (1 + eta)| ||W(c - g)|| for the rows of concept i, in every layer."""
    case = Case(fake, concepts=GRADED, width=WIDE, energy=1.0, eta=0.2)
    for concept in GRADED:
        D = Case(fake, concepts=[concept], width=WIDE).differences().T
        for _, weight, edited in case.edited():
            before = weight @ D
            error = (edited @ D - (1 - 1.2 * concept.strength) * before).norm(dim=0) / before.norm(dim=0)
            assert error.max() <= 1e-6


def test_strengths_are_the_same_from_many_rows(fake, monkeypatch):
    """From sums over rows, kept where there are too many of them."""
    direct = Case(fake, concepts=GRADED, energy=0.99).edits[CONTEXT]
    monkeypatch.setattr(solvers, "DIRECT_LIMIT", 0)
    case = Case(fake, concepts=GRADED, energy=0.99)
    assert not case.sums[CONTEXT].rows
    x = random_rows(5, WIDTH, 0)
    assert (case.edits[CONTEXT].map(x) - direct.map(x)).norm() <= 1e-8 * (direct.map(x) - x).norm()


@pytest.mark.parametrize("policy", ["trace", "uce", "mace"])
def test_one_strength_for_all_is_the_edit_times_it(fake, policy):
    """... and keeps no second sums."""
    half = [replace(c, strength=0.5) for c in CONCEPTS]
    graded, plain = Case(fake, policy, half), Case(fake, policy, CONCEPTS, strength=0.5)
    assert graded.sums[CONTEXT]._graded is None
    torch.testing.assert_close(
        graded.edits[CONTEXT].map(random_rows(5, WIDTH, 0)),
        plain.edits[CONTEXT].map(random_rows(5, WIDTH, 0)),
        rtol=1e-12,
        atol=1e-12,
    )


# ------------------------------------------------------------------------------------- combined concepts


def test_keep_prompts_hold_the_parts_of_a_combination_and_never_both():
    red, contexts = (
        combined("cat", "red background"),
        {"style": ("a cat, {}",), "object": ("a {}, red background",)},
    )
    keep = ["cat", "dog", "red background", "blue background"]
    prompts = keep_prompts(POLICIES["trace"], keep, ["object", "object", "style", "style"], contexts, [red])
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


# ------------------------------------------------------------------------------------- ridge against the
# papers


def dense_solution(weight, erase, want, a, keep, b, lam):
    """W' = (sum a v* c^T + sum b W p p^T + lambda W)(sum a c c^T + sum b p p^T + lambda I)^-1, row by row,
    float64.
    """
    d = weight.shape[1]
    left, right = lam * weight.clone(), lam * torch.eye(d, dtype=torch.float64)
    for c, g, w in zip(erase, want, a):
        left += w * torch.outer(weight @ g, c)
        right += w * torch.outer(c, c)
    for p, w in zip(keep, b):
        left += w * torch.outer(weight @ p, p)
        right += w * torch.outer(p, p)
    return torch.linalg.solve(right, left.T).T


def uce_rows(fake, case):
    """UCE: last token of the concept -> last token of the guide (of the empty prompt: its start token);
    keep entries' own.
    """
    clip = case.encoder.clip

    def last(text):
        return clip.encode_from_tokens(clip.tokenize(text))[0, len(clip.ids(text))].double()

    erase = [(last(c.target), last(c.anchor), c.weight) for c in case.concepts]
    return erase, [(last(k), 1.0) for k in case.keep]


def mace_rows(fake, case):
    """MACE: common beginning and ending of the two token lists, the ending extended into the pads; the
    target excluded.
    """
    clip, erase, keep = case.encoder.clip, [], []
    for concept in case.concepts:
        templates = [*TEMPLATES["object"][:30], *CONTEXTS["object"]]
        for template in templates:
            texts = [fill(template, t) for t in (concept.target, concept.anchor)]
            old, new = ([fake.START, *clip.ids(t), fake.END] for t in texts)
            rows = [clip.encode_from_tokens(clip.tokenize(t))[0].double() for t in texts]
            subject = len(clip.ids(template.split("{}")[0])) + 1
            behind = len(clip.ids(template.split("{}")[1])) + 1  # words behind the concept, and the end token
            chosen = list(range(len(old) - behind, LENGTH))
            assert old[:subject] == new[:subject] and old[len(old) - behind :] == new[len(new) - behind :]
            for i in chosen:
                j = min(len(new) - behind + i - chosen[0], LENGTH - 1)
                erase.append((rows[0][i], rows[1][j], concept.weight / len(templates) / len(chosen)))
    prompts = keep_prompts(case.policy, case.keep, ["object"] * len(case.keep), CONTEXTS)
    for prompt, _ in prompts:
        rows = clip.encode_from_tokens(clip.tokenize(prompt))[0].double()
        keep += [(r, len(case.keep) / len(prompts) / LENGTH) for r in rows]
    return erase, keep


@pytest.mark.parametrize("concepts", [CONCEPTS, [Concept("cat", "dog")], [Concept("caterpillar")]])
@pytest.mark.parametrize("policy", ["uce", "mace"])
def test_ridge_is_the_papers_equation(fake, policy, concepts, monkeypatch):
    lambdas = []
    original = solvers.regularise

    def spy(gram, *args):
        out = original(gram, *args)
        lambdas.append((out - gram).diagonal().mean().item())
        return out

    monkeypatch.setattr(solvers, "regularise", spy)
    case = Case(fake, policy, concepts=concepts)
    erase, keep = {"uce": uce_rows, "mace": mace_rows}[policy](fake, case)
    lam = lambdas[0]
    for _, weight, edited in case.edited():
        dense = dense_solution(weight, *zip(*erase), *zip(*keep), lam)
        assert (edited - dense).norm() <= 1e-8 * (dense - weight).norm()
        assert (dense - weight).norm() > 1e-3 * weight.norm()


@pytest.mark.parametrize("policy", ["uce", "mace"])
def test_ridge_with_strengths_is_the_papers_equation_for_targets_between(fake, policy):
    """A concept of strength s has the target W (c + s (g - c)) in the place of W g."""
    case, rows = Case(fake, policy, concepts=GRADED), {"uce": uce_rows, "mace": mace_rows}[policy]
    erase = []
    for concept in GRADED:
        found, keep = rows(
            fake, SimpleNamespace(encoder=case.encoder, concepts=[concept], keep=KEEP, policy=case.policy)
        )
        erase += [(c, c + concept.strength * (g - c), w) for c, g, w in found]
    matrix = case.sums[CONTEXT].keep.value()
    lam = (
        solvers.regularise(matrix, case.policy.alpha, case.policy.absolute, case.sums[CONTEXT].trace) - matrix
    )[0, 0].item()
    for _, weight, edited in case.edited():
        dense = dense_solution(weight, *zip(*erase), *zip(*keep), lam)
        assert (edited - dense).norm() <= 1e-8 * (dense - weight).norm()


@pytest.mark.parametrize("policy", ["uce", "mace", "trce"])
def test_ridge_pulls_the_rows_towards_their_anchors(fake, policy):
    case = Case(fake, policy, concepts=CONCEPTS)
    for _, weight, edited in case.edited():
        before = sum(w * (weight @ (c - g)).square().sum() for c, g, w in case.pairs())
        after = sum(w * (edited @ c - weight @ g).square().sum() for c, g, w in case.pairs())
        assert after < 0.9 * before


def test_ridge_strength_scales_the_edit(fake):
    half, whole = Case(fake, "mace", strength=0.5).edits[CONTEXT], Case(fake, "mace").edits[CONTEXT]
    assert torch.allclose(2 * half.U @ half.V.T, whole.U @ whole.V.T, rtol=1e-12, atol=0)


def test_ridge_from_rows_is_ridge_from_their_product():
    R, C, G = random_rows(6, 24, 0), random_rows(6, 24, 1), definite(24, 2)
    one, two = ridge(R, C, G)[0], ridge(R.T @ C, None, G)[0]
    assert (one.U @ one.V.T - two.U @ two.V.T).norm() <= 1e-10 * (two.U @ two.V.T).norm()
    assert one.rank == 6


def test_ridge_reports_what_max_rank_loses():
    R, C, G = random_rows(6, 24, 0), random_rows(6, 24, 1), definite(24, 2, 10)
    whole, cut = ridge(R, C, G)[0], ridge(R, C, G, max_rank=2)
    full = whole.U @ whole.V.T
    assert cut[0].rank == 2
    assert cut[1]["truncation"] == pytest.approx(
        ((full - cut[0].U @ cut[0].V.T).norm() / full.norm()).item(), rel=1e-6
    )


@pytest.mark.parametrize(
    ("policy", "groups"),
    [
        ("uce", {SUBJECT}),
        ("mace", {AFTER, FIRST_EOT, PAD}),
        ("trce", {FIRST_EOT}),
        ("trace", {SUBJECT, AFTER, FIRST_EOT, PAD}),
    ],
)
def test_policies_remap_the_papers_tokens(fake, policy, groups):
    encoder = TextEncoder(fake.FakeClip(WIDTH, LENGTH))
    used = set()
    total = 0.0
    for pairs, weights, *_ in erased_pairs(
        POLICIES[policy], Concept("caterpillar", "dog", 3.0), "object", encoder, {}
    ):
        moved = (pairs.erase - pairs.want).norm(dim=1) > 0
        used |= {g for g, w, m in zip(pairs.groups, weights, moved) if w > 0 and m}
        total += weights.sum().item()
    assert used == groups
    assert total == pytest.approx(3.0)


# ------------------------------------------------------------------------------------- regulariser


@pytest.mark.parametrize(
    ("alpha", "absolute"), [(0.0, None), (None, None), (-1.0, None), (1.0, 0.0), (float("nan"), None)]
)
def test_lambda_is_never_zero(alpha, absolute):
    with pytest.raises(TraceError, match="lambda is .*must be positive"):
        solvers.regularise(definite(4), alpha, absolute)


def test_lambda_without_keep_rows_is_refused():
    with pytest.raises(TraceError, match="keep rows present"):
        solvers.regularise(torch.zeros(4, 4, dtype=torch.float64), 1e-3)


@pytest.mark.parametrize("alpha", [0, -1e-3, float("nan")])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(TraceError, match="alpha is .*must be positive"):
        ClosedFormConfig(alpha=alpha)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("policy", "nosuch"),
        ("kind", "nosuch"),
        ("energy", 0.0),
        ("energy", 1.1),
        ("energy", float("nan")),
        ("strength", 11.0),
        ("strength", float("nan")),
        ("strength", float("inf")),
        ("keep_weight", 0.0),
        ("keep_weight", float("nan")),
        ("keep_weight", float("inf")),
        ("alpha", float("inf")),
        ("max_rank", 0),
        ("max_rank", -1),
    ],
)
def test_options_out_of_range_are_refused_by_name(option, value):
    with pytest.raises(TraceError, match=option):
        ClosedFormConfig(**{option: value})


def test_matrix_that_is_not_definite_is_refused():
    with pytest.raises(TraceError, match="not positive definite; raise alpha"):
        solvers.cholesky(torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)))


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
    lora, measured = export(case.backbone, case.edits, case.sums)
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
        accumulate(backbone, encoder, POLICIES["trace"], CONCEPTS, KEEP, ClosedFormConfig(), progress)


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
        accumulate(backbone, encoder, POLICIES["trace"], CONCEPTS, KEEP, ClosedFormConfig(), lambda *_: None)


def test_rows_of_another_width_are_refused(fake):
    encoder = TextEncoder(fake.FakeClip(WIDTH, LENGTH))
    backbone = fake.FakeBackbone(Layer, fake.random_weights(1, 8, WIDTH + 1))
    with pytest.raises(
        ConceptError, match="rows of 96 numbers, the model reads 97; connect the CLIP that belongs"
    ):
        accumulate(backbone, encoder, POLICIES["trace"], CONCEPTS, KEEP, ClosedFormConfig(), lambda *_: None)


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


# ------------------------------------------------------------------------------------- substitutes


def instead_rows(case, other: str) -> torch.Tensor:
    """Rows of the same prompts with something else in the concept's place, for every row of
    :meth:`Case.differences`.
    """
    (concept,) = case.concepts
    out = []
    mine, others = (
        erased_pairs(case.policy, c, "object", case.encoder, CONTEXTS)
        for c in (concept, replace(concept, anchor=other))
    )
    for (pairs, weights, *_), (aims, *_) in zip(mine, others):
        rows = zip(pairs.erase.double(), pairs.want.double(), aims.want.double(), weights.tolist())
        out += [o for c, g, o, w in rows if w > 0 and (c - g).norm() > 1e-6 * c.norm()]
    return torch.stack(out)


@pytest.mark.parametrize(("grade", "strength"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.5)])
def test_a_substitute_takes_the_concepts_place_in_every_layer(fake, grade, strength):
    """``W'(c - g) = W(c - g) - s W(c - o)``, though only ``c - g`` is read."""
    concept = Concept("cat", strength=grade)
    case = Case(fake, concepts=[concept], width=WIDE, energy=1.0, strength=strength)
    plain = case.edits[CONTEXT]
    config, others = case.config, {"cat": "dog"}
    sums = accumulate(
        case.backbone, case.encoder, case.policy, [concept], KEEP, config, lambda *_: None, others
    )
    edit, info = solve(case.policy, sums[CONTEXT], config)
    D, instead = case.differences(), instead_rows(case, "dog")
    C = torch.stack([c for c, g, _ in case.pairs() if (c - g).norm() > 1e-6 * c.norm()])
    assert info["rank"] == plain.rank and torch.allclose(
        edit.V @ edit.V.T, plain.V @ plain.V.T, atol=1e-6 * plain.V.norm() ** 2
    )
    wanted = D - grade * strength * (C - instead)
    error = (edit.map(D) - wanted).norm(dim=1) / D.norm(dim=1)
    assert error.max() < 1e-5
    assert (plain.map(D) - wanted).norm() > 0.1 * D.norm()
    M, across = sums[CONTEXT].moved()
    assert M.trace() > 0 and not torch.allclose(M, across)


def test_a_substitutes_edit_from_the_rows_and_from_their_sums_is_the_same(fake, monkeypatch):
    concepts, edits, moved = [Concept("cat", strength=0.5), Concept("red house", "tree")], [], []
    for limit in (4096, 10):
        monkeypatch.setattr(solvers, "DIRECT_LIMIT", limit)
        case = Case(fake, concepts=concepts, energy=0.97)
        sums = accumulate(
            case.backbone,
            case.encoder,
            case.policy,
            concepts,
            KEEP,
            case.config,
            lambda *_: None,
            {"cat": "dog"},
        )[CONTEXT]
        assert bool(sums.rows) == (limit == 4096)
        edit, _ = solve(case.policy, sums, case.config)
        edits.append(edit.U @ edit.V.T)
        moved.append(torch.stack(sums.moved()))
    assert (edits[0] - edits[1]).norm() < 1e-6 * edits[0].norm()
    assert (moved[0] - moved[1]).norm() < 1e-9 * moved[0].norm()


def test_concepts_without_a_substitute_move_as_before_beside_one_that_has(fake):
    both = [Concept("cat"), Concept("red house", "tree")]
    case = Case(fake, concepts=both, width=WIDE, energy=1.0)
    sums = accumulate(
        case.backbone, case.encoder, case.policy, both, KEEP, case.config, lambda *_: None, {"cat": "dog"}
    )
    edit, _ = solve(case.policy, sums[CONTEXT], case.config)
    alone = Case(fake, concepts=both[1:], width=WIDE, energy=1.0)
    D = alone.differences()
    assert (edit.map(D)).norm(dim=1).max() < 1e-4 * D.norm(dim=1).max()


def test_the_residual_is_measured_against_the_substitute(fake):
    concept = [Concept("cat")]
    case = Case(fake, concepts=concept, width=WIDE, energy=1.0)
    sums = accumulate(
        case.backbone, case.encoder, case.policy, concept, KEEP, case.config, lambda *_: None, {"cat": "dog"}
    )
    right, _ = solve(case.policy, sums[CONTEXT], case.config)
    for edit, low in ((right, True), (case.edits[CONTEXT], False)):
        _, measured = export(case.backbone, {CONTEXT: edit}, {CONTEXT: sums[CONTEXT]})
        assert all((layer["residual"] < 1e-3) == low for layer in measured.values())
    assert all(layer["residual"] > 0.1 for layer in measured.values())


def test_the_pooled_vector_gives_way_to_the_substitutes(fake):
    concept = [Concept("cat")]
    case = Case(fake, concepts=concept, towers=("l", "t5xxl"), pooled=128, energy=1.0)
    sums = accumulate(
        case.backbone, case.encoder, case.policy, concept, KEEP, case.config, lambda *_: None, {"cat": "dog"}
    )
    edit, _ = solve(case.policy, sums[POOLED], case.config)
    c, g, o = (
        case.encoder.encode(t).pooled.double()[None]
        for t in ("a photo of a cat", "a photo of a", "a photo of a dog")
    )
    assert (edit.map(c - g) - (o - g)).norm() < 1e-5 * (c - g).norm()


def test_overshoot_maps_the_concept_beyond_its_counterpart(fake):
    """W'(c - g) = -eta W (c - g) at strength 1."""
    case = Case(fake, concepts=CONCEPTS, width=WIDE, energy=1.0, eta=0.5)
    for _, weight, edited in case.edited():
        D = case.differences().T
        assert (edited @ D + 0.5 * weight @ D).norm() <= 1e-6 * (weight @ D).norm()


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
