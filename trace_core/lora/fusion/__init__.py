"""Many erasures in one file: MACE's closed-form fusion, with one factorisation for all text layers.

MACE (arXiv 2403.06135, eq. 7) looks for weights W* that act on the prompts of each concept like the concept's
own adapter dW_i, and on the keep set like the original model::

    min  sum_i ||(W* - W - dW_i) C_i||^2 + beta ||(W* - W) P||^2 + lambda ||W* - W||^2
    W* - W = sum_i dW_i S_i G^-1,      S_i = C_i C_i^T,   G = sum_i S_i + beta P P^T + lambda I

C_i are the weighted text rows of concept i's prompts. S_i and G are equal for all layers that read the same
rows, so one Cholesky factorisation serves the network. With ``dW_i = up_i down_i``, the solution has low
rank: ``up_i`` stays, and ``down_i`` becomes ``down_i S_i G^-1``. Every concept keeps its own ranks in the
result, whose strength can be changed and which can be removed again (:class:`~trace_core.lora.parts.Part`).

The same solution follows adapter by adapter. Each dW_i' should equal dW_i on its own rows, and be zero on the
rows of the others (an integration regulariser of weight mu) and on the keep set::

    min  ||(dW_i' - dW_i) C_i||^2 + mu sum_{j != i} ||dW_i' C_j||^2 + beta ||dW_i' P||^2 + lambda ||dW_i'||^2
    dW_i' = dW_i S_i (S_i + mu sum_{j != i} S_j + beta P P^T + lambda I)^-1

For ``mu = 1`` the bracket equals G for every i, so the dW_i' sum exactly to MACE's fusion. Any other mu needs
one factorisation per adapter.

In mode ``add`` the first erasure keeps its dW_1 bit for bit, and only the others are solved for. What was
tuned for many concepts stays as it was when one more comes, and when that one is taken out again.

The start token is the same row in every prompt, so the adapters' targets for it conflict, and no weight of
the row is right. By default, the response of the start token is fixed to the solution of eq. 7 for this row
alone: the weighted mean of the adapters' responses, with 0 for the keep set. This is the limit of an infinite
weight of the row. A closed form, which does not change the start token, therefore stays exact there. A single
adapter without a keep set stays unchanged. The few very large numbers of the start token do not enter G.
"""

from .config import FusionConfig, parse_strengths
from .factors import compress
from .fuse import FusionResult, check_compatible, fuse

__all__ = ["FusionConfig", "FusionResult", "check_compatible", "compress", "fuse", "parse_strengths"]
