"""Closed-Form Concept Projection: TRACE's first stage, and the closed forms of UCE, MACE and TRCE."""

from __future__ import annotations

from ..trace_core.closed_form import ClosedFormConfig
from ..trace_core.closed_form import erase as erase_closed_form
from ..trace_core.closed_form.policies import POLICIES
from ..trace_core.lora import gating
from ..trace_core.text.kinds import KINDS
from . import reports, wire
from .family import domain_of
from .live import Live

DEFAULTS = ClosedFormConfig()


class ClosedFormProjection:
    ID = "TRACE_ClosedFormProjection"
    TITLE = "Closed-Form Concept Projection"
    CATEGORY = "TRACE"
    SEARCH_ALIASES = [*wire.ALIASES, "UCE", "MACE", "TRCE", "closed form", "NSFW", "safety"]
    HAS_INTERMEDIATE_OUTPUT = True  # its report is shown again when the run comes from the cache
    DESCRIPTION = (
        "Erases concepts from a model in one closed-form solve: seconds, no images, no training. The base "
        "model stays as it is; the result is a small LoRA."
    )
    RETURN_TYPES = ("MODEL", wire.LORA, "STRING")
    RETURN_NAMES = ("model", "lora", "report")
    OUTPUT_TOOLTIPS = (
        "The model with the concepts erased.",
        "The erasure: for Save Erasure LoRA, for the finetune, for Apply Erasure LoRA, or for the stock "
        "LoRA nodes.",
        "What was measured, in Markdown: verdict, figures, limits.",
    )
    FUNCTION = "erase"
    ADVANCED = ("energy", "eta", "alpha", "keep_weight", "max_rank")

    @classmethod
    def INPUT_TYPES(cls):
        return wire.with_advanced(
            cls.ADVANCED,
            {
                "required": {
                    "model": ("MODEL", {"tooltip": "The model to erase from. It is read, never written."}),
                    "clip": ("CLIP", {"tooltip": "The text encoder of the same model."}),
                    "erase": wire.ERASE,
                    "keep": wire.KEEP,
                    "policy": (
                        list(POLICIES),
                        {
                            "default": DEFAULTS.policy,
                            "tooltip": "Which rows of text go where: trace is this pack's "
                            "projection, uce, mace and trce are the published ones, for comparison.",
                        },
                    ),
                    "strength": (
                        "FLOAT",
                        {
                            "default": 1.0,
                            "min": -10.0,
                            "max": 10.0,
                            "step": 0.05,
                            "tooltip": "1 erases, 0 changes nothing, above 1 overshoots, below 0 "
                            "strengthens the concept.",
                        },
                    ),
                },
                "optional": {
                    "kind": (
                        ["auto", *KINDS],
                        {
                            "default": "auto",
                            "tooltip": "Kind of concept: which prompts introduce it. auto: by "
                            "lists of artists, people and explicit words that come with the pack, and by "
                            "words such as style; the report says which.",
                        },
                    ),
                    "energy": (
                        "FLOAT",
                        {
                            "default": DEFAULTS.energy,
                            "min": 0.01,
                            "max": 1.0,
                            "step": 0.01,
                            "tooltip": "Share of the concept's energy to project out. Lower drifts less and "
                            "erases less.",
                        },
                    ),
                    "eta": (
                        "FLOAT",
                        {
                            "default": -1.0,
                            "min": -1.0,
                            "max": 5.0,
                            "step": 0.05,
                            "tooltip": "-1: no further than another "
                            "of its kind, which takes the concept's place (the report names it). 0: to the "
                            "neutral prompt. Above 0: past it, and the "
                            "concept may be drawn where it is the negative prompt.",
                        },
                    ),
                    "alpha": (
                        "FLOAT",
                        {
                            "default": 0.0,
                            "min": 0.0,
                            "max": 1000.0,
                            "step": 0.0001,
                            "round": False,
                            "tooltip": "Regulariser, relative to the keep set. 0: the policy's own.",
                        },
                    ),
                    "keep_weight": (
                        "FLOAT",
                        {
                            "default": 1.0,
                            "min": 0.01,
                            "max": 1000.0,
                            "step": 0.1,
                            "tooltip": "Weight of the keep list against the concepts.",
                        },
                    ),
                    "max_rank": (
                        "INT",
                        {
                            "default": 0,
                            "min": 0,
                            "max": 4096,
                            "tooltip": "Upper bound of the rank, and so of the file's size. 0: no bound.",
                        },
                    ),
                },
            },
        )

    def erase(
        self,
        model,
        clip,
        erase,
        keep,
        policy,
        strength,
        kind="auto",
        energy=0.97,
        eta=-1.0,
        alpha=0.0,
        keep_weight=1.0,
        max_rank=0,
    ):
        concepts, kept = wire.concepts_of(erase, keep)
        contexts, kept = domain_of(model, concepts, kept)
        config = ClosedFormConfig(
            policy=policy,
            strength=strength,
            kind=kind,
            energy=energy,
            eta=None if eta < 0 else eta,
            alpha=alpha or None,
            keep_weight=keep_weight,
            max_rank=max_rank or None,
            contexts=contexts,
        )
        with Live(objective=policy) as live:
            result = erase_closed_form(model, clip, concepts, kept, config, live.phase)
            edited = gating.apply(model, result.lora)
        text = reports.closed_form(result.report, result.lora)
        return {"ui": {"trace_report": [text]}, "result": (edited, wire.LoraState(result.lora), text)}
