"""Options out of range are refused by name."""

from __future__ import annotations

import pytest
import torch

from solver_cases import definite
from trace_core.closed_form import ClosedFormConfig, solvers
from trace_core.errors import TraceError
from trace_core.text.concepts import Concept


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


PERSON, CAT = Concept("Anna Berg", kind_given="person"), Concept("cat")


@pytest.mark.parametrize(
    ("concepts", "given", "energy", "eta"),
    [
        ([CAT], {}, 0.97, 0.0),
        ([PERSON], {}, 0.8, 0.3),
        ([PERSON] * 3, {}, 0.705, 0.3),
        ([PERSON] * 10, {}, 0.6, 0.3),
        ([PERSON] * 500, {}, 0.6, 0.3),
        ([PERSON, CAT], {}, 0.97, 0.0),
        ([PERSON], {"robust": 1}, 0.97, 0.0),
        ([PERSON], {"energy": 0.97}, 0.97, 0.0),
        ([PERSON], {"eta": 0.0}, 0.8, 0.0),
        ([CAT], {"kind": "person"}, 0.8, 0.3),
        ([Concept("Anna Berg", "a woman", kind_given="person")], {}, 0.97, 0.0),
        ([Concept("eye patch", kind_given="explicit")], {}, 0.8, 0.0),
        ([Concept("eye patch", "bare eye", kind_given="explicit")], {}, 0.97, 0.0),
    ],
)
def test_people_and_explicit_content_have_values_of_their_own(concepts, given, energy, eta):
    """Nothing else has, and what is given stays."""
    settled = ClosedFormConfig(**given).settled(concepts)
    assert (settled.energy, settled.eta) == (energy, eta)


def test_matrix_that_is_not_definite_is_refused():
    with pytest.raises(TraceError, match="not positive definite; raise alpha"):
        solvers.cholesky(torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)))
