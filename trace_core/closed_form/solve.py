"""One solve for one text stream."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import TraceError
from . import solvers
from .config import ClosedFormConfig
from .edit import ContextEdit, LayerEdits
from .hardened import harden
from .peers import SOLVERS, Setting, solve_peer
from .policies import Policy
from .sums import RowSums


def solve(
    policy: Policy,
    sums: RowSums,
    config: ClosedFormConfig,
    gram: Callable[[], Tensor] | None = None,
    kind: str = "object",
    seed: int = 0,
) -> tuple[ContextEdit | LayerEdits, dict]:
    """The edit of a stream's rows by the policy's solver, and the solver's report.

    ``gram``, ``kind``, ``seed``: for the papers' solvers, see :class:`~trace_core.closed_form.peers.Setting`.
    """
    strength = config.strength * sums.strength
    if policy.solver in SOLVERS:
        return solve_peer(policy, sums, Setting(strength, kind, gram, seed))
    alpha = policy.alpha if config.alpha is None else config.alpha
    own = policy.relative is not None and config.alpha is None
    absolute = policy.relative * sums.energy if own else None
    G = solvers.regularise(sums.keep.value(), alpha, absolute, sums.trace)
    if policy.solver == "projection":
        fixed = [rows for rows in (sums.constrained, sums.exact) if rows is not None and len(rows)]
        fixed = torch.cat([rows.double() for rows in fixed]) if fixed else None
        options = (strength * (1 + (config.eta or 0.0)), config.energy, config.max_rank, fixed)
        if sums.rows:
            edit, info = solvers.projection(
                torch.cat(sums.rows), G, *options, sums.row_strengths, sums.displacements
            )
        else:
            edit, info = solvers.projection_from_gram(sums.difference(), G, *options, sums.strength_weighted)
        if not config.robust:
            return edit, info
        if sums.strengths_differ:
            raise TraceError("concepts of different strengths cannot be hardened; give all the same strength")
        # at their mean the counterparts stay, or what is removed would move them towards the concept
        fixed = sums.centre if fixed is None else torch.cat([fixed, sums.centre])
        edit, price = harden(edit, sums.difference(), gram(), G, config.robust, strength, fixed)
        return edit, {**info, "rank": edit.rank, "robust": price}
    return solvers.ridge(
        sums.targets, None, G + sums.erase.value(), strength, policy.tolerance, config.max_rank
    )
