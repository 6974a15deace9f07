"""Fuse Erasure LoRAs: many erasures in one file, in closed form, without disturbing each other."""

from __future__ import annotations

from ..trace_core.errors import LoraError
from ..trace_core.lora import ErasureLora, gating
from ..trace_core.lora.fusion import FusionConfig, fuse, parse_strengths
from ..trace_core.text.grammar import parse_keep
from . import host, reports, widgets, wire
from .family import domain_of
from .finetune import refuse_doubled
from .live import Live

MODES = {"fuse": "fuse", "naive sum": "sum", "add to the first": "add"}
WIRES = [f"lora_{i}" for i in range(1, 9)]
DEFAULTS = FusionConfig()

TOOLTIPS = {
    "model": "The model that the erasures were made on, without them. The node does not change the model.",
    "clip": "The text encoder of the same model. It encodes the prompts that the erasures are fused on.",
    "keep": "What must not change, one a line. An empty list keeps what the erasures kept, less what is now "
    "erased, or all that a demo model knows.",
    "mode": "fuse is MACE's closed form. naive sum adds the LoRAs up, as several LoRA loaders do. "
    "add to the first leaves the first LoRA as it is and fits the others to it.",
    **dict.fromkeys(WIRES, "An erasure made on this model. A fused erasure keeps its parts."),
    "files": "Further files in models/loras or output/loras, one a line. Names are those of the LoRA "
    "loaders' list.",
    "strengths": "Strength of single concepts, one a line, such as `cat = 0.5`. 1 is as made, 0 does not "
    "erase the concept, and both can be changed back later.",
    "integration": "How little an erasure acts on the others' prompts. 1 is MACE's fusion, and a higher "
    "value erases less.",
    "keep_weight": "Weight of a kept thing against a concept. A higher value changes other pictures less and "
    "erases less, and 0 takes no keep list.",
    "max_rank": "Upper bound of the LoRA's rank, and so of the file's size. 0 sets no bound, and with a "
    "bound no single concept can be weakened or taken out later.",
}


class FuseErasureLoras:
    ID = "TRACE_FuseErasureLoras"
    TITLE = "Fuse Erasure LoRAs"
    CATEGORY = "TRACE"
    SEARCH_ALIASES = [
        "MACE",
        "merge LoRAs",
        "combine LoRAs",
        "multi-concept",
        "many concepts",
        *widgets.ALIASES,
    ]
    HAS_INTERMEDIATE_OUTPUT = True  # a cached run shows its report again
    DESCRIPTION = (
        "Makes one erasure of many, in closed form and in seconds. On a concept's prompts the result does "
        "what that concept's own LoRA does, and the other LoRAs add nothing there. Every concept can later "
        "be weakened or taken out again."
    )
    RETURN_TYPES = ("MODEL", wire.LORA, "STRING")
    RETURN_NAMES = ("model", "lora", "report")
    OUTPUT_TOOLTIPS = (
        "The model with all the concepts erased.",
        "The fused erasure, for Save Erasure LoRA, Apply Erasure LoRA, the stock LoRA nodes or another "
        "fusion.",
        "Verdict, figures beside those of the plain sum, and limits, in Markdown.",
    )
    FUNCTION = "fuse"
    ADVANCED = ("integration", "keep_weight", "max_rank")

    @classmethod
    def INPUT_TYPES(cls):
        return widgets.input_types(
            TOOLTIPS,
            required={
                "model": widgets.socket("MODEL"),
                "clip": widgets.socket("CLIP"),
                "keep": widgets.lines(),
                "mode": widgets.choice(MODES, "fuse"),
            },
            optional={
                **{name: widgets.socket(wire.LORA) for name in WIRES},
                "files": widgets.lines(),
                "strengths": widgets.lines(),
                "integration": widgets.number(DEFAULTS.integration, 0.0, 1000.0, 0.1),
                "keep_weight": widgets.number(DEFAULTS.keep_weight, 0.0, 1000.0, 0.05),
                "max_rank": widgets.integer(0, 0, 4096),
            },
            advanced=cls.ADVANCED,
        )

    @classmethod
    def VALIDATE_INPUTS(cls, files=""):
        try:
            for name in cls.names(files or ""):
                host.lora_path(name)
        except LoraError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, files="", **_):
        """Changes when one of the files was overwritten."""
        states = [host.lora_path(name).stat() for name in cls.names(files or "")]
        return " ".join(f"{s.st_mtime_ns} {s.st_size}" for s in states)

    @staticmethod
    def names(files: str) -> list[str]:
        """The file names of the widget, one a line; ``#`` before a name leaves it out."""
        lines = [line.strip() for line in files.splitlines()]
        return [line for line in lines if line and not line.startswith("#")]

    def fuse(
        self,
        model,
        clip,
        keep,
        mode,
        lora_1=None,
        lora_2=None,
        lora_3=None,
        lora_4=None,
        lora_5=None,
        lora_6=None,
        lora_7=None,
        lora_8=None,
        files="",
        strengths="",
        integration=1.0,
        keep_weight=DEFAULTS.keep_weight,
        max_rank=0,
    ):
        widgets.check(self, locals())
        connected = zip(WIRES, (lora_1, lora_2, lora_3, lora_4, lora_5, lora_6, lora_7, lora_8))
        erasures = {name: self.erasure(name, lora) for name, lora in connected if lora is not None}
        erasures |= {name: ErasureLora.load(host.lora_path(name)) for name in self.names(files)}
        if not erasures:
            raise LoraError("nothing to fuse: connect the LoRA outputs of the erasures, or name files")
        for lora in erasures.values():
            refuse_doubled(model, lora)
        kept, strength_of = parse_keep(keep, "keep"), parse_strengths(strengths, "strengths")
        concepts = [c for lora in erasures.values() for part in lora.parts() for c in part.concepts]
        contexts, kept = domain_of(model, concepts, kept)
        config = FusionConfig(
            MODES[mode], integration, keep_weight, max_rank=max_rank or None, contexts=contexts
        )
        with Live(objective=mode) as live:
            result = fuse(
                model, clip, list(erasures.values()), kept, config, strength_of, live.phase, list(erasures)
            )
            edited = gating.apply(model, result.lora, 1.0, None, None)
        text = reports.fusion(result.report, result.lora)
        return {"ui": {"trace_report": [text]}, "result": (edited, wire.LoraState(result.lora), text)}

    @staticmethod
    def erasure(name: str, state) -> ErasureLora:
        """The erasure on the wire of an input.

        Raises:
            LoraError: naming the input.
        """
        try:
            return wire.erasure_of(state)
        except LoraError as error:
            raise LoraError(f"{name}: {error}") from error
