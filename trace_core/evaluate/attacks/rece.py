"""Adversarial rows in closed form (RECE, arXiv 2407.12383)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...backbones import backbone_for
from ...backbones.base import CONTEXT, POOLED
from ...closed_form.adversarial import REACH, bring_back
from ...text.batching import encode
from .case import Attack, Case, Outcome

RIDGE = 0.1  #: RECE's lambda on Stable Diffusion 1.4, its value for most concepts
RELATIVE_RIDGE = REACH  #: the same as a share of the mean diagonal of ``sum W'^T W'``


def adversarial_map(
    before: Sequence[Tensor], after: Sequence[Tensor], strength: float | None = None
) -> Tensor:
    """RECE, eq. 6: ``A = (sum W'^T W' + lambda I)^-1 (sum W'^T W)``.

    The W' map the rows ``c' = A c`` to about the same output as the W map c.

    Args:
        before, after: the layers' text columns W (base model) and W' (erased model), ``[out_i, d]`` each.
        strength: lambda; None: :data:`RELATIVE_RIDGE` of the mean diagonal of ``sum W'^T W'``, so that it
            means the same for networks of any size.

    Returns:
        ``[d, d]`` float64.
    """
    width = after[0].shape[1]
    gram = torch.zeros(width, width, dtype=torch.float64)
    cross = torch.zeros(width, width, dtype=torch.float64)
    for old, new in zip(before, after):
        new = new.double()
        gram += new.T @ new
        cross += new.T @ old.double()
    if strength is None:
        strength = RELATIVE_RIDGE * gram.diagonal().mean().item()
    return bring_back(gram, cross, strength)


def adversarial_maps(model, erased, strength: float | None = None) -> dict[str, Tensor]:
    """:func:`adversarial_map` of every text stream, over all layers that read it."""
    out, (base, changed) = {}, (backbone_for(m) for m in (model, erased))
    for stream in (CONTEXT, POOLED):
        layers = base.layers(stream)
        if layers:
            columns = base.width(stream)
            pair = ([w[:, :columns].cpu() for _, w in b.weights(layers)] for b in (base, changed))
            out[stream] = adversarial_map(*pair, strength)
    return out


class Rewritten:
    """A CLIP that applies linear maps to the rows and pooled vectors of every prompt but the empty one."""

    def __init__(self, clip, maps: Mapping[str, Tensor]):
        self._clip, self._maps = clip, maps

    def tokenize(self, text: str) -> tuple[str, dict]:
        return text, self._clip.tokenize(text)

    def encode_from_tokens(
        self, tokens: tuple[str, dict], return_pooled: bool = True, return_dict: bool = False
    ):
        text, tokens = tokens
        found = encode(self._clip, tokens).conditioning()
        rows, pooled = found["cond"], found["pooled_output"]
        if text:
            rows = (rows.double() @ self._maps[CONTEXT].to(rows.device).T).to(rows.dtype)
            if POOLED in self._maps and pooled is not None:
                pooled = (pooled.double() @ self._maps[POOLED].to(pooled.device).T).to(pooled.dtype)
        return {**found, "cond": rows, "pooled_output": pooled} if return_dict else (rows, pooled)


def run(case: Case) -> Outcome:
    """The concept's prompts with adversarial rows, on both models.

    On the unerased model the map is nearly the identity, and shows what lambda alone costs.
    """
    found = {}
    for label, model in (("erased", case.erased), ("unerased", case.model)):
        clip = Rewritten(case.clip, adversarial_maps(case.model, model))
        found[label] = case.rate(model, case.prompts, f"rece, {label}", clip)
        if label == "erased":
            reached = case.reach(model, case.prompts, clip)
    return Outcome(found["erased"], found["unerased"], reached, {"lambda": RELATIVE_RIDGE})


ATTACK = Attack(
    "rece",
    "rows in closed form that the erased layers map to the unerased layers' output for the concept",
    "RECE, arXiv 2407.12383, eq. 6",
    run,
)
