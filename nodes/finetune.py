"""TRACE Late-Stage Finetune: a LoRA trained on the model's own sampling trajectories, late in the
schedule.
"""

from __future__ import annotations

import torch
from PIL import Image

from ..trace_core.backbones.base import SCOPES
from ..trace_core.errors import LoraError
from ..trace_core.evaluate.grid import to_image
from ..trace_core.finetune import finetune as run
from ..trace_core.finetune.objectives import OBJECTIVES
from ..trace_core.finetune.options import LEARNING_RATE, PRESETS, FinetuneConfig
from ..trace_core.lora import gating
from ..trace_core.text.kinds import KINDS
from . import reports, wire
from .family import demo_name, domain_of, finetune_options
from .live import Live

DEFAULTS = FinetuneConfig()
SIDE = 256  #: pixels of a preview's picture


class LateStageFinetune:
    ID = "TRACE_LateStageFinetune"
    TITLE = "TRACE Late-Stage Finetune"
    CATEGORY = "TRACE"
    SEARCH_ALIASES = [
        *wire.ALIASES,
        "ESD",
        "ANT",
        "MACE",
        "TRCE",
        "train LoRA",
        "fine-tune",
        "negative guidance",
    ]
    HAS_INTERMEDIATE_OUTPUT = True  # its panel is filled when the run comes from the cache
    DESCRIPTION = (
        "Trains a small LoRA so that the late part of the sampling no longer draws the concepts, without "
        "images. Connect the projection's LoRA to join both stages into one file. The base model stays as "
        "it is, also after cancel."
    )
    RETURN_TYPES = ("MODEL", wire.LORA, wire.LOSSES, "STRING")
    RETURN_NAMES = ("model", "lora", "loss_map", "report")
    OUTPUT_TOOLTIPS = (
        "The model with the concepts erased.",
        "The erasure; with a LoRA connected, both joined into one.",
        "Losses by step, for the stock Plot Loss Graph.",
        "What was trained and how it went, in Markdown.",
    )
    FUNCTION = "train"
    ADVANCED = tuple(
        "window window_start window_end steps rank lr eta width height checkpointing scope saliency".split()
    )

    @classmethod
    def INPUT_TYPES(cls):
        return wire.with_advanced(
            cls.ADVANCED,
            {
                "required": {
                    "model": (
                        "MODEL",
                        {"tooltip": "The base model, not the projection's: its LoRA goes into lora."},
                    ),
                    "clip": ("CLIP", {"tooltip": "The text encoder of the same model."}),
                    "erase": wire.ERASE,
                    "keep": wire.KEEP,
                    "objective": (
                        list(OBJECTIVES),
                        {
                            "default": "trace",
                            "tooltip": "The loss: trace is this pack's; mace, ant, "
                            "trce and esd are the published ones, for comparison.",
                        },
                    ),
                    "preset": (
                        list(PRESETS),
                        {
                            "default": DEFAULTS.preset,
                            "tooltip": "How long to train. fast is enough to see it work.",
                        },
                    ),
                    "kind": (
                        ["auto", *KINDS],
                        {
                            "default": "auto",
                            "tooltip": "Kind of concept: which prompts introduce it, and the "
                            "objective's values for it. auto: by lists of artists, people and explicit "
                            "words that come with the pack, and by words "
                            "such as style; the report says which.",
                        },
                    ),
                    "window": (
                        ["auto", "custom"],
                        {
                            "default": "auto",
                            "tooltip": "Where in the sampling the erasure acts. auto: the "
                            "objective's own, or measured on the model's trajectories; custom: the two "
                            "fields below.",
                        },
                    ),
                    "window_start": (
                        "FLOAT",
                        {
                            "default": 0.2,
                            "min": 0.0,
                            "max": 1.0,
                            "step": 0.01,
                            "tooltip": "With a custom window: its start, 0 is the beginning of the sampling.",
                        },
                    ),
                    "window_end": (
                        "FLOAT",
                        {
                            "default": 1.0,
                            "min": 0.0,
                            "max": 1.0,
                            "step": 0.01,
                            "tooltip": "With a custom window: its end, 1 is the finished picture.",
                        },
                    ),
                    "steps": (
                        "INT",
                        {
                            "default": 0,
                            "min": 0,
                            "max": 100000,
                            "tooltip": "Optimiser steps. 0: the preset's (trace takes twice as many for a "
                            "style, three times for a combination).",
                        },
                    ),
                    "rank": (
                        "INT",
                        {"default": DEFAULTS.rank, "min": 1, "max": 1024, "tooltip": "Of the trained LoRA."},
                    ),
                    "lr": (
                        "FLOAT",
                        {
                            "default": 0.0,
                            "min": 0.0,
                            "max": 1.0,
                            "step": 0.0001,
                            "round": False,
                            "tooltip": "AdamW's learning rate "
                            f"at its highest. 0: the objective's own, {LEARNING_RATE:g} for most, more on a "
                            "demo model. Lower it if the run diverges.",
                        },
                    ),
                    "eta": (
                        "FLOAT",
                        {
                            "default": -1.0,
                            "min": -1.0,
                            "max": 10.0,
                            "step": 0.05,
                            "tooltip": "-1: the objective's own; for "
                            "trace, as far as another of its kind, which takes the concept's place. 0: to "
                            "the neutral prompt. Above 0: past it, and the "
                            "concept may be drawn where it is the negative prompt.",
                        },
                    ),
                    "seed": (
                        "INT",
                        {
                            "default": 0,
                            "min": 0,
                            "max": 2**31 - 1,
                            "control_after_generate": False,
                            "tooltip": "Of noise, prompts and adapters: the same seed trains the same LoRA.",
                        },
                    ),
                    "width": (
                        "INT",
                        {
                            "default": 0,
                            "min": 0,
                            "max": 4096,
                            "step": 8,
                            "tooltip": "Of the pictures trained on, in pixels. 0: 64 on a demo model, else "
                            "512.",
                        },
                    ),
                    "height": (
                        "INT",
                        {
                            "default": 0,
                            "min": 0,
                            "max": 4096,
                            "step": 8,
                            "tooltip": "Of the pictures trained on, in pixels. 0: 64 on a demo model, else "
                            "512.",
                        },
                    ),
                    "checkpointing": (
                        "BOOLEAN",
                        {"default": False, "tooltip": "Takes less memory and a third more time."},
                    ),
                    "preview_every": (
                        "INT",
                        {
                            "default": 0,
                            "min": 0,
                            "max": 100000,
                            "tooltip": "Steps between previews of a concept's "
                            "prompt and a keep prompt, with the same seed each time. 0: none, and no time "
                            "for them.",
                        },
                    ),
                },
                "optional": {
                    "lora": (
                        wire.LORA,
                        {
                            "tooltip": "The projection's LoRA: training starts from it, and it is joined "
                            "into the result."
                        },
                    ),
                    "scope": (
                        ["auto", *SCOPES],
                        {
                            "default": "auto",
                            "tooltip": "Layers that get adapters; auto: the objective's own. "
                            + "; ".join(f"{k}: {v}" for k, v in SCOPES.items())
                            + ".",
                        },
                    ),
                    "saliency": (
                        "FLOAT",
                        {
                            "default": 0.0,
                            "min": 0.0,
                            "max": 1.0,
                            "step": 0.05,
                            "tooltip": "Above 0, whole weight matrices "
                            "are trained, but of each only this share with the largest gradients on every "
                            "prompt and seed (ANT's value: "
                            "0.5), at 0.3 times the learning rate unless lr is given, and cut to the rank "
                            "at the end: set that to 64.",
                        },
                    ),
                    "mask": (
                        "MASK",
                        {
                            "tooltip": "For objective mace: where in the picture the concept is. Without "
                            "it, where the model's own "
                            "attention says."
                        },
                    ),
                },
            },
        )

    def train(
        self,
        model,
        clip,
        erase,
        keep,
        objective,
        preset,
        kind,
        window,
        window_start,
        window_end,
        steps,
        rank,
        lr,
        eta,
        seed,
        width,
        height,
        checkpointing,
        preview_every,
        lora=None,
        scope="auto",
        saliency=0.0,
        mask=None,
    ):
        concepts, kept = wire.concepts_of(erase, keep)
        _, kept = domain_of(model, concepts, kept)
        start = None if lora is None else wire.erasure_of(lora)
        refuse_doubled(model, start)
        config = FinetuneConfig(
            objective=objective,
            preset=preset,
            kind=kind,
            window=None if window == "auto" else (window_start, window_end),
            steps=steps or None,
            rank=rank,
            eta=None if eta < 0 else eta,
            seed=seed,
            checkpointing=checkpointing,
            preview_every=preview_every,
            scope=None if scope == "auto" else scope,
            saliency=saliency,
            **finetune_options(model, width, height, lr),
        )
        terms = {t.name: t.weight for t in OBJECTIVES[objective].terms}
        with Live(
            objective=objective,
            window=None if window == "auto" else [window_start, window_end],
            terms=list(terms),
        ) as live:
            show = Previews(model, live) if preview_every else None
            result = run(model, clip, concepts, kept, config, start, live.training, show, region=mask)
            live.facts["window"] = result.report["window"]
            edited = gating.apply(model, result.lora)
        losses = wire.loss_map(result.report["losses"], {**terms, **result.report["parameters"]["weights"]})
        text = reports.finetune(result.report, result.lora, start is not None)
        shown = {
            "trace_report": [text],
            "trace_losses": result.report["losses"],
            "trace_window": list(result.report["window"]),
            "trace_previews": live.previews,
        }
        return {"ui": shown, "result": (edited, wire.LoraState(result.lora), losses, text)}


