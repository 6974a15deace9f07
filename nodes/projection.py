"""Closed-Form Concept Projection: TRACE's first stage, and the closed forms of other papers."""

from __future__ import annotations

from ..trace_core.closed_form import ClosedFormConfig
from ..trace_core.closed_form.hardened import LEVELS
from ..trace_core.closed_form.policies import FORMER_NAMES, POLICIES
from ..trace_core.methods import CLOSED_FORMS, Eraser
from ..trace_core.text.kinds import KINDS
from . import reports, widgets, wire
from .live import Live

DEFAULTS = ClosedFormConfig()

TOOLTIPS = {
    **widgets.SHARED_TOOLTIPS,
    "model": "The model to erase from. The node reads the model and does not change it.",
    "clip": "The text encoder of the same model.",
    "policy": f"The closed form. {DEFAULTS.policy} is this pack's own, and the others are published methods "
    "for comparison.",
    "strength": "1 erases and 0 changes nothing. Above 1 overshoots, and below 0 strengthens the concept.",
    "kind": "What the concept is, which selects the prompts. auto decides by name lists and by words such as "
    "style, and the report says how.",
    "energy": "Share of the concept's energy to project out. A lower value changes other pictures less and "
    "erases less. 0 takes 0.97, and 0.8 to 0.6 for people and explicit content.",
    "eta": "-1 steers to something else of the same kind, which the report names, and with people a little "
    "past the neutral prompt. 0 steers to the neutral prompt, and above 0 past that prompt, where a negative "
    "prompt may draw the concept.",
    "alpha": "Regulariser, relative to the keep set. 0 takes the policy's own.",
    "keep_weight": "Weight of the keep list against the concepts. A higher value changes other pictures less "
    "and erases less.",
    "max_rank": "Upper bound of the LoRA's rank, and so of the file's size. 0 sets no bound.",
    "exact": "Leaves the words of the keep list exactly as they are, instead of by weight. Other pictures "
    "may change more. An empty keep list stays by weight.",
    "contrast": "Keeps words inside a name that are things by themselves, such as the van of Van Gogh.",
    "stream": "Text streams to edit. pooled edits CLIP's pooled vector alone, for a name that T5 cannot "
    "spell.",
    "neighbours": "Keeps this many things that are nearest to each concept too, beside the keep list. The "
    "report names them. 0 keeps none.",
    "robust": "Hardens the erasure against text that would bring the concept back, from 1 to 3. Other "
    "pictures change more, and the report says how much. 0 is off.",
}


class ClosedFormProjection:
    ID = "TRACE_ClosedFormProjection"
    TITLE = "Closed-Form Concept Projection"
    CATEGORY = "TRACE"
    SEARCH_ALIASES = [
        *widgets.ALIASES,
        "UCE",
        "MACE",
        "TRCE",
        "SPEED",
        "OCE",
        "RECE",
        "closed form",
        "robust",
        "NSFW",
        "safety",
    ]
    HAS_INTERMEDIATE_OUTPUT = True  # a cached run shows its report again
    DESCRIPTION = (
        "Erases concepts from a model in one closed-form solve. It takes seconds and needs no images and no "
        "training. The result is a small LoRA, and the base model does not change."
    )
    RETURN_TYPES = ("MODEL", wire.LORA, "STRING")
    RETURN_NAMES = ("model", "lora", "report")
    OUTPUT_TOOLTIPS = (
        "The model with the concepts erased.",
        "The erasure, for Save Erasure LoRA, Apply Erasure LoRA, the finetune or the stock LoRA nodes.",
        "Verdict, figures and limits, in Markdown.",
    )
    FUNCTION = "erase"
    ADVANCED = (
        "energy",
        "eta",
        "alpha",
        "keep_weight",
        "max_rank",
        "exact",
        "contrast",
        "stream",
        "neighbours",
        "robust",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return widgets.input_types(
            TOOLTIPS,
            required={
                "model": widgets.socket("MODEL"),
                "clip": widgets.socket("CLIP"),
                "erase": widgets.lines("cat"),
                "keep": widgets.lines(),
                "policy": widgets.choice(POLICIES, DEFAULTS.policy),
                "strength": widgets.number(1.0, -10.0, 10.0, 0.05),
            },
            optional={
                "kind": widgets.choice_or_auto(KINDS),
                "energy": widgets.number(0.0, 0.0, 1.0, 0.01),
                "eta": widgets.number(-1.0, -1.0, 5.0, 0.05),
                "alpha": widgets.number(0.0, 0.0, 1000.0, 0.0001, round=False),
                "keep_weight": widgets.number(1.0, 0.01, 1000.0, 0.1),
                "max_rank": widgets.integer(0, 0, 4096),
                "exact": widgets.switch(DEFAULTS.exact),
                "contrast": widgets.switch(DEFAULTS.contrast),
                "stream": widgets.choice(["all", "pooled"], DEFAULTS.stream),
                "neighbours": widgets.integer(DEFAULTS.neighbours, 0, 64),
                "robust": widgets.integer(DEFAULTS.robust, 0, max(LEVELS)),
            },
            advanced=cls.ADVANCED,
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
        energy=0.0,
        eta=-1.0,
        alpha=0.0,
        keep_weight=1.0,
        max_rank=0,
        exact=False,
        contrast=True,
        stream="all",
        neighbours=DEFAULTS.neighbours,
        robust=DEFAULTS.robust,
    ):
        widgets.check(self, locals())
        concepts, kept = wire.concepts_of(erase, keep)
        policy = FORMER_NAMES.get(policy, policy)
        options = {
            "strength": strength,
            "kind": kind,
            "energy": energy or None,
            "eta": None if eta < 0 else eta,
            "alpha": alpha or None,
            "keep_weight": keep_weight,
            "max_rank": max_rank or None,
            "exact": exact,
            "contrast": contrast,
            "stream": stream,
            "neighbours": neighbours,
            "robust": robust,
        }
        with Live(objective=policy) as live:
            eraser = Eraser(CLOSED_FORMS[policy], kept, closed_form=options)
            erasure = eraser.fit(model, clip, concepts, progress=live.phase)
            edited = erasure.apply(model, start=0.0, end=1.0)
        text = reports.closed_form(erasure.report, erasure.lora)
        return {"ui": {"trace_report": [text]}, "result": (edited, wire.LoraState(erasure.lora), text)}

    @classmethod
    def VALIDATE_INPUTS(cls, policy):
        """Policies by their former names, as older workflows have them, are policies too."""
        known = FORMER_NAMES.get(policy, policy) in POLICIES
        return known or f"policy '{policy}' is unknown; use one of {', '.join(POLICIES)}"
