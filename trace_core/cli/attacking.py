"""Attacks of the command ``evaluate``."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import TraceError
from ..lora.erasure import ErasureLora
from ..text.concepts import Concept
from .timing import Bars


def check(args, concepts: Sequence[Concept]) -> None:
    """Check ``--attack`` and ``--recover`` before a model is loaded.

    Raises:
        TraceError: naming the option.
    """
    if not args.recover and args.attack is None:
        return
    option = "--recover" if args.recover else "--attack"
    if len(args.lora) != 1 or not concepts:
        raise TraceError(
            f"{option} attacks one erasure; name its file with --lora, and its concepts with --erase if the "
            "file does not say them"
        )
    if args.attack is None:
        return
    from ..evaluate.attacks import names_of

    if args.recover:
        raise TraceError("--recover is a part of --attack all; give one of both")
    names_of(args.attack)
    if not args.budget > 0:
        raise TraceError(f"--budget is {args.budget:g}; it is a factor above 0, such as 1")


def run(args, opened: tuple, domain, concepts: Sequence[Concept], config, bars: Bars) -> dict:
    """Run ``--attack`` or ``--recover`` on one file, for every concept."""
    lora = ErasureLora.load(args.lora[0])
    one = _recover if args.recover else _attack
    try:
        found = {c.target: one(args, lora, opened, domain, c.target, config, bars) for c in concepts}
    finally:
        bars.close()
    key = "recoverability" if args.recover else "attacked"
    return {"model": args.model, "loras": args.lora, key: found}


def _attack(args, lora: ErasureLora, opened: tuple, domain, concept: str, config, bars: Bars) -> dict:
    from ..evaluate.attacks import attack

    model, clip, vae = opened
    found = attack(
        model,
        lora,
        clip,
        vae,
        domain,
        concept,
        args.attack,
        args.samples,
        args.seed,
        bars,
        config,
        args.budget,
    )
    bars.close()
    if lora.window != (0.0, 1.0):
        print(f"note: the file's window {lora.window} is left out; the erasure acts on every step")
    print("\n".join(table(found)), flush=True)
    return found


def table(found: dict) -> list[str]:
    """The result of :func:`trace_core.evaluate.attacks.attack` as aligned text."""
    head = (
        f"{found['concept']}: recognised on {_percent(found['plain']['rate']).strip()} % without an attack, "
        f"on {_percent(found['unerased']['rate']).strip()} % before the erasure ({found['samples']} pictures)"
    )
    out = [head, f"{'attack':28} rate %  unerased %  reach   seconds"]
    for name, r in found["attacks"].items():
        out.append(
            f"{name:28} {_percent(r['rate'])}      {_percent(r['unerased'])} {_plain(r['reach'])} "
            f"{r['seconds']:9.1f}" + _more(r)
        )
        for variant, v in r.get("variants", {}).items():
            beside = f"  picture alone {_percent(v['picture']).strip()} %" if "picture" in v else ""
            out.append(
                f"  {variant:26} {_percent(v['rate'])}      {_percent(v.get('unerased'))} "
                f"{_plain(v.get('reach'))}{beside}"
            )
    return out


def _more(r: dict) -> str:
    """What an attack says beside its rates."""
    out = ""
    if "steps_unerased" in r:
        at = [f"after {r[k]} steps" if r[k] is not None else "never" for k in ("steps", "steps_unerased")]
        out += f"  half {at[0]}, on the unerased model {at[1]}"
    if "random" in r:
        out += f"  random tokens {_percent(r['random']).strip()} %"
    return out + (f"  {r['note']}" if r.get("note") else "")


def _percent(value: float | None) -> str:
    return "     -" if value is None else f"{100 * value:6.1f}"


def _plain(value: float | None) -> str:
    return "     -" if value is None else f"{value:6.2f}"


def _recover(args, lora: ErasureLora, opened: tuple, domain, concept: str, config, bars: Bars) -> dict:
    from ..evaluate.recover import recoverability

    model, clip, vae = opened
    r = recoverability(
        model,
        lora,
        clip,
        vae,
        domain,
        concept,
        args.samples,
        args.seed,
        progress=bars,
        config=config,
    )
    at, share = r["inversion"]["recovered_at"], max(share for _, share in r["inversion"]["curve"])
    print(
        f"{concept}: recognised on {100 * r['plain']:.1f} %, with adversarial rows on "
        f"{100 * r['adversarial_rows']:.1f} %, by inversion "
        f"{f'after {at} steps' if at is not None else 'never'} (at most {100 * share:.1f} %)"
    )
    return r
