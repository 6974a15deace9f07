"""Save Erasure LoRA: one safetensors file that the stock LoRA loader reads, described in its metadata."""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath

from ..trace_core.errors import LoraError
from ..trace_core.lora.files import why
from ..trace_core.lora.formats import FORMATS
from . import host, widgets, wire

UNSAFE = re.compile(r"[^\w .+-]+")
LONGEST_NAME = 200
MOST_NUMBERS = 100  #: that other runs may take while a file is made

TOOLTIPS = {
    "lora": "The erasure to save.",
    "name": "Name of the file below output/loras, without an ending: %concepts%, %method%, %year%, %month% "
    "and %day% are filled in, and / makes folders. A number is added, so no file is overwritten.",
    "license": "Licence for the file's metadata, such as CC0-1.0.",
    "form": "Layer names in the file. comfyui is read by ComfyUI and by this pack, kohya by sd-scripts and "
    "WebUI, and diffusers by diffusers. The last two exist for Stable Diffusion 1 and 2, SDXL and FLUX.1.",
    "notes": "Text for the file's metadata, for whoever gets the file.",
}


class SaveErasureLora:
    ID = "TRACE_SaveErasureLora"
    TITLE = "Save Erasure LoRA"
    CATEGORY = "TRACE"
    SEARCH_ALIASES = ["save LoRA", "export LoRA", "erasure LoRA"]
    DESCRIPTION = (
        "Writes an erasure as one small safetensors file into output/loras. Press R, and Apply Erasure LoRA "
        "and the stock LoRA loader list the file. Its metadata name the concepts, the method and the base "
        "model."
    )
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("name",)
    OUTPUT_TOOLTIPS = ("Name of the file, as the LoRA loaders list it.",)
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return widgets.input_types(
            TOOLTIPS,
            required={"lora": widgets.socket(wire.LORA), "name": widgets.line("erased-%concepts%")},
            optional={
                "license": widgets.line(),
                "notes": widgets.lines(),
                "form": widgets.choice(FORMATS, "comfyui"),
            },
        )

    def save(self, lora, name, license="", notes="", form="comfyui"):
        widgets.check(self, locals())
        erasure = wire.erasure_of(lora)
        info = erasure.info()
        entries = info.get("trace.concepts")
        entries = entries if isinstance(entries, list) else []
        concepts = [str(entry[0]) for entry in entries if isinstance(entry, list) and entry]
        pattern = self.pattern(name, concepts, str(info.get("trace.method", "lora")))
        folder = host.output_loras()
        extra = {"modelspec.license": license.strip(), "modelspec.description": notes.strip()}
        path = self.written(erasure, folder, pattern, {k: v for k, v in extra.items() if v}, form)
        listed = path.relative_to(folder).as_posix()
        return {"ui": {"text": [listed], "trace_metadata": [info | extra]}, "result": (listed,)}

    @staticmethod
    def written(erasure, folder: Path, pattern: str, extra: dict[str, str], form: str) -> Path:
        """The path of the new file, under the first number that is free.

        Raises:
            LoraError: if the file cannot be written.
        """
        for _ in range(MOST_NUMBERS):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                path = host.numbered_path(folder, pattern, ".safetensors")
            except OSError as error:
                raise LoraError(f"cannot write into '{folder}': {why(error)}") from error
            try:
                return erasure.save(path, extra, form, replace=False)
            except FileExistsError:  # another run took the number in the meantime
                continue
        raise LoraError(f"other programs take every number of '{pattern[:80]}'; choose another name")

    @staticmethod
    def pattern(name: str, concepts: list[str], method: str) -> str:
        """The name with its fields filled in: a path that stays below the output folder.

        Raises:
            LoraError: naming what leads out of the folder.
        """
        words = "+".join(UNSAFE.sub("", c).strip(" .").replace(" ", "-")[:24] for c in concepts[:4]) or "lora"
        name = name.strip().removesuffix(".safetensors")
        filled = (
            name.replace("%concepts%", words).replace("%method%", UNSAFE.sub("", method)).replace("\\", "/")
        )
        parts = filled.split("/")
        if PureWindowsPath(filled).drive or any(part.strip(" .") == "" for part in parts):
            raise LoraError(
                f"the name '{name[:80]}' leads out of output/loras or is empty. Write `folder/name` without "
                ". and .."
            )
        if wrong := re.search(r'[\x00-\x1f<>:"|?*]', filled):
            raise LoraError(f"the name '{name[:80]}' holds {wrong[0]!r}: leave that character out")
        if len(filled) > LONGEST_NAME:
            raise LoraError(f"the name has {len(filled)} characters, and {LONGEST_NAME} are allowed")
        return filled
