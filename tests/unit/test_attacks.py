"""The attacks' mathematics, against independent evaluations."""

from __future__ import annotations

import pytest
import torch

from trace_core.errors import ConceptError, TraceError
from trace_core.evaluate.attacks import ATTACKS, latent, names_of
from trace_core.evaluate.attacks.prepared import Prepared, averaged, concatenated
from trace_core.evaluate.attacks.reach import reach
from trace_core.evaluate.attacks.rece import RELATIVE_RIDGE, adversarial_map
from trace_core.evaluate.attacks.token_search import on_simplex, one_hot
from trace_core.evaluate.attacks.tokens import difference, only_chunk, replaced
from trace_core.evaluate.attacks.variants import strongest
from trace_core.evaluate.attacks.words import misspelt
from trace_core.text.batching import Encoded


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_names():
    assert names_of("all") == list(ATTACKS)
    assert names_of(" words, rece,words") == ["words", "rece"]
    with pytest.raises(TraceError, match="no attack 'tea'; use all"):
        names_of("rece,tea")
    with pytest.raises(TraceError, match="no attack"):
        names_of(",")


def test_lambda_is_relative():
    """Scaling all weights leaves the map; by an independent evaluation of eq. 6."""
    before, after = [draw(20, 12, seed=i) for i in range(3)], [draw(20, 12, seed=9 + i) for i in range(3)]
    gram = sum(w.T @ w for w in after)
    ridge = RELATIVE_RIDGE * gram.trace() / 12 * torch.eye(12, dtype=torch.float64)
    expected = torch.linalg.solve(gram + ridge, sum(a.T @ b for a, b in zip(after, before)))
    found = adversarial_map(before, after)
    assert (found - expected).norm() <= 1e-9 * expected.norm()
    scaled = adversarial_map([7 * w for w in before], [7 * w for w in after])
    assert (found - scaled).norm() <= 1e-9 * expected.norm()


def test_reach_is_one_at_the_concept_and_zero_at_the_neutral_distance():
    concept, neutral = draw(3, 4, 2, 2), draw(3, 4, 2, 2, seed=1)
    assert reach(concept, concept, neutral) == pytest.approx(1)
    assert reach(neutral, concept, neutral) == pytest.approx(0)
    assert reach(2 * neutral - concept, concept, neutral) == pytest.approx(-1)
    assert reach(0.25 * neutral + 0.75 * concept, concept, neutral) == pytest.approx(0.75)


def test_projection_onto_the_simplex():
    """The nearest point of the simplex meets the optimality conditions."""
    values = 2 * draw(50, 7)
    found = on_simplex(values)
    assert torch.allclose(found.sum(-1), torch.ones(50, dtype=torch.float64)) and (found >= 0).all()
    for value, point in zip(values, found):
        shift = (value - point)[point > 0]
        assert torch.allclose(shift, shift[0].expand_as(shift))
        assert (value[point == 0] <= shift[0] + 1e-12).all()
    assert torch.allclose(on_simplex(found), found)


def test_one_hot_passes_the_gradient_straight_through():
    chances = on_simplex(draw(4, 3, 6)).requires_grad_()
    made = one_hot(chances, torch.Generator().manual_seed(0))
    assert torch.allclose(made.sum(-1), torch.ones(4, 3, dtype=torch.float64))
    assert ((made.round() - made).abs() < 1e-12).all()
    assert (chances.detach()[made.detach().round().bool()] > 0).all()
    weights = draw(4, 3, 6, seed=1)
    (made * weights).sum().backward()
    assert torch.equal(chances.grad, weights)


@pytest.mark.parametrize(
    ("ids", "others", "expected"),
    [
        ([9, 1, 2, 3, 8, 8, 8], [9, 1, 2, 8, 8, 8, 8], (3, 4)),  # CLIP: the end token pads
        ([1, 2, 3, 4, 7, 0, 0], [1, 2, 7, 0, 0, 0, 0], (2, 4)),  # T5: pads behind the end token
        ([0, 0, 1, 5, 6], [0, 0, 0, 1, 6], (3, 4)),  # pads in front
        ([9, 1, 5, 2, 8, 8], [9, 1, 2, 8, 8, 8], (2, 3)),  # the concept within the prompt
        ([9, 1, 2, 8, 8, 8], [9, 8, 8, 8, 8, 8], (1, 3)),  # the words of a prompt
    ],
)
def test_difference_of_two_prompts(ids, others, expected):
    assert difference(ids, others) == expected


