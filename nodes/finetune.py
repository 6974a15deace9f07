"""TRACE Late-Stage Finetune: a LoRA trained on the late part of the model's own sampling trajectories."""

from __future__ import annotations

import torch
from PIL import Image

from ..trace_core.backbones.base import SCOPES
from ..trace_core.errors import LoraError
from ..trace_core.evaluate.grid import to_image
from ..trace_core.finetune.hardening import LEVELS
from ..trace_core.finetune.objectives import OBJECTIVES
from ..trace_core.finetune.options import LEARNING_RATE, PRESETS, FinetuneConfig
from ..trace_core.lora import gating
from ..trace_core.methods import Eraser
from ..trace_core.text.kinds import KINDS
from . import reports, widgets, wire
from .family import demo_name, finetune_options
from .live import Live

DEFAULTS = FinetuneConfig()
PREVIEW_SIDE = 256  #: pixels
MOST_STEPS = 100_000


TOOLTIPS = {
    **widgets.SHARED_TOOLTIPS,
    "model": "The loader's model. The projection's model is not for this input: connect its LoRA to lora.",
    "clip": "The text encoder of the same model.",
    "objective": "The loss. trace is this pack's own, and the others are published methods for comparison.",
    "preset": "How long to train. fast is enough to see the training work.",
    "kind": "What the concept is, which selects the prompts and the objective's values. auto decides by name "
    "lists and by words such as style, and the report says how.",
    "window": "The part of the sampling in which the erasure acts. auto takes the objective's own or "
    "measures it, and custom takes window_start and window_end.",
    "window_start": "Start of a custom window: 0 is the beginning of the sampling.",
    "window_end": "End of a custom window: 1 is the finished picture.",
    "steps": "Optimiser steps. 0 takes the preset's, and trace doubles these for a style and triples these "
    "for a combination.",
    "rank": "Rank of the trained LoRA. A higher rank makes a larger file.",
    "lr": f"Highest learning rate of AdamW. 0 takes the objective's own, {LEARNING_RATE:g} for most and more "
    "on a demo model; lower the value if the loss grows.",
    "eta": "-1 takes the objective's own: trace steers to something else of the same kind. 0 steers to the "
    "neutral prompt, and above 0 past that prompt, where a negative prompt may draw the concept.",
    "seed": "Seed of noise, prompts and adapters. The same seed trains the same LoRA.",
    "width": "Width of the training pictures in pixels. 0 takes 64 on a demo model, else 512.",
    "height": "Height of the training pictures in pixels. 0 takes 64 on a demo model, else 512.",
    "checkpointing": "Saves memory and takes a third more time.",
    "preview_every": "Steps between previews of a concept's prompt and a keep prompt, with the same seed "
    "each time. 0 draws none and takes no time.",
    "lora": "The projection's LoRA. Training starts from this LoRA and joins it into the result.",
    "scope": "Layers that get adapters. auto takes the objective's own, and the help page lists the others.",
    "saliency": "Above 0 trains whole weight matrices, but only this share of each, where gradients are "
    "large (ANT takes 0.5). The result is cut to rank, so set rank to 64.",
    "sampling_steps": "Sampling steps of the trajectories that it trains on. 0 takes 12, or fewer for a "
    "model that is made for few steps. Set it for a Turbo or Lightning model.",
    "cfg": "Guidance of these trajectories. -1 takes the model family's own. Set 1 for a Turbo or Lightning "
    "model.",
    "robust": "Objective trace: 1 keeps a hardened projection hardened. 2 and 3 train against text that "
    "brings the concept back, for two and four times as long. Other pictures change more. 0 is off.",
    "neighbours": "Objective trace: keeps this many things that are nearest to each concept too. The report "
    "names them. 0 keeps none.",
    "implied": "Objective trace: prompts that draw the concept without naming it, one a line, such as places "
    "and clothes that imply it. It is taken out of them too.",
    "mask": "Where in the picture the concept is, for objective mace. Without a mask the model's own "
    "attention says where.",
}


