"""Arguments that several commands share, a function a group."""

from __future__ import annotations

import argparse

from ..methods import METHODS
from .models import DTYPES

TRAINED = [name for name, method in METHODS.items() if method.finetune is not None]
MODEL_HELP = (
    "demo-sd, demo-flux, the path of a checkpoint (.safetensors), or of a diffusion model alone "
    "(.safetensors, .gguf) with --clip and --vae"
)


def model(c: argparse.ArgumentParser, required: bool = True, more: str = "") -> None:
    c.add_argument("--model", required=required, help=MODEL_HELP + more)
    c.add_argument(
        "--clip",
        action="append",
        default=[],
        metavar="FILE",
        help="text encoder of a diffusion model (.safetensors, .gguf); once for each (FLUX: clip_l and "
        "t5xxl, SDXL: clip_l and clip_g); "
        "also instead of a checkpoint's own",
    )
    c.add_argument(
        "--vae", metavar="FILE", help="its VAE, which pictures need; also instead of a checkpoint's own"
    )
    c.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="how the diffusion model's weights are held in memory (default: as ComfyUI chooses)",
    )


def concepts(c: argparse.ArgumentParser, required: bool) -> None:
    c.add_argument(
        "--erase",
        action="append",
        default=[],
        metavar="CONCEPT",
        help="what to erase: `cat`, `cat -> dog` with an anchor, `cat @ 0.5` half of it, `cat + red "
        "background` only together, "
        "`glasses from scientist`; may be repeated",
    )
    c.add_argument(
        "--erase-file",
        metavar="FILE",
        help="a list: one concept a line (# starts a comment), a table (.csv, .tsv), .json or .yaml",
    )
    c.add_argument(
        "--column",
        metavar="NAME",
        help="of that list: the column or key with the concepts, by header or number (default: 'concept', "
        "'name', 'artist' ...); with it a text file is a table",
    )
    c.add_argument(
        "--anchor-column",
        metavar="NAME",
        help="of that list: the one with the anchors (default: 'anchor', 'guide' ...; `none`)",
    )
    c.add_argument(
        "--kind-column",
        metavar="NAME",
        help="of that list: the one with the kinds (default: 'kind', 'type' ...; `none`)",
    )
    c.set_defaults(erase_required=required)


def keep_file(c: argparse.ArgumentParser) -> None:
    c.add_argument("--keep-file", metavar="FILE", help="a list, as of --erase-file")
    c.add_argument("--keep-column", metavar="NAME", help="of that list: the column or key with the names")


def closed_form(c: argparse.ArgumentParser) -> None:
    c.add_argument("--strength", type=float, default=1.0, help="1 erases, 0 changes nothing")
    c.add_argument(
        "--energy", type=float, default=None, help="projection: share of the concept's energy to remove"
    )
    c.add_argument(
        "--eta",
        type=float,
        default=None,
        help="projection, finetunes: how far past the neutral prompt (default: another of its kind takes "
        "its place; 0: the neutral prompt)",
    )
    c.add_argument("--alpha", type=float, default=None, help="regulariser, relative to the keep set")
    c.add_argument(
        "--stream",
        choices=["all", "pooled"],
        default="all",
        help="closed form: what of the text is edited; pooled: CLIP's pooled vector alone, for names that "
        "T5 cannot spell",
    )
    c.add_argument(
        "--no-contrast",
        action="store_true",
        help="closed form: let words inside a name go with it (the van of Van Gogh), which are kept "
        "otherwise",
    )


def finetune(c: argparse.ArgumentParser) -> None:
    t = c.add_argument_group("finetune", "for --method " + ", ".join(TRAINED))
    t.add_argument(
        "--preset", choices=["fast", "balanced", "thorough"], default="balanced", help="how long to train"
    )
    t.add_argument(
        "--steps",
        type=int,
        default=None,
        help="optimiser steps (default: the preset's; trace takes twice as many for a style, three times "
        "for a combination)",
    )
    t.add_argument(
        "--lr",
        type=float,
        default=None,
        help="learning rate (default: the method's, 5e-4 for most; demo models: 10 and 4 times that)",
    )
    t.add_argument(
        "--window",
        default=None,
        metavar="START[,END]",
        help="where the erasure acts, in percent of the schedule / 100, such as 0.2 or 0.1,0.9 (default: "
        "the method's; "
        "`auto` measures it)",
    )
    t.add_argument(
        "--scope",
        choices=["text", "attention", "linear", "entry", "keys", "image"],
        default=None,
        help="layers that get adapters (default: the method's): what reads the text; every attention; every "
        "linear layer; "
        "UCE's; EraseAnything's; what does not read the text",
    )
    t.add_argument(
        "--saliency",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="train whole weight matrices, but of each only the share with the largest gradients, on every "
        "prompt and "
        "seed (ANT; 0.5 is its value), cut to --rank when saved, for which 64 is enough (default: 0, a "
        "plain LoRA)",
    )
    t.add_argument(
        "--weight",
        action="append",
        default=[],
        metavar="TERM=X",
        help="weight of a term of the loss; may be repeated",
    )
    t.add_argument(
        "--size", type=int, default=None, help="edge of the pictures trained on (default: 64 demo, 512)"
    )
    t.add_argument("--checkpointing", action="store_true", help="less memory, a third more time")
    t.add_argument(
        "--resume",
        metavar="FILE",
        help="training state: read if it is there, written at every refresh, removed at the end",
    )


def jobs(c: argparse.ArgumentParser) -> None:
    j = c.add_argument_group(
        "several concepts", "one erasure of all, or one of each, which are then fused into one file"
    )
    how = j.add_mutually_exclusive_group()
    how.add_argument("--apart", action="store_true", help="one of each (default for --method mace)")
    how.add_argument("--together", action="store_true", help="one of all (default for every other method)")
    j.add_argument(
        "--jobs",
        type=int,
        default=None,
        metavar="N",
        help="one of each, in N processes of --threads threads (default here: 1). What is finished is kept "
        "in OUT.parts "
        "until all is, and the same command goes on with it. The file does not depend on N",
    )
    j.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="with --jobs: on a Ray cluster, `auto` for this machine's, `local` for one of its own (pip "
        "install ray)",
    )


def loras(c: argparse.ArgumentParser) -> None:
    c.add_argument(
        "--lora", action="append", default=[], metavar="FILE", help="erasure LoRA to apply; may be repeated"
    )
    c.add_argument("--strength", type=float, default=1.0, help="strength of the LoRAs")
    c.add_argument(
        "--start",
        type=float,
        default=None,
        metavar="PERCENT",
        help="apply the LoRAs from here on, 0..1 of the sampling schedule; every step before is the base "
        "model's (default: the file's own window, usually 0)",
    )
    c.add_argument(
        "--end",
        type=float,
        default=None,
        metavar="PERCENT",
        help="apply the LoRAs up to here, 0..1 of the schedule (default: the file's own, usually 1)",
    )


def sampler(c: argparse.ArgumentParser) -> None:
    c.add_argument(
        "--steps", type=int, default=None, help="sampling steps (default: 12 for demo models, else 20)"
    )
    c.add_argument(
        "--cfg", type=float, default=None, help="classifier-free guidance (default: 3 demo-sd, 7 SD, 1 FLUX)"
    )
    c.add_argument("--guidance", type=float, default=None, help="FLUX guidance (default: 3)")
    c.add_argument(
        "--size",
        type=int,
        default=None,
        help="edge of the pictures in pixels (default: 64 demo, 512 SD, 1024)",
    )