def test_vectors_in_the_place_of_tokens():
    chunk = [(n, 1.0, 0) for n in (9, 1, 2, 3, 8, 8, 8)]
    vector = torch.ones(4)
    one = replaced(chunk, 2, 4, [vector])
    assert [t[0] if isinstance(t[0], int) else "v" for t in one] == [9, 1, "v", 8, 8, 8, 8]
    three = replaced(chunk, 1, 1, [vector] * 2)
    assert [t[0] if isinstance(t[0], int) else "v" for t in three] == [9, "v", "v", 1, 2, 3, 8]
    assert all(len(t) == 3 for t in three)
    with pytest.raises(ConceptError, match="do not fit"):
        replaced(chunk, 1, 1, [vector] * 3)
    unpadded = [(n, 1.0) for n in (9, 1, 2, 8)]
    assert len(replaced(unpadded, 1, 2, [])) == 3
    with pytest.raises(ConceptError, match="shorter prompt"):
        only_chunk({"l": [chunk, chunk]}, "a long prompt")


def test_mixed_conditionings():
    a, b = Encoded(draw(4, 3), draw(2)), Encoded(draw(3, 3, seed=1), draw(2, seed=2))
    joined = concatenated(a, b)
    assert torch.equal(joined.rows, torch.cat([a.rows, b.rows])) and torch.equal(joined.pooled, a.pooled)
    mean = averaged(a, b, 0.25)
    assert torch.allclose(mean.rows[:3], 0.25 * a.rows[:3] + 0.75 * b.rows)
    assert torch.allclose(mean.rows[3], 0.25 * a.rows[3])
    assert torch.allclose(mean.pooled, 0.25 * a.pooled + 0.75 * b.pooled)
    assert torch.allclose(averaged(b, a, 0.5).rows, (a.rows[:3] + b.rows) / 2)


def test_prepared_prompts_answer_for_themselves():
    class Clip:
        def tokenize(self, text):
            return {"l": text}

        def encode_from_tokens(self, tokens, return_pooled=True, return_dict=False):
            return {"cond": torch.full((1, 2, 3), float(len(tokens["l"]))), "pooled_output": None}

    clip = Prepared(Clip(), {"mine": Encoded(torch.zeros(2, 3), None)})
    for text, value in (("mine", 0.0), ("other", 5.0)):
        assert (clip.encode_from_tokens(clip.tokenize(text))[0] == value).all()


def test_inversion_of_a_picture_is_undone_by_sampling():
    """A linear denoiser, whose Euler steps are exactly invertible."""
    matrix = 0.9 * torch.eye(4, dtype=torch.float64) + 0.05 * draw(4, 4)

    def denoised(x, sigma):
        return x @ matrix / (1 + sigma)

    levels, x = [8.0, 4.0, 2.0, 1.0, 0.5], draw(6, 4)
    steps = []
    noise = latent.inverted(denoised, x, levels, 60, lambda: steps.append(1))
    assert len(steps) == 60 * len(levels)
    back = latent.sampled(denoised, noise, levels, lambda: None)
    assert (back - x).norm() <= 1e-8 * x.norm() and (noise - x).norm() > 0.5 * x.norm()


def test_misspelling_swaps_two_letters():
    assert misspelt("cat") == "cta" and misspelt("google style") == "google styel"
    assert misspelt("apple") == "appel"
    with pytest.raises(TraceError, match="no two letters"):
        misspelt("a")


def test_the_strongest_variant_is_drawn_without_the_erasure():
    variants = {
        "unknown": {"rate": 1.0, "unerased": 0.1, "picture": 0.0},
        "weak": {"rate": 0.9, "unerased": 1.0, "picture": 0.9},
        "strong": {"rate": 0.5, "unerased": 1.0, "picture": 0.0, "reach": 0.3},
    }
    assert strongest(variants).details["strongest"] == "weak"
    best = strongest(variants, "picture")
    assert best.details["strongest"] == "strong" and best.rate == 0.5 and best.reach == 0.3
    alone = {n: {"rate": r, "unerased": 1.0, "picture": r} for n, r in (("0.3", 1.0), ("1", 0.0))}
    assert strongest(alone, "picture").rate == 0  # nothing but the picture
    assert strongest({"unknown": variants["unknown"]}).rate is None
