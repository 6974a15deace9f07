"""Apply Erasure LoRA: an erasure on a model, for the whole sampling or within a window of it."""

from __future__ import annotations

from ..trace_core.errors import LoraError
from ..trace_core.lora import ErasureLora, gating
from . import host, widgets, wire

NO_FILE = "none"

TOOLTIPS = {
    "model": "A model of the family that the erasure was made for.",
    "lora_file": "A file in models/loras or output/loras, or none if a LoRA is connected. Press R to read "
    "the list again.",
    "strength": "0 is exactly the base model, 1 is the erasure as made, and more is stronger.",
    "start_percent": "Where in the sampling the erasure begins to act: 0 is the beginning. Start 0 with end "
    "1 takes the file's own window.",
    "end_percent": "Where in the sampling the erasure ends: 1 is the finished picture.",
    "lora": "An erasure from another node, instead of a file. A LoRA of the stock Train LoRA node works too, "
    "in a window only if all its layers are linear.",
    "file_name": "The name that Save Erasure LoRA gives, instead of lora_file. The file is read back from "
    "the disk in the run that wrote it.",
}


class ApplyErasureLora:
    ID = "TRACE_ApplyErasureLora"
    TITLE = "Apply Erasure LoRA"
    CATEGORY = "TRACE"
    SEARCH_ALIASES = [
        "load LoRA",
        "LoRA loader",
        "erasure LoRA",
        "LoRA timestep range",
        "LoRA window",
        *widgets.ALIASES,
    ]
    HAS_INTERMEDIATE_OUTPUT = True  # a cached run shows the file's metadata again
    DESCRIPTION = (
        "Puts an erasure on a model, from a file or from a wire. Sampling steps outside the window are the "
        "base model's to the last bit. Erasures stack, each with its own strength and window."
    )
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model with the erasure. The model that came in is unchanged.",)
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls):
        return widgets.input_types(
            TOOLTIPS,
            required={
                "model": widgets.socket("MODEL"),
                "lora_file": widgets.choice([NO_FILE, *host.lora_names()], NO_FILE),
                "strength": widgets.number(1.0, -10.0, 10.0, 0.05),
                "start_percent": widgets.number(0.0, 0.0, 1.0, 0.01),
                "end_percent": widgets.number(1.0, 0.0, 1.0, 0.01),
            },
            optional={
                "lora": widgets.socket(wire.LORA),
                "file_name": widgets.socket("STRING", forceInput=True),
            },
        )

    @classmethod
    def VALIDATE_INPUTS(cls, lora_file):
        try:
            if lora_file != NO_FILE:
                host.lora_path(lora_file)
        except LoraError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, lora_file=NO_FILE, **_):
        """Changes when the file was overwritten."""
        if lora_file == NO_FILE:
            return ""
        state = host.lora_path(lora_file).stat()
        return f"{state.st_mtime_ns} {state.st_size}"

    def apply(self, model, lora_file, strength, start_percent, end_percent, lora=None, file_name=None):
        widgets.check(self, locals())
        chosen = [f"'{lora_file}' is chosen"] if lora_file != NO_FILE else []
        chosen += [
            f"{name} is connected"
            for name, value in {"lora": lora, "file_name": file_name}.items()
            if value is not None
        ]
        if not chosen:
            raise LoraError("no LoRA: choose a file or connect a LoRA")
        if len(chosen) > 1:
            raise LoraError(
                f"more than one LoRA: {', '.join(chosen)}. Set lora_file to none, or disconnect a wire"
            )
        lora_file = lora_file if file_name is None else file_name
        whole = (start_percent, end_percent) == (0.0, 1.0)
        try:
            erasure = ErasureLora.load(host.lora_path(lora_file)) if lora is None else wire.erasure_of(lora)
        except LoraError as error:
            if lora is None or not isinstance(lora, dict) or not lora:
                raise
            if not whole:
                raise LoraError(
                    f"{error}. This LoRA can be applied with start_percent 0 and end_percent 1"
                ) from error
            patched = None if strength == 0 else host.patched_by_stock_loader(model, lora, strength)
            return self._answer(patched or model.clone(), {})
        window = (None, None) if whole else (start_percent, end_percent)
        applied = gating.apply(model, erasure, strength, *window)
        last = gating.erasures_on(applied)[-1:] if strength else ()
        rounding = {"rounding": e["rounding"] for e in last if "rounding" in e}
        return self._answer(applied, erasure.info() | rounding)

    @staticmethod
    def _answer(model, info: dict):
        return {"ui": {"trace_metadata": [info]}, "result": (model,)}
