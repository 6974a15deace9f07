"""Arguments of the command line. Every command takes ``--json FILE`` and shows what it is doing."""

from __future__ import annotations

import argparse
import logging
import sys

from .. import __version__
from ..errors import TraceError
from ..lora.formats import FORMATS
from ..methods import METHODS
from .inputs import DryRun
from .models import DTYPES

TRAINED = [name for name, method in METHODS.items() if method.finetune is not None]
MODEL_HELP = (
    "demo-sd, demo-flux, the path of a checkpoint (.safetensors), or of a diffusion model alone "
    "(.safetensors, .gguf) with --clip and --vae"
)


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults where there is one, and the help does not speak of it itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = action.default in (None, False, []) or "default" in (action.help or "")
        return action.help if said else super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser("trace_core", description="Erase concepts from text-to-image models.")
    root.add_argument("--version", action="version", version=__version__)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _demo(commands)
    _erase(commands)
    _generate(commands)
    _evaluate(commands)
    _fuse(commands)
    _export(commands)
    _info(commands)
    _bench(commands)
    return root


def _command(commands, name: str, help: str, description: str = "") -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help, description=description or help, formatter_class=Help)
    command.add_argument("--json", metavar="FILE", help="write the result as JSON")
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="write over files that are there; never over one that the command reads",
    )
    command.add_argument("--threads", type=int, metavar="N", help="CPU threads for torch")
    return command


def _demo(commands) -> None:
    c = _command(
        commands, "demo", "erase two concepts from the demo models, draw before/after grids, print a table"
    )
    c.add_argument("--out", default="out/demo", help="folder for LoRAs, grids and the report")
    c.add_argument("--samples", type=int, default=8, help="pictures per class and per synonym")
    c.add_argument("--seed", type=int, default=0, help="first seed of the pictures")


def _model(c: argparse.ArgumentParser, required: bool = True, more: str = "") -> None:
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


def _concepts(c: argparse.ArgumentParser, required: bool) -> None:
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


def _keep_file(c: argparse.ArgumentParser) -> None:
    c.add_argument("--keep-file", metavar="FILE", help="a list, as of --erase-file")
    c.add_argument("--keep-column", metavar="NAME", help="of that list: the column or key with the names")


def _erase(commands) -> None:
    c = _command(
        commands,
        "erase",
        "erase concepts and save them as one LoRA",
        "Erase concepts from a model, without images, and save one LoRA: in closed form (projection, uce, "
        "mace, trce), by a finetune (ant, esd), or by both (trace).",
    )
    _model(c)
    _concepts(c, required=True)
    c.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="CONCEPT",
        help="what must not change; may be repeated (default: all the demo knows, or everyday things)",
    )
    _keep_file(c)
    c.add_argument(
        "--method",
        choices=METHODS,
        default="projection",
        help="; ".join(f"{m.name}: {m.help}" for m in METHODS.values()),
    )
    c.add_argument(
        "--kind",
        choices=["auto", "object", "style", "person", "explicit"],
        default="auto",
        help="kind of concept: which prompt templates introduce it (auto: by lists of artists, people and "
        "explicit words that come "
        "with this program, and by words such as `style`)",
    )
    _closed_form(c)
    c.add_argument(
        "--rank", type=int, default=None, help="upper bound of the rank; finetunes: rank of the adapter (8)"
    )
    c.add_argument(
        "--seed", type=int, default=0, help="recorded in the file; the closed form draws nothing at random"
    )
    out = c.add_argument("--out", required=True, metavar="FILE", help="LoRA to write (.safetensors)")
    c.add_argument(
        "--dry-run", action=DryRun, spares=out, help="read the lists, say what they hold, and stop"
    )
    _jobs(c)
    _finetune(c)


def _closed_form(c: argparse.ArgumentParser) -> None:
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


def _finetune(c: argparse.ArgumentParser) -> None:
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


def _jobs(c: argparse.ArgumentParser) -> None:
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


def _lora(c: argparse.ArgumentParser) -> None:
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


def _sampler(c: argparse.ArgumentParser) -> None:
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


