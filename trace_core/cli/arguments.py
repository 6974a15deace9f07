"""Arguments that several commands share, one function per group."""

from __future__ import annotations

import argparse

from ..closed_form.hardened import LEVELS
from ..methods import METHODS
from .models import DTYPES

TRAINED = [name for name, method in METHODS.items() if method.finetune is not None]
MODEL_HELP = (
    "demo-sd, demo-flux, demo-people, a checkpoint (.safetensors), or a diffusion model without text "
    "encoders (.safetensors, .gguf) with --clip and --vae"
)


def positive(text: str) -> int:
    """The type of a count."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 up")
    return int(text)


def pixels(text: str) -> int:
    """The type of a picture's edge: latents are an eighth as wide."""
    if not text.isdecimal() or int(text) < 16 or int(text) % 8:
        raise argparse.ArgumentTypeError(f"'{text}' is not a multiple of 8 from 16 up, such as 512")
    return int(text)


def model(c: argparse.ArgumentParser, required: bool = True, more: str = "") -> None:
    c.add_argument("--model", required=required, help=MODEL_HELP + more)
    c.add_argument(
        "--clip",
        action="append",
        default=[],
        metavar="FILE",
        help="text encoder for a diffusion model (.safetensors, .gguf); one option per file (FLUX: clip_l "
        "and t5xxl, SDXL: clip_l and clip_g); also replaces the text encoders of a checkpoint",
    )
    c.add_argument(
        "--vae",
        metavar="FILE",
        help="VAE for a diffusion model, needed for pictures; also replaces a checkpoint's",
    )
    c.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="precision of the diffusion model's weights in memory (default: ComfyUI's choice)",
    )


def concepts(c: argparse.ArgumentParser, required: bool) -> None:
    c.add_argument(
        "--erase",
        action="append",
        default=[],
        metavar="CONCEPT",
        help="what to erase: `cat`, `cat -> dog` (with an anchor), `cat @ 0.5` (half of it), `cat + red "
        "background` (only the combination), `glasses from scientist`; repeatable",
    )
    c.add_argument(
        "--erase-file",
        metavar="FILE",
        help="a list: one concept per line (# starts a comment), a table (.csv, .tsv), .json or .yaml",
    )
    c.add_argument(
        "--column",
        metavar="NAME",
        help="column or key of the erase file with the concepts, by header or number (default: 'concept', "
        "'name', 'artist' ...); a text file with this option is read as a table",
    )
    c.add_argument(
        "--anchor-column",
        metavar="NAME",
        help="column or key of the erase file with the anchors (default: 'anchor', 'guide' ...; `none` "
        "ignores them)",
    )
    c.add_argument(
        "--kind-column",
        metavar="NAME",
        help="column or key of the erase file with the kinds (default: 'kind', 'type' ...; `none` ignores "
        "them)",
    )
    c.set_defaults(erase_required=required)


def keep_file(c: argparse.ArgumentParser) -> None:
    c.add_argument("--keep-file", metavar="FILE", help="a list of what must not change, like --erase-file")
    c.add_argument("--keep-column", metavar="NAME", help="column or key of the keep file with the names")


def closed_form(c: argparse.ArgumentParser) -> None:
    c.add_argument("--strength", type=float, default=1.0, help="1 erases, 0 changes nothing")
    c.add_argument(
        "--energy", type=float, default=None, help="projection: share of the concept's energy to remove"
    )
    c.add_argument(
        "--eta",
        type=float,
        default=None,
        help="projection and finetunes: steer this far past the neutral prompt; 0 steers to the neutral "
        "prompt (default: steer to a substitute of the same kind)",
    )
    c.add_argument("--alpha", type=float, default=None, help="regulariser, relative to the keep rows")
    c.add_argument(
        "--stream",
        choices=["all", "pooled"],
        default="all",
        help="closed form: text streams to edit. pooled edits only CLIP's pooled vector, for names that T5 "
        "cannot spell",
    )
    c.add_argument(
        "--exact",
        action="store_true",
        help="projection: leave the rows of the --keep list exactly as they are, instead of by weight",
    )
    c.add_argument(
        "--robust",
        type=int,
        choices=[0, *LEVELS],
        default=0,
        help="projection and trace: harden the erasure against attacks; 3 holds longest and changes other "
        "pictures most (default: 0, off)",
    )
    c.add_argument(
        "--neighbours",
        type=int,
        default=None,
        metavar="N",
        help="projection and trace: keep the N things that the text encoder finds nearest to each concept "
        "too; 0 keeps none (default: 5)",
    )
    c.add_argument(
        "--no-contrast",
        action="store_true",
        help="closed form: do not keep the words inside a name (the van of Van Gogh)",
    )


