"""Many erasures in one: MACE's closed-form fusion, for every layer that reads text, with one factorisation.

MACE (arXiv 2403.06135, eq. 7) looks for the weights W* that do on the prompts of every concept what its own
adapter dW_i
does there, and on the keep set what the model did before::

    min  sum_i ||(W* - W - dW_i) C_i||^2 + beta ||(W* - W) P||^2 + lambda ||W* - W||^2
    W* - W = sum_i dW_i S_i G^-1,      S_i = C_i C_i^T,   G = sum_i S_i + beta P P^T + lambda I

C_i are the weighted text rows of concept i's prompts, so S_i and G are the same for every layer that reads
the same rows: one Cholesky factorisation serves the network. And with ``dW_i = up_i down_i`` the answer has
low rank as it stands: ``up_i`` stays, ``down_i`` becomes ``down_i S_i G^-1``. Every concept keeps ranks of
its own in the result, which can be graded or taken out again (:class:`~trace_core.lora.parts.Part`).

The same answer follows one adapter at a time. Each dW_i' shall be dW_i on its own rows and silent on the
others' (the
integration regulariser of weight mu; algorithms' 5.1) and on the keep set::

    min  ||(dW_i' - dW_i) C_i||^2 + mu sum_{j != i} ||dW_i' C_j||^2 + beta ||dW_i' P||^2 + lambda ||dW_i'||^2
    dW_i' = dW_i S_i (S_i + mu sum_{j != i} S_j + beta P P^T + lambda I)^-1

For ``mu = 1`` the bracket is G for every i, so the dW_i' add up to MACE's fusion exactly. Other mu cost a
factorisation each.

The start token is the same row in every prompt, so the adapters ask for different things there and no weight
of its own would do: by default its response is held at what eq. 7 gives for this row alone, the mean of the
adapters' own by their weights, the keep set counting as 0. It is the limit of an infinite weight on that row.
A closed form, which leaves the start token as it is, stays exact there; one adapter alone without a keep set
stays itself; and the start token's few giant numbers keep out of G.
"""

from .config import FusionConfig, parse_strengths
from .factors import compress
from .fuse import FusionResult, check_compatible, fuse

__all__ = ["FusionConfig", "FusionResult", "check_compatible", "compress", "fuse", "parse_strengths"]
