"""Verify Erasure: a verdict on an erasure, for any model, and a page to put beside its file."""

from __future__ import annotations

import numpy as np
import torch

from ..trace_core.backbones.sampling import check_vae
from ..trace_core.errors import LoraError, ModelError, enough_memory
from ..trace_core.evaluate.judges.comfy import ComfyClip
from ..trace_core.evaluate.verify import Effort, verify
from ..trace_core.evaluate.verify.card import with_card
from ..trace_core.evaluate.verify.markdown import markdown
from ..trace_core.evaluate.verify.page import page
from ..trace_core.evaluate.verify.prompts import parse_synonyms
from ..trace_core.lora import ErasureLora
from ..trace_core.text.grammar import parse_concepts, parse_keep
from . import host, widgets, wire
from .apply import NO_FILE, ApplyErasureLora
from .family import picture_size, sampler_config
from .live import Live, save_temporary

DEFAULTS = Effort()

TOOLTIPS = {
    "model": "The model without the erasure, from the loader.",
    "clip": "The text encoder of the model.",
    "lora_file": "The erasure: a file in models/loras or output/loras, or none if a LoRA is connected.",
    "samples": "Pictures of each concept, before and after. More of them make the verdict surer.",
    "kept": "Number of things that must stay and are drawn. Near neighbours of the concepts come first.",
    "seed": "The first seed of the pictures. The same seed gives the same verdict.",
    "lora": "An erasure from another node, instead of a file.",
    "vae": "The VAE of the model. With it the page shows pictures before and after.",
    "erase": "What the erasure should erase, one a line. Nothing takes the concepts that its file names.",
    "keep": "What must stay, one a line. Nothing takes a hundred everyday things, or all that a demo model "
    "knows.",
    "synonyms": "Other names that the erasure should cover: `kitty, feline` of a single concept, or `cat: "
    "kitty, feline`, one concept a line.",
    "strength": "Strength of the erasure. 1 is the erasure as made.",
    "attacks": "Also try RECE's rows and mixed prompts. The verdict does not depend on them.",
    "steps": "Sampling steps. 0 takes 12 on a demo model, else 20.",
    "cfg": "Classifier-free guidance. -1 takes the model family's own: 3 for demo-sd, 7 for SD, 1 for FLUX.",
    "kept_samples": "Pictures of each thing that must stay, before and after.",
    "guidance": "FLUX's guidance embedding. -1 takes 3.",
    "sampler_name": "The sampler. auto takes dpmpp_2m, and euler for FLUX.",
    "scheduler": "The noise schedule. auto takes karras, and simple for FLUX.",
    "width": "Width in pixels. 0 takes 64 on a demo model, 512 for SD 1 and 2, else 1024.",
    "height": "Height in pixels. 0 takes 64 on a demo model, 512 for SD 1 and 2, else 1024.",
    "clip_vision": "A CLIP ViT-L, ViT-H or bigG that looks at the pictures too. It needs the vae.",
    "judge_clip": "The text encoder that was trained with the clip_vision. Without it clip is taken, which "
    "is right on FLUX and SD 3 (ViT-L), SD 2 (ViT-H) and SDXL (bigG). For SD 1.x load clip_l.safetensors.",
}


