"""Apply Erasure LoRA: an erasure on a model, whole or within a window of the sampling schedule."""

from __future__ import annotations

from ..trace_core.errors import LoraError
from ..trace_core.lora import ErasureLora, gating
from . import host, wire

NO_FILE = "none"


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
        *wire.ALIASES,
    ]
    # what the file says of itself is shown again when the run comes from the cache
    HAS_INTERMEDIATE_OUTPUT = True
    DESCRIPTION = (
        "Puts an erasure on a model, from a file or from a wire. Within a window every sampling step "
        "outside it is the base model's to the last bit. Several stack, each with its own strength and "
        "window."
    )
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model with the erasure. The model that came in is unchanged.",)
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "A model of the family that the erasure was made for."}),
                "lora_file": (
                    [NO_FILE, *host.lora_names()],
                    {
                        "default": NO_FILE,
                        "tooltip": "A file in models/loras or "
                        "output/loras; none if a LoRA is connected. Press R to read the list again.",
                    },
                ),
                "strength": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": -10.0,
                        "max": 10.0,
                        "step": 0.05,
                        "tooltip": "0 is exactly the base model, 1 the erasure as it was made, more is "
                        "stronger.",
                    },
                ),
                "start_percent": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.01,
                        "tooltip": "From where in the "
                        "sampling schedule: 0 its beginning. 0 and 1 together take the file's own window.",
                    },
                ),
                "end_percent": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.01,
                        "tooltip": "Up to where in the sampling schedule: 1 is its end.",
                    },
                ),
            },
            "optional": {
                "lora": (
                    wire.LORA,
                    {
                        "tooltip": "An erasure from another node, instead of a file. What the stock Train "
                        "LoRA node "
                        "made works too; in a window only if it has linear layers alone."
                    },
                ),
                "file_name": (
                    "STRING",
                    {
                        "forceInput": True,
                        "tooltip": "The name that Save Erasure LoRA gives, instead of lora_file: "
                        "the file is read back from the disk in the same run that wrote it.",
                    },
                ),
            },
        }

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
        """Apply again when the file was written anew under the same name."""
        if lora_file == NO_FILE:
            return ""
        state = host.lora_path(lora_file).stat()
        return f"{state.st_mtime_ns} {state.st_size}"

    def apply(self, model, lora_file, strength, start_percent, end_percent, lora=None, file_name=None):
        chosen = [f"'{lora_file}' is chosen"] if lora_file != NO_FILE else []
        chosen += [
            f"{wire} is connected"
            for wire, value in {"lora": lora, "file_name": file_name}.items()
            if value is not None
        ]
        if not chosen:
            raise LoraError("no LoRA: choose a file, or connect one")
        if len(chosen) > 1:
            raise LoraError(
                f"more than one LoRA: {', '.join(chosen)}; set lora_file to none, or take a wire off"
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
                    f"{error}; with start_percent 0 and end_percent 1 it can be applied"
                ) from error
            found = None if strength == 0 else host.patched_by_stock_loader(model, lora, strength)
            return self._answer(found or model.clone(), {})
        window = (None, None) if whole else (start_percent, end_percent)
        applied = gating.apply(model, erasure, strength, *window)
        rounded = [e["rounding"] for e in gating.erasures_on(applied)[-1:] if strength and "rounding" in e]
        return self._answer(applied, erasure.info() | ({"rounding": rounded[0]} if rounded else {}))

    @staticmethod
    def _answer(model, info: dict):
        return {"ui": {"trace_metadata": [info]}, "result": (model,)}
