"""What the tests of the fusion on ComfyUI's models share."""

from __future__ import annotations

import json

import torch

from trace_core.backbones import backbone_for
from trace_core.closed_form import ClosedFormConfig, erase
from trace_core.lora import ErasureLora
from trace_core.text.grammar import parse_concepts

KEEP = ["house", "bird", "green car", "sea"]

FEW = {"object": ("{}", "a photo of a {}", "a {} on the table")}
KINDS = ["sd1", "sdxl", "flux"]


def erased(family, model, concept: str) -> ErasureLora:
    return erase(model, family.clip, parse_concepts(concept), KEEP, ClosedFormConfig(max_rank=8)).lora


def trained(family, model, concept: str, scope: str = "text", rank: int = 2) -> ErasureLora:
    """An adapter as a finetune makes it: every layer of a scope, and a response at the start token as
    well.
    """
    backbone, draw = backbone_for(model), torch.Generator().manual_seed(len(concept) + ord(concept[0]))
    factors = {}
    for name in backbone.lora_targets(scope):
        out, into = backbone.network.get_submodule(name).weight.shape
        factors[f"diffusion_model.{name}"] = (
            0.1 * torch.randn(out, rank, generator=draw),
            0.1 * torch.randn(rank, into, generator=draw),
        )
    lora = ErasureLora.from_factors(factors)
    base = {"kind": backbone.kind, "hash": backbone.model_hash()}
    lora.metadata |= {"trace.concepts": json.dumps([[concept, "", 1.0]]), "trace.base": json.dumps(base)}
    return lora
