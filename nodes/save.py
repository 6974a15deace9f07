"""Save Erasure LoRA: one safetensors file that the stock LoRA loader reads, with what it is in its
metadata.
"""

from __future__ import annotations

import re
from pathlib import PureWindowsPath

from ..trace_core.errors import LoraError
from . import host, wire

UNSAFE = re.compile(r"[^\w .+-]+")


class SaveErasureLora:
    ID = "TRACE_SaveErasureLora"
    TITLE = "Save Erasure LoRA"
    CATEGORY = "TRACE"
    SEARCH_ALIASES = ["save LoRA", "export LoRA", "erasure LoRA"]
    DESCRIPTION = (
        "Writes an erasure as one small safetensors file into output/loras, where Apply Erasure LoRA and "
        "the stock LoRA loader find it after R. What was erased, how, and from which base model stands in "
        "its metadata."
    )
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("name",)
    OUTPUT_TOOLTIPS = ("The file's name, as the LoRA loaders list it.",)
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "lora": (wire.LORA, {"tooltip": "The erasure to save."}),
                "name": (
                    "STRING",
                    {
                        "default": "erased-%concepts%",
                        "tooltip": "Name of the file below output/loras, without an "
                        "ending; folders with /. %concepts% is what was erased, %method% how, %year%, "
                        "%month% and %day% the date. A "
                        "number is added, nothing is overwritten.",
                    },
                ),
            },
            "optional": {
                "license": (
                    "STRING",
                    {"default": "", "tooltip": "Licence of the file, such as CC0-1.0, for its metadata."},
                ),
                "notes": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": "",
                        "tooltip": "Whatever others should know; it is stored in the file's metadata.",
                    },
                ),
            },
        }

    def save(self, lora, name, license="", notes=""):
        erasure = wire.erasure_of(lora)
        info = erasure.info()
        found = info.get("trace.concepts")
        concepts = (
            [str(entry[0]) for entry in found if isinstance(entry, list) and entry]
            if isinstance(found, list)
            else []
        )
        pattern = self.pattern(name, concepts, str(info.get("trace.method", "lora")))
        folder = host.output_loras()
        folder.mkdir(parents=True, exist_ok=True)
        extra = {"modelspec.license": license.strip(), "modelspec.description": notes.strip()}
        path = erasure.save(
            host.numbered_path(folder, pattern, ".safetensors"), {k: v for k, v in extra.items() if v}
        )
        shown = path.relative_to(folder).as_posix()
        return {"ui": {"text": [shown], "trace_metadata": [info | extra]}, "result": (shown,)}

    @staticmethod
    def pattern(name: str, concepts: list[str], method: str) -> str:
        """The name with its fields filled in, a path that stays below its folder.

        Raises:
            LoraError: naming what leads out of it.
        """
        words = "+".join(UNSAFE.sub("", c).strip(" .").replace(" ", "-")[:24] for c in concepts[:4]) or "lora"
        name = name.strip().removesuffix(".safetensors")
        filled = (
            name.replace("%concepts%", words).replace("%method%", UNSAFE.sub("", method)).replace("\\", "/")
        )
        parts = filled.split("/")
        if PureWindowsPath(filled).drive or any(part.strip(" .") == "" for part in parts):
            raise LoraError(
                f"the name '{name[:80]}' leads out of output/loras or is empty; write `folder/name` without "
                ". and .."
            )
        wrong = re.search(r'[\x00-\x1f<>:"|?*]', filled)
        if wrong or len(filled) > 200:
            raise LoraError(
                f"the name '{name[:80]}' holds {wrong[0]!r}; leave it out"
                if wrong
                else f"the name has {len(filled)} characters; 200 are the most"
            )
        return filled