class LateStageFinetune:
    ID = "TRACE_LateStageFinetune"
    TITLE = "TRACE Late-Stage Finetune"
    CATEGORY = "TRACE"
    SEARCH_ALIASES = [
        *widgets.ALIASES,
        "ESD",
        "ANT",
        "MACE",
        "TRCE",
        "train LoRA",
        "fine-tune",
        "negative guidance",
    ]
    HAS_INTERMEDIATE_OUTPUT = True  # a cached run fills its panel again
    DESCRIPTION = (
        "Trains a small LoRA, without images, so that the late part of the sampling no longer draws the "
        "concepts. Connect the projection's LoRA to join both stages into one file. The base model does not "
        "change, also after cancel."
    )
    RETURN_TYPES = ("MODEL", wire.LORA, wire.LOSSES, "STRING")
    RETURN_NAMES = ("model", "lora", "loss_map", "report")
    OUTPUT_TOOLTIPS = (
        "The model with the concepts erased.",
        "The erasure. A connected LoRA is joined into it.",
        "Losses by step, for the stock Plot Loss Graph.",
        "Verdict, losses, figures and limits, in Markdown.",
    )
    FUNCTION = "train"
    ADVANCED = tuple(
        "window window_start window_end steps rank lr eta width height checkpointing scope saliency "
        "sampling_steps cfg robust neighbours implied".split()
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
                "objective": widgets.choice(OBJECTIVES, "trace"),
                "preset": widgets.choice(PRESETS, DEFAULTS.preset),
                "kind": widgets.choice_or_auto(KINDS),
                "window": widgets.choice_or_auto(["custom"]),
                "window_start": widgets.number(0.2, 0.0, 1.0, 0.01),
                "window_end": widgets.number(1.0, 0.0, 1.0, 0.01),
                "steps": widgets.integer(0, 0, MOST_STEPS),
                "rank": widgets.integer(DEFAULTS.rank, 1, 1024),
                "lr": widgets.number(0.0, 0.0, 1.0, 0.0001, round=False),
                "eta": widgets.number(-1.0, -1.0, 10.0, 0.05),
                "seed": widgets.seed(),
                "width": widgets.side(),
                "height": widgets.side(),
                "checkpointing": widgets.switch(False),
                "preview_every": widgets.integer(0, 0, MOST_STEPS),
            },
            optional={
                "lora": widgets.socket(wire.LORA),
                "scope": widgets.choice_or_auto(SCOPES),
                "saliency": widgets.number(0.0, 0.0, 1.0, 0.05),
                "mask": widgets.socket("MASK"),
                "sampling_steps": widgets.integer(0, 0, 1000),
                "cfg": widgets.number(-1.0, -1.0, 30.0, 0.1),
                "robust": widgets.integer(DEFAULTS.robust, 0, max(LEVELS)),
                "neighbours": widgets.integer(DEFAULTS.neighbours, 0, 64),
                "implied": widgets.lines(),
            },
            advanced=cls.ADVANCED,
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
        sampling_steps=0,
        cfg=-1.0,
        robust=DEFAULTS.robust,
        neighbours=DEFAULTS.neighbours,
        implied="",
    ):
        widgets.check(self, locals())
        concepts, kept = wire.concepts_of(erase, keep)
        custom_window = None if window == "auto" else (window_start, window_end)
        start = None if lora is None else wire.erasure_of(lora)
        refuse_doubled(model, start)
        options = {
            **dict(preset=preset, kind=kind, window=custom_window, rank=rank, saliency=saliency),
            **dict(checkpointing=checkpointing, preview_every=preview_every),
            **dict(robust=robust, neighbours=neighbours, implied=wire.prompts_of(implied)),
            **dict(steps=steps or None, sampling_steps=sampling_steps or None),
            **dict(eta=None if eta < 0 else eta, cfg=None if cfg < 0 else cfg),
            "scope": None if scope == "auto" else scope,
            **finetune_options(model, width, height, lr),
        }
        eraser = Eraser(objective, kept, seed, closed_form=None, finetune=options, per_concept=False)
        terms = {t.name: t.weight for t in OBJECTIVES[objective].terms}
        facts = {"objective": objective, "window": custom_window and list(custom_window)}
        with Live(**facts, terms=list(terms)) as live:
            previews = Previews(model, live) if preview_every else None
            hooks = {"report": live.training, "preview": previews, "region": mask}
            result = eraser.fit(model, clip, concepts, start, **hooks)
            live.facts["window"] = result.report["window"]
            edited = result.apply(model, start=0.0, end=1.0)
        losses = wire.loss_map(result.report["losses"], {**terms, **result.report["parameters"]["weights"]})
        text = reports.finetune(result.report, result.lora, start is not None)
        return {
            "ui": panel_of(text, result.report, live.previews),
            "result": (edited, wire.LoraState(result.lora), losses, text),
        }


def panel_of(text: str, report: dict, previews: list[dict]) -> dict[str, list]:
    """What the node's panel on the page shows."""
    return {
        "trace_report": [text],
        "trace_losses": report["losses"],
        "trace_window": list(report["window"]),
        "trace_previews": previews,
    }


def refuse_doubled(model, start) -> None:
    """Refuse an erasure that is on the model already, which would count twice.

    Raises:
        LoraError: naming the remedy.
    """
    if start is not None and any(e["fingerprint"] == start.fingerprint for e in gating.erasures_on(model)):
        raise LoraError(
            "the connected LoRA is on this model already. Connect the loader's model instead, without the "
            "erasure, and leave the LoRA connected"
        )


class Previews:
    """Draws latents of the training as one picture: the concept's prompt left, a keep prompt right."""

    def __init__(self, model, live: Live):
        self.model, self.live = model, live
        self.vae = None
        if name := demo_name(model):
            from ..trace_core.demo import loader

            self.vae = loader.load_vae(name)

    def __call__(self, step: int, latents: torch.Tensor, prompts: list[str]) -> None:
        with torch.no_grad():
            pictures = [to_image(picture, 1) for picture in self.decode(latents.float().cpu())]
        scale = min(PREVIEW_SIDE / max(p.size) for p in pictures)
        pictures = [
            p.resize((round(p.width * scale), round(p.height * scale)), Image.Resampling.BICUBIC)
            for p in pictures
        ]
        sheet = Image.new("RGB", (sum(p.width for p in pictures), pictures[0].height))
        for i, picture in enumerate(pictures):
            sheet.paste(picture, (i * pictures[0].width, 0))
        self.live.preview(sheet, step, prompts)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """``[n, c, h, w]`` on the model's scale -> ``[n, h, w, 3]`` in 0..1.

        Real models take ComfyUI's own rough linear map.
        """
        fmt = self.model.model.latent_format
        if self.vae is not None:
            return self.vae.decode(fmt.process_out(latents))
        if fmt.latent_rgb_factors is None:
            return latents[:, :1].sigmoid().movedim(1, -1).expand(-1, -1, -1, 3)
        bias = getattr(fmt, "latent_rgb_factors_bias", None)
        reshape = getattr(fmt, "latent_rgb_factors_reshape", None)  # FLUX.2 packs four pixels into one
        latents = latents if reshape is None else reshape(latents)
        rgb = latents.movedim(1, -1) @ torch.tensor(fmt.latent_rgb_factors) + torch.tensor(bias or [0.0] * 3)
        return ((rgb + 1) / 2).clamp(0, 1)