def refuse_doubled(model, start) -> None:
    """Training from an erasure that is on the model already would count it twice.

    Raises:
        LoraError: naming the remedy.
    """
    if start is not None and any(e["fingerprint"] == start.fingerprint for e in gating.erasures_on(model)):
        raise LoraError(
            "the connected LoRA is on this model already: connect the model as it was before the "
            "projection (the loader's) to the finetune, and the projection's LoRA to lora"
        )


class Previews:
    """Latents of the training as one picture: the concept's prompt on the left, a keep prompt on the
    right.
    """

    def __init__(self, model, live: Live):
        self.model, self.live = model, live
        self.vae = None
        if demo_name(model):
            from ..trace_core.demo import loader

            self.vae = loader.load_vae()

    def __call__(self, step: int, latents: torch.Tensor, prompts: list[str]) -> None:
        with torch.no_grad():
            pictures = [to_image(picture, 1) for picture in self.decode(latents.float().cpu())]
        side = min(SIDE / max(p.size) for p in pictures)
        pictures = [
            p.resize((round(p.width * side), round(p.height * side)), Image.Resampling.BICUBIC)
            for p in pictures
        ]
        sheet = Image.new("RGB", (sum(p.width for p in pictures), pictures[0].height))
        for i, picture in enumerate(pictures):
            sheet.paste(picture, (i * pictures[0].width, 0))
        self.live.preview(sheet, step, prompts)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """``[n, c, h, w]`` on the model's scale -> ``[n, h, w, 3]`` in 0..1; on real models ComfyUI's own
        rough linear map.
        """
        fmt = self.model.model.latent_format
        if self.vae is not None:
            return self.vae.decode(fmt.process_out(latents))
        if fmt.latent_rgb_factors is None:
            return latents[:, :1].sigmoid().movedim(1, -1).expand(-1, -1, -1, 3)
        bias = getattr(fmt, "latent_rgb_factors_bias", None)
        rgb = latents.movedim(1, -1) @ torch.tensor(fmt.latent_rgb_factors) + torch.tensor(bias or [0.0] * 3)
        return ((rgb + 1) / 2).clamp(0, 1)
