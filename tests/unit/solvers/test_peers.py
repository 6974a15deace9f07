"""The closed forms of other papers against dense evaluations of their equations, written independently."""

from __future__ import annotations

import pytest
import torch

from solver_cases import CONCEPTS, Case, random_rows
from trace_core.backbones.base import CONTEXT
from trace_core.closed_form import ridge, solvers
from trace_core.closed_form.adversarial import adversarial_map
from trace_core.closed_form.edit import ContextEdit, LayerEdits
from trace_core.closed_form.peers import Setting, k_means, orthonormal, solve_peer
from trace_core.closed_form.policies import CLIP_ENERGY, POLICIES
from trace_core.errors import TraceError
from trace_core.text.concepts import Concept

PAPERS = ("double", "speed", "oce", "rece")


def weights(case):
    return [w for layer, w in case.backbone.weights() if layer.stream == CONTEXT]


def gram(case):
    return sum(w.T @ w for w in weights(case))


def rows(case):
    """C, A ``[n, d]`` of the last tokens, and the kept things' last tokens ``[k, d]``."""
    C, A = (torch.stack([p[i] for p in case.pairs()]) for i in (0, 1))
    clip = case.encoder.clip

    def last(text):
        return clip.encode_from_tokens(clip.tokenize(text))[0, len(clip.ids(text))].double()

    return C, A, torch.stack([last(k) for k in case.keep])


def changes(case, kind="object"):
    """dW of every layer by the library."""
    edit, _ = solve_peer(case.policy, case.sums[CONTEXT], Setting(1.0, kind, lambda: gram(case)))
    out = []
    for W in weights(case):
        if isinstance(edit, ContextEdit):
            out.append(W @ edit.U @ edit.V.T)
        else:
            left, right = edit._solve(W)
            out.append(left @ right)
    return out


@pytest.fixture
def case(fake, request):
    return Case(fake, request.param, concepts=[Concept("cat", "dog")])


def close(found, wanted):
    assert wanted.norm() > 1e-6
    assert (found - wanted).norm() <= 1e-8 * wanted.norm()


@pytest.mark.parametrize("case", ["double"], indirect=True)
def test_double_projections(case):
    C, A, K = rows(case)
    U2 = torch.linalg.svd(K.T, full_matrices=True).U[:, len(K) :]  # null space of F^T
    x = U2.T @ C[0]
    for W, change in zip(weights(case), changes(case)):
        close(change, torch.outer(W @ (A[0] - C[0]), U2 @ x) / (x @ x))
        assert (change @ K.T).norm() <= 1e-8 * change.norm() * K.norm()


@pytest.mark.parametrize("kind", ["object", "person"])
@pytest.mark.parametrize("case", ["speed"], indirect=True)
def test_speed(case, kind):
    C, A, K = rows(case)
    n, d = C.shape
    scale = K.square().sum(1).mean() / CLIP_ENERGY
    tau, rho = {"object": (0.1, 1.0), "person": (1e-4, 0.05)}[kind]
    empty = case.encoder.encode("").embeddings.double()
    fixed = torch.cat([empty[:1], k_means(empty[1:], 3)]).T
    eye = torch.eye(d, dtype=torch.float64)
    for W, change in zip(weights(case), changes(case, kind)):
        kept = K
        if kind == "object":
            first = W @ (A - C).T @ C / n @ torch.linalg.inv(C.T @ C / n + scale * eye)
            moved = torch.stack([(first @ r).norm() for r in K])
            kept = K[moved >= moved.mean()]
            v = torch.linalg.svd(W, full_matrices=True).Vh[-1]
            draws = torch.Generator().manual_seed(0)
            noise = torch.randn(10 * len(kept), d, generator=draws, dtype=torch.float64)
            kept = torch.cat([kept, kept.repeat(10, 1) + torch.stack([v * (v @ e) for e in noise])])
        values, vectors = torch.linalg.eigh(kept.T @ kept / len(kept))
        P = sum(torch.outer(v, v) for value, v in zip(values, vectors.T) if value < tau * scale)
        Q = torch.linalg.inv(C.T @ C @ P / n + rho * scale * eye)
        inner = torch.linalg.pinv(fixed.T @ P @ Q @ fixed, rtol=1e-6)
        dense = W @ (A - C).T @ C / n @ P @ (eye - Q @ fixed @ inner @ fixed.T @ P) @ Q
        close(change, dense)


