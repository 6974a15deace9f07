"""Fuse Erasure LoRAs: many erasures in one file, in closed form, so that they do not disturb each other."""

from __future__ import annotations

from ..trace_core.errors import LoraError
from ..trace_core.lora import ErasureLora, gating
from ..trace_core.lora.fusion import FusionConfig, fuse, parse_strengths
from ..trace_core.text.grammar import parse_keep
from . import host, reports, wire
from .family import domain_of
from .finetune import refuse_doubled
from .live import Live

MODES = {"fuse": "fuse", "naive sum": "sum"}
WIRES = 8
DEFAULTS = FusionConfig()


class FuseErasureLoras:
    ID = "TRACE_FuseErasureLoras"
    TITLE = "Fuse Erasure LoRAs"
    CATEGORY = "TRACE"
    SEARCH_ALIASES = ["MACE", "merge LoRAs", "combine LoRAs", "multi-concept", "many concepts", *wire.ALIASES]
    HAS_INTERMEDIATE_OUTPUT = True  # its report is shown again when the run comes from the cache
    DESCRIPTION = (
        "Makes one erasure of many, in closed form and in seconds: on the prompts of every concept it does "
        "what that concept's own LoRA does, without what the others would add there. Every concept can "
        "later be graded or taken out again."
    )
    RETURN_TYPES = ("MODEL", wire.LORA, "STRING")
    RETURN_NAMES = ("model", "lora", "report")
    OUTPUT_TOOLTIPS = (
        "The model with all the concepts erased.",
        "The fused erasure: for Save Erasure LoRA, Apply Erasure LoRA, the stock LoRA nodes, or another "
        "fusion.",
        "What was measured, in Markdown: verdict, figures beside those of the plain sum, limits.",
    )
    FUNCTION = "fuse"
    ADVANCED = ("integration", "keep_weight", "max_rank")

    @classmethod
    def INPUT_TYPES(cls):
        places = {
            f"lora_{i}": (
                wire.LORA,
                {
                    "tooltip": f"Erasure number {i}, made on this model; one that was fused before keeps "
                    "its parts."
                },
            )
            for i in range(1, WIRES + 1)
        }
        return wire.with_advanced(
            cls.ADVANCED,
            {
                "required": {
                    "model": (
                        "MODEL",
                        {
                            "tooltip": "The model that the erasures were made on, without them. It is read, "
                            "never written."
                        },
                    ),
                    "clip": (
                        "CLIP",
                        {
                            "tooltip": "The text encoder of the same model: it makes the rows that the "
                            "erasures are fused on."
                        },
                    ),
                    "keep": (
                        "STRING",
                        {
                            "multiline": True,
                            "default": "",
                            "tooltip": "What must not change, one a line. Empty: what the "
                            "erasures themselves kept, less what is now erased (on a demo model all that it "
                            "knows).",
                        },
                    ),
                    "mode": (
                        list(MODES),
                        {
                            "default": "fuse",
                            "tooltip": "fuse: MACE's closed form. naive sum: what several LoRA loaders "
                            "do, for comparison.",
                        },
                    ),
                },
                "optional": {
                    **places,
                    "files": (
                        "STRING",
                        {
                            "multiline": True,
                            "default": "",
                            "tooltip": "Files in models/loras or output/loras to fuse as "
                            "well, one a line, named as in the LoRA loaders' list: for more than eight.",
                        },
                    ),
                    "strengths": (
                        "STRING",
                        {
                            "multiline": True,
                            "default": "",
                            "tooltip": "Strength of single concepts, one a line, such "
                            "as `cat = 0.5`. 1 is as it was made, 0 leaves the concept alone; it can be "
                            "changed back later.",
                        },
                    ),
                    "integration": (
                        "FLOAT",
                        {
                            "default": DEFAULTS.integration,
                            "min": 0.0,
                            "max": 1000.0,
                            "step": 0.1,
                            "tooltip": "How silent "
                            "an erasure shall be on the others' prompts. 1 is MACE's fusion; more disturbs "
                            "less and erases less.",
                        },
                    ),
                    "keep_weight": (
                        "FLOAT",
                        {
                            "default": DEFAULTS.keep_weight,
                            "min": 0.0,
                            "max": 1000.0,
                            "step": 0.05,
                            "tooltip": "Weight of "
                            "a kept thing against a concept. Higher drifts less and erases less; 0: no keep "
                            "list.",
                        },
                    ),
                    "max_rank": (
                        "INT",
                        {
                            "default": 0,
                            "min": 0,
                            "max": 4096,
                            "tooltip": "Upper bound of the rank, and so of the file's "
                            "size. 0: no bound. With one, the concepts can no longer be graded or taken out "
                            "one by one.",
                        },
                    ),
                },
            },
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
        """Fuse again when a file was written anew under the same name."""
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
        wires = (lora_1, lora_2, lora_3, lora_4, lora_5, lora_6, lora_7, lora_8)
        found = {
            f"lora_{i}": self.erasure(f"lora_{i}", lora)
            for i, lora in enumerate(wires, start=1)
            if lora is not None
        }
        found |= {name: ErasureLora.load(host.lora_path(name)) for name in self.names(files)}
        if not found:
            raise LoraError("nothing to fuse: connect the LoRA outputs of the erasures, or name files")
        for lora in found.values():
            refuse_doubled(model, lora)
        kept, graded = parse_keep(keep, "keep"), parse_strengths(strengths, "strengths")
        concepts = [c for lora in found.values() for part in lora.parts() for c in part.concepts]
        contexts, kept = domain_of(model, concepts, kept)
        config = FusionConfig(
            MODES[mode], integration, keep_weight, max_rank=max_rank or None, contexts=contexts
        )
        with Live(objective=mode) as live:
            result = fuse(model, clip, list(found.values()), kept, config, graded, live.phase, list(found))
            edited = gating.apply(model, result.lora, 1.0, None, None)
        text = reports.fusion(result.report, result.lora)
        return {"ui": {"trace_report": [text]}, "result": (edited, wire.LoraState(result.lora), text)}

    @staticmethod
    def erasure(name: str, state) -> ErasureLora:
        """The erasure on a wire.

        Raises:
            LoraError: naming the wire.
        """
        try:
            return wire.erasure_of(state)
        except LoraError as error:
            raise LoraError(f"{name}: {error}") from error