def _generate(commands) -> None:
    c = _command(commands, "generate", "make pictures, with or without erasure LoRAs")
    _model(c)
    c.add_argument("--prompt", action="append", required=True, help="may be repeated; one column each")
    _lora(c)
    _sampler(c)
    c.add_argument("--seed", type=int, default=0, help="seed of the first row")
    c.add_argument("--count", type=int, default=1, help="rows: one seed each")
    c.add_argument(
        "--out", required=True, metavar="FILE", help="PNG to write; with --lora a before/after grid"
    )


def _evaluate(commands) -> None:
    c = _command(
        commands,
        "evaluate",
        "measure an erasure with the judge of the demo models",
        "Sample and judge: erased concept (acc_e), everything else (acc_s), synonyms (acc_g), H_o, drift. "
        "Without --erase: the accuracies of the model itself, per class.",
    )
    _model(c, more="; only the demo models have a judge")
    _concepts(c, required=False)
    _lora(c)
    _sampler(c)
    c.add_argument("--samples", type=int, default=20, help="pictures per class and per synonym")
    c.add_argument("--seed", type=int, default=0, help="first seed of the pictures")
    c.add_argument(
        "--recover",
        action="store_true",
        help="instead: attack the erasure by adversarial rows and by inversion, and see what comes back "
        "(one --lora)",
    )


def _fuse(commands) -> None:
    c = _command(
        commands,
        "fuse",
        "fuse many erasures into one file; take parts out of it, or grade them",
        "Fuse erasures of one base model into one file in closed form (MACE, eq. 7): on the prompts of "
        "every concept it does what that concept's own file does, without what the others would add there. "
        "Every concept stays a part of its own, which can be graded or taken out again. One file alone is "
        "not fused: --strength and --without change its parts, and no model is needed.",
    )
    c.add_argument(
        "files", nargs="+", metavar="FILE", help="erasures (.safetensors); a fused one may be among them"
    )
    _model(c, required=False, more="; of it, the text encoder makes the rows")
    c.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="CONCEPT",
        help="what must not change; may be repeated (default: what the files kept)",
    )
    _keep_file(c)
    c.add_argument(
        "--keep-weight",
        type=float,
        default=0.1,
        help="weight of an entry of the keep list against a concept; 0: none",
    )
    c.add_argument("--naive", action="store_true", help="put the erasures side by side (their sum) instead")
    c.add_argument(
        "--integration",
        type=float,
        default=1.0,
        metavar="MU",
        help="how silent an erasure shall be on the others' prompts; 1 is MACE's fusion",
    )
    c.add_argument("--alpha", type=float, default=1e-3, help="regulariser, relative to the rows' sums")
    c.add_argument(
        "--strength",
        action="append",
        default=[],
        metavar="CONCEPT=X",
        help="strength of one concept in the result, 1 as it was made; may be repeated",
    )
    c.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="CONCEPT",
        help="take this concept out; may be repeated",
    )
    c.add_argument(
        "--max-rank",
        type=int,
        default=None,
        metavar="R",
        help="upper bound of a layer's rank; the concepts can then no longer be told apart",
    )
    c.add_argument("--out", required=True, metavar="FILE", help="LoRA to write (.safetensors)")


def _export(commands) -> None:
    c = _command(
        commands,
        "export",
        "write an erasure LoRA in the key form of other software",
        "Write an erasure in another key form, for software that does not read ComfyUI's names. The edit "
        "is the same to the last digit, its metadata stay, and this library reads all the forms.",
    )
    c.add_argument("file", metavar="FILE", help="an erasure, in whatever form (.safetensors)")
    c.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="; ".join(f"{name}: {text}" for name, text in FORMATS.items()),
    )
    c.add_argument("--out", required=True, metavar="FILE", help="file to write (.safetensors)")


def _info(commands) -> None:
    c = _command(commands, "info", "show what an erasure LoRA erases, how it was made, and for which model")
    c.add_argument("file", help="a .safetensors file")


def _bench(commands) -> None:
    c = _command(commands, "bench", "measure speed and memory against the published way, in one run")
    c.add_argument("what", choices=["closed-form", "gating", "finetune"], help="which benchmark")


def main(argv: list[str] | None = None) -> int:
    """Run a command; 0 on success, 2 on bad input (the message says which), 130 on Ctrl-C."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    from . import commands

    try:
        commands.run(args)
    except TraceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(str(stop) or "cancelled; nothing was written", file=sys.stderr)
        return 130
    return 0