def finetune(c: argparse.ArgumentParser) -> None:
    t = c.add_argument_group("finetune", "for --method " + ", ".join(TRAINED))
    t.add_argument(
        "--preset", choices=["fast", "balanced", "thorough"], default="balanced", help="training length"
    )
    t.add_argument(
        "--steps",
        type=int,
        default=None,
        help="optimiser steps (default: the preset's; trace takes twice as many for a style and three times "
        "as many for a combination)",
    )
    t.add_argument(
        "--lr",
        type=float,
        default=None,
        help="learning rate (default: the method's, 5e-4 for most; demo-sd and demo-people: 10 times, "
        "demo-flux: 4 times)",
    )
    t.add_argument(
        "--window",
        default=None,
        metavar="START[,END]",
        help="where the erasure acts, as fractions 0..1 of the schedule, such as 0.2 or 0.1,0.9 (default: "
        "the method's; `auto` measures it)",
    )
    t.add_argument(
        "--scope",
        choices=["text", "attention", "linear", "entry", "keys", "image"],
        default=None,
        help="layers with adapters (default: the method's). text: layers that read the text; attention: all "
        "attention layers; linear: all linear layers; entry: UCE's layers; keys: EraseAnything's layers; "
        "image: layers that do not read the text",
    )
    t.add_argument(
        "--saliency",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="train full weight matrices, restricted to this share of their entries with the largest "
        "gradients over all prompts and seeds (ANT, with 0.5). The result is cut to --rank when saved; 64 is "
        "enough (default: 0, a plain LoRA)",
    )
    t.add_argument(
        "--weight",
        action="append",
        default=[],
        metavar="TERM=X",
        help="weight of one term of the loss; repeatable",
    )
    training_pictures(t)
    t.add_argument(
        "--checkpointing", action="store_true", help="recompute activations: less memory, a third slower"
    )
    t.add_argument(
        "--resume",
        metavar="FILE",
        help="training state: loaded if the file exists, written at every refresh, deleted at the end",
    )


def training_pictures(t) -> None:
    """The pictures that a finetune trains on: more prompts, and how they are sampled."""
    t.add_argument(
        "--implied-file",
        metavar="FILE",
        help="trace: prompts that draw the concept without naming it, one a line; it goes from them too",
    )
    t.add_argument(
        "--size", type=pixels, default=None, help="edge of the training pictures in pixels (512, demo 64)"
    )
    t.add_argument(
        "--sampling-steps",
        type=int,
        default=None,
        help="sampling steps of the trajectories (default: 12, or fewer for a model of few steps)",
    )
    t.add_argument(
        "--sampling-cfg",
        type=float,
        default=None,
        help="guidance of the trajectories; 1 for Turbo and Lightning models (default: the family's own)",
    )


def jobs(c: argparse.ArgumentParser) -> None:
    j = c.add_argument_group(
        "several concepts", "one erasure of all concepts, or one per concept, fused into one file"
    )
    how = j.add_mutually_exclusive_group()
    how.add_argument(
        "--apart", action="store_true", help="one erasure per concept (default of --method mace)"
    )
    how.add_argument(
        "--together", action="store_true", help="one erasure of all (default of the other methods)"
    )
    j.add_argument(
        "--jobs",
        type=int,
        default=None,
        metavar="N",
        help="one erasure per concept, in N processes with --threads threads each (here 1 by default). "
        "Finished concepts stay in OUT.parts until the end, and the same command continues from them. The "
        "file does not depend on N",
    )
    j.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run the --jobs on a Ray cluster: its address, `auto` for the cluster of this machine, or "
        "`local` to start one (needs `pip install ray`)",
    )


