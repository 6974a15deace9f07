"""UCE and MACE are their papers' equations, evaluated densely and independently."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from solver_cases import CONCEPTS, CONTEXTS, GRADED, KEEP, LENGTH, WIDTH, Case, definite, random_rows
from trace_core.backbones.base import CONTEXT
from trace_core.closed_form import POLICIES, ridge, solvers
from trace_core.closed_form.policies import erased_pairs, keep_prompts
from trace_core.text.concepts import Concept
from trace_core.text.encoding import AFTER, FIRST_EOT, PAD, SUBJECT, TextEncoder
from trace_core.text.templates import TEMPLATES, fill


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
    sums = case.sums[CONTEXT]
    own = case.policy.relative and case.policy.relative * sums.energy
    matrix = sums.keep.value()
    lam = (solvers.regularise(matrix, case.policy.alpha, own, sums.trace) - matrix)[0, 0].item()
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
        ("projection", {SUBJECT, AFTER, FIRST_EOT, PAD}),
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
