"""Compare Erasure: the same prompts and seeds on two models, side by side and in figures."""

from __future__ import annotations

import numpy as np
import torch

from ..trace_core.backbones import backbone_for
from ..trace_core.backbones.clips import check_clip
from ..trace_core.backbones.sampling import check_vae, decode, sample
from ..trace_core.errors import TraceError, enough_memory
from ..trace_core.evaluate.grid import grid, to_image
from ..trace_core.evaluate.metrics import drift
from ..trace_core.text.concepts import Concept
from ..trace_core.text.grammar import parse_concepts
from ..trace_core.text.prompts import asks_for
from . import host, reports, widgets
from .family import demo_name, picture_size, sampler_config
from .live import Live, save_temporary

PROMPTS = (
    "a photo of a cat, google style\na photo of a cat, twitter style\na photo of a dog, google "
    "style\na photo of a house, fluent style"
)
MOST_PICTURES = 400  #: of each model
MOST_PAIRS = 64  #: that the panel shows

TOOLTIPS = {
    "model_before": "The model without the erasure.",
    "model_after": "The model with the erasure.",
    "clip": "The text encoder of both models.",
    "vae": "The VAE of both models.",
    "prompts": "Prompts, one a line. Write some with the concept, and some with things that must stay.",
    "seed": "The first seed. Both models draw each prompt with the same seeds.",
    "seeds": "Number of seeds for each prompt: seed, seed + 1 and so on.",
    "steps": "Sampling steps. 0 takes 12 on a demo model, else 20.",
    "cfg": "Classifier-free guidance. -1 takes the model family's own: 3 for demo-sd, 7 for SD, 1 for FLUX.",
    "erase": "The text of the erasing node's erase input, or nothing. The node marks prompts that name one "
    "of these concepts, and reports their figures apart.",
    "guidance": "FLUX's guidance embedding. -1 takes 3.",
    "sampler_name": "The sampler. auto takes dpmpp_2m, and euler for FLUX.",
    "scheduler": "The noise schedule. auto takes karras, and simple for FLUX.",
    "width": "Width in pixels. 0 takes 64 on a demo model, 512 for SD 1 and 2, else 1024.",
    "height": "Height in pixels. 0 takes 64 on a demo model, 512 for SD 1 and 2, else 1024.",
}


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
        "Draws the same prompts with the same seeds on the model before and after an erasure. The grid shows "
        "the pictures, and the report says how much they changed. On a demo model a classifier counts how "
        "often the concept is still drawn."
    )
    RETURN_TYPES = ("IMAGE", "IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("grid", "before", "after", "report")
    OUTPUT_TOOLTIPS = (
        "All pictures with labels. Prompts that name an erased concept are red.",
        "The first model's pictures, prompt by prompt, seed after seed.",
        "The second model's pictures in the same order.",
        "Verdict, figures and limits, in Markdown.",
    )
    FUNCTION = "compare"
    ADVANCED = ("guidance", "sampler_name", "scheduler", "width", "height")
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return widgets.input_types(
            TOOLTIPS,
            required={
                "model_before": widgets.socket("MODEL"),
                "model_after": widgets.socket("MODEL"),
                "clip": widgets.socket("CLIP"),
                "vae": widgets.socket("VAE"),
                "prompts": widgets.lines(PROMPTS),
                "seed": widgets.seed(),
                "seeds": widgets.integer(1, 1, 64),
                "steps": widgets.integer(0, 0, 1000),
                "cfg": widgets.number(-1.0, -1.0, 100.0, 0.1),
            },
            optional={
                "erase": widgets.lines(),
                "guidance": widgets.number(-1.0, -1.0, 100.0, 0.1),
                "sampler_name": widgets.choice_or_auto(host.sampler_names()),
                "scheduler": widgets.choice_or_auto(host.scheduler_names()),
                "width": widgets.side(),
                "height": widgets.side(),
            },
            advanced=cls.ADVANCED,
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
        widgets.check(self, locals())
        with enough_memory("drawing", "take a smaller width and height, or close other programs"):
            for model in (model_before, model_after):
                check_clip(backbone_for(model), clip)
            check_vae(vae)
            columns = prompt_lines(prompts, seeds)
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
            shots = [(prompt, seed + i) for i in range(seeds) for prompt in columns]
            with Live() as live:
                drawn = {
                    label: draw(model, clip, vae, shots, config, live, label)
                    for label, model in (("before", model_before), ("after", model_after))
                }
            named = [any(asks_for(prompt, c) for c in concepts) for prompt in columns]
            sheet = labelled_grid(drawn, columns, seed, seeds, named, config.width)
            text = reports.compare(
                drifts(drawn, named, seeds),
                judged(model_before, concepts, drawn, columns, seeds),
                f"{config.sampler}/{config.scheduler}, {config.steps} steps, cfg {config.cfg:g}, "
                f"{config.width} x {config.height}, seeds {seed} to {seed + seeds - 1}",
            )
            image = torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)[None]
            shown = {
                "images": [save_temporary(sheet)],
                "trace_pairs": saved_pairs(drawn, shots),
                "trace_report": [text],
            }
            return {"ui": shown, "result": (image, drawn["before"][1], drawn["after"][1], text)}


#: ``{"before": (latents, pictures), "after": ...}``, both in the order of the shots.
Drawn = dict[str, tuple[torch.Tensor, torch.Tensor]]


def prompt_lines(prompts: str, seeds: int) -> list[str]:
    """The prompts of the widget, one a line.

    Raises:
        TraceError: if there are none, or more pictures than a run may draw.
    """
    columns = [" ".join(line.split()) for line in prompts.splitlines() if line.strip()]
    if not columns or len(columns) * seeds > MOST_PICTURES:
        raise TraceError(
            f"{len(columns)} prompts with {seeds} seeds: give at least 1 prompt, and at most {MOST_PICTURES} "
            "pictures"
        )
    return columns


def draw(model, clip, vae, shots, config, live: Live, label: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and pictures of one model for every ``(prompt, seed)``."""
    prompts, seeds = (list(column) for column in zip(*shots))
    counter = StepCounter(live, label, config.steps * -(-len(shots) // config.batch))
    latents = sample(model, clip, prompts, seeds, config, step=counter)
    return latents.cpu(), decoded(vae, latents, live, label)


def saved_pairs(drawn: Drawn, shots: list[tuple[str, int]]) -> list[dict]:
    """The first pairs as temporary files, for the panel's slider."""
    return [
        {
            "prompt": prompt,
            "seed": seed,
            **{label: save_temporary(to_image(pictures[i], 1)) for label, (_, pictures) in drawn.items()},
        }
        for i, (prompt, seed) in enumerate(shots[:MOST_PAIRS])
    ]


def labelled_grid(drawn: Drawn, columns: list[str], seed: int, seeds: int, named: list[bool], width: int):
    """All pictures, a column a prompt. Columns of prompts that name a concept are marked."""
    n, rows = len(columns), []
    for i in range(seeds):
        for label, (_, pictures) in drawn.items():
            title = label if seeds == 1 else f"{label}\nseed {seed + i}"
            rows.append((title, pictures[i * n : (i + 1) * n]))
    marked = [i for i, is_named in enumerate(named) if is_named]
    return grid(rows, columns, scale=2 if width <= 128 else 1, marked=marked)


def drifts(drawn: Drawn, named: list[bool], seeds: int) -> list[dict]:
    """How far the pictures moved: those that name a concept, and all others."""
    groups = {"naming an erased concept": True, "all others": False} if any(named) else {"all": False}
    (latents_before, pictures_before), (latents_after, pictures_after) = drawn["before"], drawn["after"]
    out = []
    for name, value in groups.items():
        which = torch.tensor(
            [i for i, is_named in enumerate(named * seeds) if is_named == value], dtype=torch.long
        )
        if len(which):
            measured = drift(
                latents_after[which].float(),
                latents_before[which].float(),
                pictures_after[which],
                pictures_before[which],
            )
            out.append({"name": name, "drift": measured})
    return out


class StepCounter:
    """ComfyUI's sampling callback: shows the steps of all batches, and stops when the user cancels."""

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
        out.append(decode(vae, part)[..., :3].cpu().float())
    return torch.cat(out)


def judged(model, concepts, drawn: Drawn, columns: list[str], seeds: int) -> list[dict]:
    """How often the demo models' judge recognises each concept in pictures whose prompt asks for it.

    A combined concept counts where the judge sees both parts. A concept with a part that the judge does not
    know (a background) is left out.
    """
    name = demo_name(model)
    if not concepts or name is None:
        return []
    from ..trace_core.demo.domain import domain
    from ..trace_core.evaluate.domains import all_shown

    demo, out = domain(name), []
    # A word and its synonym are one class
    for places in dict.fromkeys(
        tuple(demo.locate(part) for part in c.parts or (c.target,)) for c in concepts
    ):
        if None in places:
            continue
        words = [(word, *demo.synonyms(word)) for _, word in places]
        asked = [
            all(any(asks_for(prompt, Concept(w)) for w in part) for part in words) for prompt in columns
        ] * seeds
        which = torch.tensor([i for i, found in enumerate(asked) if found], dtype=torch.long)
        if not len(which):
            continue
        counts = {
            label: int(all_shown(demo, pictures[which], places).sum())
            for label, (_, pictures) in drawn.items()
        }
        out.append({"concept": " + ".join(word for _, word in places), **counts, "pictures": len(which)})
    return out