class VerifyErasure:
    ID = "TRACE_VerifyErasure"
    TITLE = "Verify Erasure"
    CATEGORY = "TRACE"
    SEARCH_ALIASES = ["verdict", "check erasure", "test erasure", "model card", "evaluate", "concept erasure"]
    DESCRIPTION = (
        "Says PASS, WARN or FAIL of an erasure, on any model. The unerased model itself says what the erased "
        "model's pictures show: whether the concept is gone, in whatever words it is asked for, and whether "
        "everything else is still there."
    )
    RETURN_TYPES = ("STRING", "BOOLEAN", "STRING", "IMAGE", wire.LORA)
    RETURN_NAMES = ("verdict", "passed", "report", "page", "lora")
    OUTPUT_TOOLTIPS = (
        "PASS, WARN or FAIL.",
        "Whether the verdict is PASS.",
        "Verdict, figures and limits, in Markdown.",
        "One page to put beside the file: the verdict, the schedule, and pictures if a VAE is connected.",
        "The erasure with the verdict in its metadata, for Save Erasure LoRA.",
    )
    FUNCTION = "verify"
    ADVANCED = (
        "kept", "attacks", "steps", "cfg", "kept_samples", "guidance", "sampler_name", "scheduler",
        "width", "height",
    )  # fmt: skip
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return widgets.input_types(
            TOOLTIPS,
            required={
                "model": widgets.socket("MODEL"),
                "clip": widgets.socket("CLIP"),
                "lora_file": widgets.choice([NO_FILE, *host.lora_names()], NO_FILE),
                "samples": widgets.integer(DEFAULTS.samples, 1, 256),
                "kept": widgets.integer(DEFAULTS.kept, 1, 256),
                "seed": widgets.seed(),
            },
            optional={
                "lora": widgets.socket(wire.LORA),
                "vae": widgets.socket("VAE"),
                "erase": widgets.lines(),
                "keep": widgets.lines(),
                "synonyms": widgets.lines(),
                "strength": widgets.number(1.0, -10.0, 10.0, 0.05),
                "attacks": widgets.switch(DEFAULTS.attacks),
                "steps": widgets.integer(0, 0, 1000),
                "cfg": widgets.number(-1.0, -1.0, 100.0, 0.1),
                "kept_samples": widgets.integer(DEFAULTS.kept_samples, 1, 64),
                "guidance": widgets.number(-1.0, -1.0, 100.0, 0.1),
                "sampler_name": widgets.choice_or_auto(host.sampler_names()),
                "scheduler": widgets.choice_or_auto(host.scheduler_names()),
                "width": widgets.side(),
                "height": widgets.side(),
                "clip_vision": widgets.socket("CLIP_VISION"),
                "judge_clip": widgets.socket("CLIP"),
            },
            advanced=cls.ADVANCED,
        )

    @classmethod
    def VALIDATE_INPUTS(cls, lora_file):
        return ApplyErasureLora.VALIDATE_INPUTS(lora_file)

    @classmethod
    def IS_CHANGED(cls, lora_file=NO_FILE, **_):
        """Changes when the file was overwritten."""
        return ApplyErasureLora.IS_CHANGED(lora_file)

    def verify(
        self,
        model,
        clip,
        lora_file,
        samples,
        kept,
        seed,
        lora=None,
        vae=None,
        erase="",
        keep="",
        synonyms="",
        strength=1.0,
        attacks=DEFAULTS.attacks,
        steps=0,
        cfg=-1.0,
        kept_samples=DEFAULTS.kept_samples,
        guidance=-1.0,
        sampler_name="auto",
        scheduler="auto",
        width=0,
        height=0,
        clip_vision=None,
        judge_clip=None,
    ):
        widgets.check(self, locals())
        if vae is not None:
            check_vae(vae)
        judge = judge_of(clip_vision, judge_clip, clip, vae)
        erasure = chosen(lora_file, lora)
        concepts = parse_concepts(erase, "erase") if erase.strip() else []
        named = parse_synonyms(
            synonyms.splitlines(), concepts or [c for part in erasure.parts() for c in part.concepts]
        )
        config = sampler_config(
            model,
            picture_size(model, width, height),
            steps=steps,
            cfg=cfg,
            guidance=guidance,
            sampler=sampler_name,
            scheduler=scheduler,
        )
        effort = Effort(samples, kept, kept_samples, attacks=attacks)
        kept_names = parse_keep(keep, "keep")
        asked = (erasure, concepts, kept_names, named, vae, config, effort, seed, strength)
        with (
            enough_memory("verifying", "take a smaller width and height, or close other programs"),
            Live() as live,
        ):
            found = verify(model, clip, *asked, live.phase, judge)
        text, sheet = markdown(found), page(found)
        image = torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)[None]
        shown = {"images": [save_temporary(sheet)], "trace_report": [text]}
        state = wire.LoraState(with_card(erasure, found))
        return {"ui": shown, "result": (found.status, found.passed, text, image, state)}


def judge_of(clip_vision, judge_clip, clip, vae) -> ComfyClip | None:
    """The CLIP that looks at the pictures; None without a clip_vision.

    Raises:
        ModelError, ConceptError: if a part is missing, or the two sides do not belong together.
    """
    if clip_vision is None:
        if judge_clip is not None:
            raise ModelError("judge_clip is connected without a clip_vision; connect both, or none")
        return None
    if vae is None:
        raise ModelError("clip_vision looks at pictures; connect the vae as well")
    return ComfyClip(clip_vision, clip if judge_clip is None else judge_clip)


def chosen(lora_file: str, lora) -> ErasureLora:
    """The erasure of the file or of the wire.

    Raises:
        LoraError: if there is none, or both.
    """
    if (lora is None) == (lora_file == NO_FILE):
        raise LoraError(
            "no LoRA: choose a file or connect a LoRA"
            if lora is None
            else f"more than one LoRA: '{lora_file}' is chosen and lora is connected. Set lora_file to none, "
            "or disconnect the wire"
        )
    return ErasureLora.load(host.lora_path(lora_file)) if lora is None else wire.erasure_of(lora)
