"""Compare Erasure: the same prompts and seeds on two models, side by side, with figures."""

from __future__ import annotations

import numpy as np
import torch

from ..trace_core.backbones import backbone_for
from ..trace_core.backbones.clips import check_clip
from ..trace_core.backbones.sampling import sample
from ..trace_core.errors import TraceError
from ..trace_core.evaluate.grid import grid, to_image
from ..trace_core.evaluate.metrics import drift
from ..trace_core.text.concepts import Concept
from ..trace_core.text.grammar import parse_concepts
from ..trace_core.text.prompts import asks_for
from . import host, reports, wire
from .family import demo_name, picture_size, sampler_config
from .live import Live, save_temporary

PROMPTS = (
    "a photo of a cat, google style\na photo of a cat, twitter style\na photo of a dog, google "
    "style\na photo of a house, fluent style"
)
MOST = 400  #: pictures a side


class CompareErasure:
    ID = "TRACE_CompareErasure"
    TITLE = "Compare Erasure"
    CATEGORY = "TRACE"
    SEARCH_ALIASES = [
        "before after",
        "compare images",
        "image compare",
        "A/B",
        "side by side",
        "concept erasure",
        "evaluate",
    ]
    DESCRIPTION = (
        "Draws the same prompts with the same seeds on the model before and after an erasure: a labelled "
        "grid, and how far the pictures moved. On a demo model a judge says whether the concept is still "
        "there."
    )
    RETURN_TYPES = ("IMAGE", "IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("grid", "before", "after", "report")
    OUTPUT_TOOLTIPS = (
        "All pictures with labels; prompts that name an erased concept are red.",
        "The first model's pictures, prompt by prompt, seed after seed.",
        "The second model's pictures in the same order.",
        "Verdict, drift and limits, in Markdown.",
    )
    FUNCTION = "compare"
    ADVANCED = ("guidance", "sampler_name", "scheduler", "width", "height")
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return wire.with_advanced(
            cls.ADVANCED,
            {
                "required": {
                    "model_before": ("MODEL", {"tooltip": "The model without the erasure."}),
                    "model_after": ("MODEL", {"tooltip": "The model with it."}),
                    "clip": ("CLIP", {"tooltip": "The text encoder of both."}),
                    "vae": ("VAE", {"tooltip": "The VAE of both."}),
                    "prompts": (
                        "STRING",
                        {
                            "multiline": True,
                            "default": PROMPTS,
                            "tooltip": "One a line: some with the concept, some with things that must stay.",
                        },
                    ),
                    "seed": (
                        "INT",
                        {
                            "default": 0,
                            "min": 0,
                            "max": 2**31 - 1,
                            "control_after_generate": False,
                            "tooltip": "First seed; each prompt is drawn with the same seeds on both models.",
                        },
                    ),
                    "seeds": (
                        "INT",
                        {"default": 1, "min": 1, "max": 64, "tooltip": "Seeds a prompt: seed, seed + 1, ..."},
                    ),
                    "steps": (
                        "INT",
                        {
                            "default": 0,
                            "min": 0,
                            "max": 1000,
                            "tooltip": "Sampling steps. 0: 12 on a demo model, else 20.",
                        },
                    ),
                    "cfg": (
                        "FLOAT",
                        {
                            "default": -1.0,
                            "min": -1.0,
                            "max": 100.0,
                            "step": 0.1,
                            "tooltip": "Classifier-free guidance. -1: the family's own (demo-sd 3, SD 7, "
                            "FLUX 1).",
                        },
                    ),
                },
                "optional": {
                    "erase": (
                        "STRING",
                        {
                            "default": "",
                            "multiline": True,
                            "tooltip": "What was erased, as in the erasing node: marks "
                            "the prompts that name it, and parts the figures. May stay empty.",
                        },
                    ),
                    "guidance": (
                        "FLOAT",
                        {
                            "default": -1.0,
                            "min": -1.0,
                            "max": 100.0,
                            "step": 0.1,
                            "tooltip": "FLUX's guidance embedding. -1: 3.",
                        },
                    ),
                    "sampler_name": (
                        ["auto", *host.sampler_names()],
                        {"default": "auto", "tooltip": "auto: dpmpp_2m, for FLUX euler."},
                    ),
                    "scheduler": (
                        ["auto", *host.scheduler_names()],
                        {"default": "auto", "tooltip": "auto: karras, for FLUX simple."},
                    ),
                    "width": (
                        "INT",
                        {
                            "default": 0,
                            "min": 0,
                            "max": 4096,
                            "step": 8,
                            "tooltip": "Pixels. 0: 64 on a demo model, 512 for SD 1 and 2, else 1024.",
                        },
                    ),
                    "height": (
                        "INT",
                        {
                            "default": 0,
                            "min": 0,
                            "max": 4096,
                            "step": 8,
                            "tooltip": "Pixels. 0: 64 on a demo model, 512 for SD 1 and 2, else 1024.",
                        },
                    ),
                },
            },
        )

    def compare(
        self,
        model_before,
        model_after,
        clip,
        vae,
        prompts,
        seed,
        seeds,
        steps,
        cfg,
        erase="",
        guidance=-1.0,
        sampler_name="auto",
        scheduler="auto",
        width=0,
        height=0,
    ):
        for model in (model_before, model_after):
            check_clip(backbone_for(model), clip)
        columns = [" ".join(line.split()) for line in prompts.splitlines() if line.strip()]
        if not columns or len(columns) * seeds > MOST:
            raise TraceError(
                f"{len(columns)} prompts with {seeds} seeds; give 1 prompt or more, and {MOST} pictures at "
                "most"
            )
        concepts = parse_concepts(erase, "erase") if erase.strip() else []
        config = sampler_config(
            model_before,
            picture_size(model_before, width, height),
            steps=steps,
            cfg=cfg,
            guidance=guidance,
            sampler=sampler_name,
            scheduler=scheduler,
        )
        every = [prompt for _ in range(seeds) for prompt in columns]
        numbers = [seed + i for i in range(seeds) for _ in columns]
        with Live() as live:
            made = {}
            for label, model in (("before", model_before), ("after", model_after)):
                watch = Steps(live, label, config.steps * -(-len(every) // config.batch))
                latents = sample(model, clip, every, numbers, config, step=watch)
                made[label] = latents.cpu(), decoded(vae, latents, live, label)
        named = [any(asks_for(prompt, c) for c in concepts) for prompt in columns]
        sheet = self._sheet(made, columns, seed, seeds, named, config.width)
        text = reports.compare(
            self._drifts(made, named, seeds),
            judged(model_before, concepts, made, columns, seeds),
            f"{config.sampler}/{config.scheduler}, {config.steps} steps, cfg {config.cfg:g}, "
            f"{config.width} x {config.height}, seeds {seed} to {seed + seeds - 1}",
        )
        image = torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)[None]
        pairs = [
            {
                "prompt": every[i],
                "seed": numbers[i],
                **{label: save_temporary(to_image(made[label][1][i], 1)) for label in made},
            }
            for i in range(min(len(every), 64))
        ]
        shown = {"images": [save_temporary(sheet)], "trace_pairs": pairs, "trace_report": [text]}
        return {"ui": shown, "result": (image, made["before"][1], made["after"][1], text)}

    @staticmethod
    def _sheet(made: dict, columns: list[str], seed: int, seeds: int, named: list[bool], width: int):
        n, rows = len(columns), []
        for i in range(seeds):
            for label, (_, pictures) in made.items():
                rows.append(
                    (label if seeds == 1 else f"{label}\nseed {seed + i}", pictures[i * n : (i + 1) * n])
                )
        return grid(
            rows,
            columns,
            scale=2 if width <= 128 else 1,
            marked=[i for i, found in enumerate(named) if found],
        )

    @staticmethod
    def _drifts(made: dict, named: list[bool], seeds: int) -> list[dict]:
        groups = {"naming an erased concept": True, "all others": False} if any(named) else {"all": False}
        out, (before, after) = [], (made["before"], made["after"])
        for name, value in groups.items():
            which = torch.tensor(
                [i for i, found in enumerate(named * seeds) if found == value], dtype=torch.long
            )
            if len(which):
                out.append(
                    {
                        "name": name,
                        "drift": drift(
                            after[0][which].float(),
                            before[0][which].float(),
                            after[1][which],
                            before[1][which],
                        ),
                    }
                )
        return out


class Steps:
    """ComfyUI's sampling callback: counts steps over all batches, shows them, and stops when the user
    cancels.
    """

    def __init__(self, live: Live, label: str, total: int):
        self.live, self.label, self.total, self.done = live, label, total, 0

    def __call__(self, step: int, denoised, x, steps: int) -> None:
        self.done += 1
        self.live.phase(f"sample {self.label}", self.done, self.total)


def decoded(vae, latents: torch.Tensor, live: Live, label: str) -> torch.Tensor:
    """Pictures ``[n, h, w, 3]`` on the CPU, decoded a few at a time."""
    out = []
    for part in latents.split(8):
        live.phase(f"decode {label}", len(out), -(-len(latents) // 8))
        out.append(vae.decode(part)[..., :3].cpu().float())
    return torch.cat(out)


def judged(model, concepts, made: dict, columns: list[str], seeds: int) -> list[dict]:
    """How often the demo models' judge recognises what it knows of the concepts, before and after, where a
    prompt asks for it.

    Of a combined concept both parts must be seen; one with a part that the judge does not know (a background)
    is left out.
    """
    if not concepts or demo_name(model) is None:
        return []
    from ..trace_core.demo.domain import domain

    measured, out = domain(), []
    # a word and its synonym are one class
    for places in dict.fromkeys(
        tuple(measured.locate(part) for part in c.parts or (c.target,)) for c in concepts
    ):
        if None in places:
            continue
        words = [(name, *measured.objects.get(name, ())) for _, name in places]
        asked = [
            all(any(asks_for(prompt, Concept(w)) for w in part) for part in words) for prompt in columns
        ] * seeds
        which = torch.tensor([i for i, found in enumerate(asked) if found], dtype=torch.long)
        if not len(which):
            continue
        counts = {
            label: int(_seen(measured, pictures[which], places).sum())
            for label, (_, pictures) in made.items()
        }
        out.append({"concept": " + ".join(name for _, name in places), **counts, "pictures": len(which)})
    return out


def _seen(measured, pictures: torch.Tensor, places) -> torch.Tensor:
    """Which of the pictures show all of ``(head, class)``."""
    found = [
        measured.judge(pictures, head).argmax(-1)
        == list(measured.objects if head == "object" else measured.styles).index(name)
        for head, name in places
    ]
    return torch.stack(found).all(dim=0)
