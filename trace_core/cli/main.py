"""The commands and their arguments. Every command takes ``--json FILE`` and shows what it is doing."""

from __future__ import annotations

import argparse
import logging
import sys

from .. import __version__
from ..errors import TraceError
from ..lora.formats import FORMATS
from ..methods import METHODS
from . import arguments
from .inputs import DryRun


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


def _erase(commands) -> None:
    c = _command(
        commands,
        "erase",
        "erase concepts and save them as one LoRA",
        "Erase concepts from a model, without images, and save one LoRA: in closed form (projection, uce, "
        "mace, trce), by a finetune (ant, esd), or by both (trace).",
    )
    arguments.model(c)
    arguments.concepts(c, required=True)
    c.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="CONCEPT",
        help="what must not change; may be repeated (default: all the demo knows, or everyday things)",
    )
    arguments.keep_file(c)
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
    arguments.closed_form(c)
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
    arguments.jobs(c)
    arguments.finetune(c)


def _generate(commands) -> None:
    c = _command(commands, "generate", "make pictures, with or without erasure LoRAs")
    arguments.model(c)
    c.add_argument("--prompt", action="append", required=True, help="may be repeated; one column each")
    arguments.loras(c)
    arguments.sampler(c)
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
    arguments.model(c, more="; only the demo models have a judge")
    arguments.concepts(c, required=False)
    arguments.loras(c)
    arguments.sampler(c)
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
    arguments.model(c, required=False, more="; of it, the text encoder makes the rows")
    c.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="CONCEPT",
        help="what must not change; may be repeated (default: what the files kept)",
    )
    arguments.keep_file(c)
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
