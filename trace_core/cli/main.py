"""The commands and their arguments."""

from __future__ import annotations

import argparse
import difflib
import logging
import sys

from .. import __version__
from ..errors import TraceError
from ..evaluate.attacks import ATTACKS
from ..lora.formats import FORMATS
from ..methods import METHODS
from . import arguments
from .inputs import DryRun
from .timing import Bars


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of an option if it has one and its help does not mention it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        no_suffix = action.default in (None, False, []) or "default" in (action.help or "")
        return action.help if no_suffix else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line. The list of all options would hide it."""

    def error(self, message: str):
        self.exit(2, f"error: {message}; {help_of(self.prog)}\n")


def help_of(prog: str) -> str:
    return f"`python -m {prog} --help` lists what there is"


def parser() -> argparse.ArgumentParser:
    root = Parser("trace_core", description="Erase concepts from text-to-image models.")
    root.add_argument("--version", action="version", version=__version__)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _demo(commands)
    _erase(commands)
    _generate(commands)
    _evaluate(commands)
    _verify(commands)
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
        help="replace existing output files, but never a file that the command reads",
    )
    command.add_argument("--threads", type=arguments.positive, metavar="N", help="CPU threads for torch")
    return command


def _methods(closed_form: bool, finetune: bool) -> str:
    """Names of the methods that have just these stages."""
    stages = (closed_form, finetune)
    return ", ".join(m.name for m in METHODS.values() if (bool(m.closed_form), bool(m.finetune)) == stages)


def _demo(commands) -> None:
    c = _command(
        commands, "demo", "erase concepts from the demo models, draw before/after grids, print a table"
    )
    c.add_argument("--out", default="out/demo", help="folder for LoRAs, grids and the report")
    c.add_argument("--samples", type=int, default=8, help="pictures per class and per synonym")
    c.add_argument("--seed", type=int, default=0, help="first seed of the pictures")


def _erase(commands) -> None:
    c = _command(
        commands,
        "erase",
        "erase concepts and save them as one LoRA",
        "Erase concepts from a model, without images, and save one LoRA. The methods are closed forms "
        f"({_methods(True, False)}), finetunes ({_methods(False, True)}), or both ({_methods(True, True)}).",
    )
    arguments.model(c)
    arguments.concepts(c, required=True)
    c.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="CONCEPT",
        help="what must not change; repeatable (default: everyday things; demo models: all they know)",
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
        help="kind of concept, which selects the prompt templates (auto: from the names in the included "
        "lists of artists, styles, people and explicit words, and from words such as `style`)",
    )
    arguments.closed_form(c)
    c.add_argument(
        "--rank", type=int, default=None, help="upper bound of the rank; for finetunes the adapter's rank (8)"
    )
    c.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the finetune; the closed form only records it in the file",
    )
    out = c.add_argument("--out", required=True, metavar="FILE", help="LoRA to write (.safetensors)")
    c.add_argument(
        "--dry-run", action=DryRun, spares=out, help="read the lists, print what they contain, and stop"
    )
    arguments.jobs(c)
    arguments.finetune(c)


def _generate(commands) -> None:
    c = _command(commands, "generate", "make pictures, with or without erasure LoRAs")
    arguments.model(c)
    c.add_argument("--prompt", action="append", required=True, help="prompt of one column; repeatable")
    arguments.loras(c)
    arguments.sampler(c)
    c.add_argument("--seed", type=int, default=0, help="seed of the first row")
    c.add_argument("--count", type=arguments.positive, default=1, help="number of rows, one seed per row")
    c.add_argument(
        "--out", required=True, metavar="FILE", help="PNG to write; with --lora a grid of before and after"
    )


def _evaluate(commands) -> None:
    c = _command(
        commands,
        "evaluate",
        "measure an erasure with the judge of the demo models, or with your own judge by a paper's protocol",
        "Sample and judge: erased concept (acc_e), everything else (acc_s), synonyms (acc_g), their harmonic "
        "mean H_o, and drift. Without --erase: the model's own accuracy per class. With --protocol and "
        "--judge any model is measured as the papers do.",
    )
    arguments.model(c, more="; only the demo models have a judge of their own, others need --protocol")
    arguments.concepts(c, required=False)
    arguments.loras(c)
    arguments.sampler(c)
    c.add_argument(
        "--samples", type=int, default=20, help="pictures per class and per synonym; the papers have 200"
    )
    c.add_argument(
        "--others", type=int, metavar="N", help="pictures of every class that stays (default: as many)"
    )
    c.add_argument("--seed", type=int, default=0, help="first seed of the pictures")
    arguments.protocols(c)
    c.add_argument(
        "--recover",
        action="store_true",
        help="attack the erasure with adversarial rows and with inversion instead, and report what comes "
        "back (needs exactly one --lora)",
    )
    c.add_argument(
        "--attack",
        metavar="NAMES",
        help="run attacks on the erasure instead: all, or names with commas between them (needs exactly one "
        "--lora). " + "; ".join(f"{a.name}: {a.help}" for a in ATTACKS.values()),
    )
    c.add_argument(
        "--budget", type=float, default=1.0, metavar="X", help="factor on the attacks' numbers of steps"
    )


def _verify(commands) -> None:
    c = _command(
        commands,
        "verify",
        "give a verdict on an erasure, for any model",
        "Verify an erasure without a judge: the unerased model itself says what a picture shows. PASS, WARN "
        "or FAIL for the concept's pictures and predictions, other ways to write it, and what must stay. "
        "--judge adds a judge of your own.",
    )
    arguments.model(c, more="; pictures need no VAE, their thumbnails do")
    arguments.concepts(c, required=False)
    c.add_argument("--lora", required=True, metavar="FILE", help="the erasure LoRA to verify")
    c.add_argument("--strength", type=float, default=1.0, help="strength of the LoRA")
    arguments.verification(c)
    arguments.sampler(c)


def _fuse(commands) -> None:
    c = _command(
        commands,
        "fuse",
        "fuse erasures into one file, remove concepts from a file, or change their strengths",
        "Fuse erasures of one base model into one file in closed form (MACE, eq. 7). On the prompts of each "
        "concept, the fused file acts like the file of that concept, without the effects of the others. "
        "Each concept stays a separate part, whose strength can be changed and which can be removed. A "
        "single file is not fused: --strength and --without change its parts, and no model is needed.",
    )
    c.add_argument("files", nargs="+", metavar="FILE", help="erasures (.safetensors), fused ones included")
    arguments.model(c, required=False, more="; its text encoder makes the rows for the fusion")
    c.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="CONCEPT",
        help="what must not change; repeatable (default: the keep lists of the files)",
    )
    arguments.keep_file(c)
    c.add_argument(
        "--keep-weight",
        type=float,
        default=0.1,
        help="weight of one keep-list entry against one concept; 0 ignores the keep list",
    )
    ways, flag = c.add_mutually_exclusive_group(), {"action": "store_true"}
    ways.add_argument("--naive", help="concatenate the erasures, so that they add up, instead", **flag)
    ways.add_argument("--add", help="leave the first file as it is, bit for bit, and add the others", **flag)
    c.add_argument(
        "--integration",
        type=float,
        default=1.0,
        metavar="MU",
        help="how strongly to suppress an erasure on the prompts of the others; 1 is MACE's fusion",
    )
    c.add_argument("--alpha", type=float, default=1e-3, help="regulariser, relative to the sums of the rows")
    c.add_argument(
        "--strength",
        action="append",
        default=[],
        metavar="CONCEPT=X",
        help="strength of one concept in the result; 1 is the strength in its file; repeatable",
    )
    c.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="CONCEPT",
        help="remove this concept; repeatable",
    )
    c.add_argument(
        "--max-rank",
        type=int,
        default=None,
        metavar="R",
        help="upper bound of each layer's rank; the concepts can then no longer be separated",
    )
    c.add_argument("--out", required=True, metavar="FILE", help="LoRA to write (.safetensors)")


def _export(commands) -> None:
    c = _command(
        commands,
        "export",
        "write an erasure LoRA in the key form of other software",
        "Write an erasure in another key form, for software that does not read ComfyUI's names. The weights "
        "are bit-identical and the metadata stay. This library reads all the forms.",
    )
    c.add_argument("file", metavar="FILE", help="an erasure in any key form (.safetensors)")
    c.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="; ".join(f"{name}: {text}" for name, text in FORMATS.items()),
    )
    c.add_argument("--out", required=True, metavar="FILE", help="file to write (.safetensors)")


def _info(commands) -> None:
    c = _command(
        commands,
        "info",
        "show what an erasure LoRA erases, how it was made, and its base model; without a file, the versions "
        "of this program and of what it runs on",
    )
    c.add_argument("file", nargs="?", help="a .safetensors file")


def _bench(commands) -> None:
    c = _command(commands, "bench", "compare speed and memory with the published implementation, in one run")
    c.add_argument("what", choices=["closed-form", "gating", "finetune"], help="which benchmark")


def _unknown(known: argparse.ArgumentParser, command: str, word: str) -> str:
    """A message about a word that a command does not know, with the option that may be meant."""
    commands = next(a for a in known._actions if isinstance(a, argparse._SubParsersAction))
    options = [o for a in commands.choices[command]._actions for o in a.option_strings]
    help_ = help_of(f"trace_core {command}")
    if not word.startswith("-"):
        return f"'{word}' belongs to no option of `{command}`; repeat the option before each value; {help_}"
    near = difflib.get_close_matches(word.split("=")[0], options, 1, 0.6)
    return f"`{command}` has no option {word}" + (f"; did you mean {near[0]}?" if near else ";") + f" {help_}"


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns 0 on success, 2 on bad input (with a message), 130 on Ctrl-C."""
    known = parser()
    args, extra = known.parse_known_args(argv)
    if extra:
        print(f"error: {_unknown(known, args.command, extra[0])}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    from . import commands

    try:
        commands.run(args)
    except TraceError as error:
        Bars.close_all()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        Bars.close_all()
        print(str(stop) or "cancelled; nothing was written", file=sys.stderr)
        return 130
    return 0