@pytest.mark.parametrize("kind", ["object", "style", "person"])
@pytest.mark.parametrize("case", ["oce"], indirect=True)
def test_oce_is_the_rotation_of_its_matrix(case, kind):
    C, A, K = rows(case)
    e, b, a, lam = {"object": (2000, 10, 0, 10), "style": (500, 10, 1, 10), "person": (3500, 50, 5, 10)}[kind]
    scale = K.square().sum(1).mean() / CLIP_ENERGY
    for W, change in zip(weights(case), changes(case, kind)):
        E, guide = (torch.linalg.qr(W @ X.T).Q for X in (C, A))
        size = (W @ W.T).diagonal().mean() * 3
        T = -e * scale * size * E @ E.T @ (torch.eye(len(W)) - guide @ guide.T) + lam * scale * W @ W.T
        T = T + a * W @ K.T @ K @ W.T + b * W @ (K.T @ K / len(K)) @ W.T
        U, _, Vh = torch.linalg.svd(T)
        R = U @ torch.diag(torch.tensor([1.0] * (len(T) - 1) + [torch.det(U @ Vh).sign()]).double()) @ Vh
        close(change, R @ W - W)
        assert torch.linalg.det(R) == pytest.approx(1)


@pytest.mark.parametrize("case", ["rece"], indirect=True)
def test_rece_is_uce_then_a_round_against_its_own_rows(fake, case):
    first = Case(fake, "uce", concepts=case.concepts)
    encoder = case.encoder
    C, A = (encoder.encode(c).embeddings.double() for c in ("cat", "dog"))
    K, energy = rows(case)[2], rows(case)[2].square().sum(1).mean()
    lam = 0.1 / CLIP_ENERGY * energy
    before = weights(case)
    after = [W + W @ first.edits[CONTEXT].U @ first.edits[CONTEXT].V.T for W in before]
    inner = sum(w.T @ w for w in after)
    reach = 0.1 / 10.8 * inner.diagonal().mean() * torch.eye(len(inner))
    bring_back = torch.linalg.solve(inner + reach, sum(w.T @ W for w, W in zip(after, before)))
    adversarial = C @ bring_back.T
    G = adversarial.T @ adversarial + 0.1 * K.T @ K + lam * torch.eye(len(inner))
    for W, w, change in zip(before, after, changes(case)):
        dense = w + w @ (A - adversarial).T @ adversarial @ torch.linalg.inv(G)
        close(change, dense - W)


def test_adversarial_rows_are_the_papers_for_any_edit():
    W = [random_rows(20, 12, seed) for seed in range(3)]
    edit = ContextEdit(random_rows(12, 3, 7) * 0.2, random_rows(12, 3, 8) * 0.2)
    new = [w @ (torch.eye(12) + edit.U @ edit.V.T) for w in W]
    own = sum(w.T @ w for w in new)
    dense = torch.linalg.solve(
        own + 0.01 * own.diagonal().mean() * torch.eye(12), sum(n.T @ w for n, w in zip(new, W))
    )
    close(adversarial_map(edit, sum(w.T @ w for w in W), 0.01), dense)


@pytest.mark.parametrize("policy", PAPERS)
def test_several_concepts_have_one_strength(fake, policy):
    with pytest.raises(TraceError, match=f"{policy} has one strength for all concepts"):
        Case(fake, policy, concepts=[Concept("cat", strength=0.5), Concept("caterpillar")])


@pytest.mark.parametrize("policy", ["double", "speed", "rece"])  # OCE turns rows away, not to a target
def test_several_concepts_are_erased_together(fake, policy):
    case = Case(fake, policy, concepts=CONCEPTS)
    for W, change in zip(weights(case), changes(case)):
        before = sum(w * (W @ (c - g)).square().sum() for c, g, w in case.pairs())
        after = sum(w * ((W + change) @ c - W @ g).square().sum() for c, g, w in case.pairs())
        assert after < before


def test_edits_by_layer_followed_by_an_edit_of_the_rows():
    W = random_rows(6, 5, 1)
    edits = LayerEdits(lambda w: (w[:, :2], torch.eye(2, 5, dtype=torch.float64)))
    more = ContextEdit(random_rows(5, 2, 2), random_rows(5, 2, 3))
    up, down = edits.then(more).factors(W.float(), 5, torch.float64)
    first = W + W[:, :2] @ torch.eye(2, 5, dtype=torch.float64)
    assert torch.allclose(W + up @ down, first @ (torch.eye(5) + more.U @ more.V.T), atol=1e-5)


def test_constants_are_relative_to_the_rows_energy(fake):
    """Rows of another size give the same edit."""
    uce = Case(fake, "uce", concepts=CONCEPTS)
    keep = uce.sums[CONTEXT].keep.value()
    lam = POLICIES["uce"].relative * uce.sums[CONTEXT].energy
    small = solvers.regularise(0.01 * keep, None, 0.01 * lam)
    big = solvers.regularise(keep, None, lam)
    erase, targets = uce.sums[CONTEXT].erase.value(), uce.sums[CONTEXT].targets
    one, _ = ridge(targets, None, big + erase)
    other, _ = ridge(0.01 * targets, None, small + 0.01 * erase)
    close(one.U @ one.V.T, other.U @ other.V.T)


def test_basis_of_dependent_columns():
    columns = random_rows(6, 2, 4)
    assert orthonormal(torch.cat([columns, columns], 1)).shape == (6, 2)
