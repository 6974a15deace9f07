"""The command ``verify``."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ..errors import TraceError
from ..lora.erasure import ErasureLora
from ..text.concepts import Concept
from . import outputs
from .timing import Bars


def check(args) -> None:
    """Check the options before a model is loaded.

    Raises:
        TraceError: naming the option.
    """
    for name in ("samples", "kept", "kept_samples"):
        if getattr(args, name) < 1:
            option = f"--{name.replace('_', '-')}"
            raise TraceError(f"{option} is {getattr(args, name)}; it must be at least 1")
    for name, ending in (("out", ".safetensors"), ("picture", ".png")):
        path = getattr(args, name)
        if path and Path(path).suffix.lower() != ending:
            raise TraceError(f"--{name} '{path}' must end in {ending}")


def synonyms(lines: Sequence[str], concepts: Sequence[Concept], lora: ErasureLora) -> dict[str, list[str]]:
    """The values of ``--synonyms``, by concept.

    Raises:
        ConceptError: if names have no concept.
    """
    from ..evaluate.verify.prompts import parse_synonyms

    named = list(concepts) or [c for part in lora.parts() for c in part.concepts]
    return parse_synonyms(lines, named)


def judge_named(args):
    """The judge of ``--judge``; None without one.

    Raises:
        TraceError: if it cannot be opened.
    """
    if args.judge is None:
        return None
    from ..evaluate.judges import judge_of

    return judge_of(args.judge)


def run(args, opened: tuple, lora: ErasureLora, concepts, keep, named, config, judge=None) -> dict:
    """Verify, print the verdict, and write what the options ask for."""
    from ..evaluate.verify import Effort, verify
    from ..evaluate.verify.card import with_card
    from ..evaluate.verify.markdown import markdown
    from ..evaluate.verify.page import page

    model, clip, vae = opened
    bars = Bars(args.clock)
    effort = Effort(args.samples, args.kept, args.kept_samples, attacks=not args.no_attacks)
    try:
        found = verify(
            model,
            clip,
            lora,
            concepts,
            keep,
            named,
            vae if args.picture or judge else None,
            config,
            effort,
            args.seed,
            args.strength,
            bars,
            judge,
        )
    finally:
        bars.close()
    args.clock.enter("save")
    print("\n".join(lines(found)), flush=True)
    result = found.to_dict() | {"model": args.model, "lora": args.lora}
    if args.markdown:
        outputs.keep((markdown(found) + "\n").encode(), args.markdown, "the report")
        print(f"wrote {args.markdown}")
    if args.picture:
        picture = io.BytesIO()
        page(found).save(picture, "PNG")
        outputs.keep(picture.getvalue(), args.picture, "the picture")
        print(f"wrote {args.picture}")
    if args.out:
        path = outputs.keep(with_card(lora, found).to_bytes(), args.out, "the erasure")
        print(f"wrote {path}, with the verdict in its metadata")
        result["file"] = str(path)
    return result


def lines(found) -> list[str]:
    """The verdict and its items as text."""
    leak, weak = found.leak, found.weakest
    out = [
        f"{found.status}: {found.sentence}",
        f"strongest leak: {leak['name']} of '{leak['concept']}', {100 * max(leak['reach'], 0.0):.0f} % of "
        "the old predictions",
    ]
    if weak:
        out.append(
            f"weakest kept thing: '{weak['name']}', still shown in {weak['still']} of {weak['of']} pictures"
        )
    out += [
        f"  {i.status if i.decides else f'({i.status})':7} {i.side + ': ' + i.name:28} {i.sentence}"
        for i in found.items
    ]
    return [*out, *(f"note: {note}" for note in found.notes)]