def loras(c: argparse.ArgumentParser) -> None:
    c.add_argument(
        "--lora", action="append", default=[], metavar="FILE", help="erasure LoRA to apply; repeatable"
    )
    c.add_argument("--strength", type=float, default=1.0, help="strength of the LoRAs")
    c.add_argument(
        "--start",
        type=float,
        default=None,
        metavar="PERCENT",
        help="apply the LoRAs from this fraction 0..1 of the sampling schedule on; earlier steps use the "
        "base model (default: the file's own window, usually 0)",
    )
    c.add_argument(
        "--end",
        type=float,
        default=None,
        metavar="PERCENT",
        help="apply the LoRAs up to this fraction 0..1 of the schedule (default: the file's own, usually 1)",
    )


def judge(c, more: str = "") -> None:
    """The user's own judge."""
    c.add_argument(
        "--judge",
        metavar="CLIP_FOLDER|nudenet",
        help="who says what a picture shows: a local folder with a CLIP as transformers saves it "
        "(config.json, model.safetensors, tokenizer), or nudenet (needs `pip install nudenet`, under the "
        "AGPL-3.0)" + more,
    )


def protocols(c: argparse.ArgumentParser) -> None:
    """The papers' protocols on any model."""
    p = c.add_argument_group("papers", "a paper's protocol on any model, with a judge of your own")
    p.add_argument(
        "--protocol",
        metavar="cifar10|FILE.csv",
        help="cifar10: MACE's ten objects with three synonyms each, judged by a CLIP (--erase names the "
        "erased classes; the paper has --samples 200, 50 steps, guidance 7.5). A table such as I2P's: column "
        "prompt, and optionally evaluation_seed, evaluation_guidance and a class or category",
    )
    judge(p)
    p.add_argument(
        "--out",
        metavar="FOLDER",
        help="folder for result.json, report.md and every judged picture's answer; the same command goes on "
        "from there after a stop, and --overwrite begins anew",
    )
    p.add_argument("--pictures", action="store_true", help="keep the pictures in the folder as well")
    p.add_argument(
        "--no-before", action="store_true", help="do not draw the pictures of the model without the erasure"
    )
    p.add_argument(
        "--class-column",
        metavar="NAME",
        help="column of the table with what a picture should show, for a CLIP (default: class, label, "
        "object, artist or category)",
    )
    p.add_argument("--limit", type=int, metavar="N", help="read the first N rows of the table")


def verification(c: argparse.ArgumentParser) -> None:
    """How much a verification measures, and what it writes beside ``--json``."""
    c.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="CONCEPT",
        help="what must not change; repeatable (default: everyday things; demo models: all they know)",
    )
    keep_file(c)
    c.add_argument(
        "--synonyms",
        action="append",
        default=[],
        metavar="NAMES",
        help="other names that the erasure should cover: `kitty, feline` of a single concept, `cat: kitty, "
        "feline` of several; repeatable",
    )
    c.add_argument("--samples", type=int, default=12, help="pictures of each concept, before and after")
    c.add_argument("--kept", type=int, default=12, help="kept things that are drawn, neighbours first")
    c.add_argument("--kept-samples", type=int, default=3, help="pictures of each kept thing")
    c.add_argument("--no-attacks", action="store_true", help="leave the attacks out; no verdict needs them")
    judge(c, "; it looks at the pictures as well, which need the VAE (default: nobody does)")
    c.add_argument("--seed", type=int, default=0, help="first seed of the pictures")
    c.add_argument("--markdown", metavar="FILE", help="write the report as Markdown")
    c.add_argument("--picture", metavar="FILE", help="write a page with the verdict as PNG")
    c.add_argument(
        "--out",
        metavar="FILE",
        help="write the LoRA anew (.safetensors) with the verdict in its metadata; its weights stay",
    )


def sampler(c: argparse.ArgumentParser) -> None:
    c.add_argument(
        "--steps", type=positive, default=None, help="sampling steps (default: 12 for demo models, else 20)"
    )
    c.add_argument(
        "--cfg", type=float, default=None, help="classifier-free guidance (default: 3 demo-sd, 7 SD, 1 FLUX)"
    )
    c.add_argument("--guidance", type=float, default=None, help="FLUX guidance (default: 3)")
    c.add_argument(
        "--size",
        type=pixels,
        default=None,
        help="edge of the pictures in pixels (default: 1024, SD 512, demo 64)",
    )
