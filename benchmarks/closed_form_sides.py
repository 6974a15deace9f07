"""The two sides of the speed benchmark: the library's own path and the published way, each timed."""

from __future__ import annotations

import importlib
from contextlib import contextmanager

import torch
from published import Published, stack
from synthetic import Clock, SyntheticText, peak_memory

from trace_core.backbones.base import CONTEXT
from trace_core.closed_form import POLICIES, ClosedFormConfig, solvers
from trace_core.closed_form.policies import erased_pairs, keep_prompts, keep_weights
from trace_core.text.concepts import Concept

# modules, not the functions of the same names, to take their clock
accumulating, solving, exporting = (
    importlib.import_module(f"trace_core.closed_form.{name}") for name in ("accumulate", "solve", "export")
)

#: what the outer products of one prompt may take (FLUX's take 17 GB, and are timed on a part)
OUTER_BYTES = 2 << 30

MORE = tuple(f"a {{}} {place}" for place in (
    "in the rain", "under a bridge", "at night", "on the moon", "in a museum", "by the sea",
    "in black and white",
    "on a stamp", "made of glass", "in the snow", "seen from above", "next to a tree"))  # fmt: skip

#: 30 templates, 18 of them the library's
CONFIG = {"policy": "mace", "contexts": {"object": MORE}, "kind": "object"}


def concepts(count: int, anchors: bool = False) -> list[Concept]:
    """One or two words each; with ``anchors``, no two steer to the same."""
    names = [f"concept{i}" if i % 2 else f"big concept{i}" for i in range(count)]
    return [Concept(name, f"anchor{i}" if anchors else "") for i, name in enumerate(names)]


@contextmanager
def pairing_not_timed(text: SyntheticText, found: dict):
    """Count the time that ``collect`` waits for paired rows as ``text.seconds``, and note lambda in
    ``found``.
    """
    pairs, regularise = accumulating.erased_pairs, solvers.regularise

    def timed(*args):
        source = pairs(*args)
        while True:
            made, begin = text.seconds, Clock.now()
            item = next(source, None)
            text.seconds = made + Clock.now() - begin
            if item is None:
                return
            yield item

    def noted(gram, *args):
        out = regularise(gram, *args)
        found.setdefault("lambda", (out - gram).diagonal().mean().item())  # the context's comes first
        return out

    accumulating.erased_pairs, solvers.regularise = timed, noted
    try:
        yield
    finally:
        accumulating.erased_pairs, solvers.regularise = pairs, regularise


def ours(
    backbone,
    text: SyntheticText,
    erased: list[Concept],
    kept,
    progress=lambda *_: None,
    report=True,
    **config,
) -> dict:
    """The library's ``collect``, ``solve`` and ``export``, timed, and ``report``. Both sides are handed
    their rows paired.
    """
    config = ClosedFormConfig(**{**CONFIG, **config})
    policy, seconds, out = POLICIES[config.policy], {}, {"config": config}
    with peak_memory() as memory, pairing_not_timed(text, out):
        begin, made = Clock.now(), text.seconds
        sums = accumulating.accumulate(backbone, text, policy, erased, kept, config, progress)
        seconds["rows"] = text.seconds - made
        seconds["sums"] = Clock.now() - begin - seconds["rows"]
        begin, solved = Clock.now(), {s: solving.solve(policy, part, config) for s, part in sums.items()}
        edits = {stream: edit for stream, (edit, _) in solved.items()}
        seconds["solve"] = Clock.now() - begin
        begin = Clock.now()
        lora, measured, _ = exporting.export(backbone, edits, sums, measure=False)
        seconds["export"] = Clock.now() - begin
        if report:
            del lora  # there is one at a time in use, too
            begin = Clock.now()
            lora, measured, _ = exporting.export(backbone, edits, sums)
            seconds["report"] = max(0.0, Clock.now() - begin - seconds["export"])
    seconds["edit"] = seconds["sums"] + seconds["solve"] + seconds["export"]
    return out | {
        "seconds": seconds,
        "peak_bytes": memory["bytes"],
        "edits": edits,
        "lora": lora,
        "sums": sums,
        "residual": max((r["residual"] for r in measured.values()), default=None),
    }


def prompts_of(text: SyntheticText, erased: list[Concept], config: ClosedFormConfig):
    """For each concept its prompts' ``(c, g, a)``, as ``collect`` weights them."""
    for concept in erased:
        batch = []
        for pairs, weights, *_ in erased_pairs(
            POLICIES[config.policy], concept, "object", text, config.contexts
        ):
            used = weights > 0
            batch.append((pairs.erase[used], pairs.want[used], weights[used]))
        yield batch


def kept_prompts(text: SyntheticText, kept, config: ClosedFormConfig):
    """The keep set's ``(p, p, b)``, as ``collect`` weights them."""
    policy = POLICIES[config.policy]
    prompts = keep_prompts(policy, kept, ["object"] * len(kept), config.contexts)
    for prompt, entry in prompts:
        rows = text.encode(prompt, entry)
        weights = keep_weights(policy, rows) * config.keep_weight * len(kept) / len(prompts)
        yield rows.embeddings, rows.embeddings, weights


def published(
    weights: dict,
    text: SyntheticText,
    erased,
    kept,
    mine: dict,
    form: str,
    dtype=torch.float32,
    share: int | None = None,
) -> dict:
    """Run it for some matrices: seconds, dW and the number of prompts.

    The sums are linear in the prompts. Given ``share``, only so many concepts are added, the time of that is
    scaled to all of them, and there is no dW; the keep set's sums and the inverse are timed in full.
    """
    config, lam = mine["config"], mine["lambda"]
    machines = {name: Published(weight.to(dtype), form) for name, weight in weights.items()}

    def add(batch) -> int:
        batch = [tuple(x.to(dtype) for x in prompt) for prompt in batch]
        stacked = stack(batch) if form == "batched" else None
        for machine in machines.values():
            machine.add(batch, stacked)
        return len(batch)

    timed = erased[:share]
    times = len(erased) / len(timed)
    prompts = round(times * sum(add(batch) for batch in prompts_of(text, timed, config)))
    for machine in machines.values():
        machine.seconds *= times
    preserve = list(kept_prompts(text, kept, config))
    prompts += sum(add(preserve[at : at + 30]) for at in range(0, len(preserve), 30))
    changes = {name: machine.change(lam) for name, machine in machines.items()}
    return {
        "seconds": {n: m.seconds for n, m in machines.items()},
        "prompts": prompts,
        "changes": changes if times == 1 else {},
    }


def outer_products(layers: dict, text: SyntheticText, prompts: int) -> float:
    """Time of the released code's form, scaled from one prompt, or a part of it."""
    rows = text.encode("a photo of a big concept0 in the garden").embeddings
    rows = rows[: OUTER_BYTES // (4 * rows.shape[1] * max(rows.shape[1], *map(len, layers.values())))]
    one = [(rows, rows, torch.ones(len(rows)))]
    prompts *= text.length / len(rows)
    seconds = {}
    for name, weight in one_of_each(layers).items():
        machine = Published(weight, "outer")
        machine.add(one, None)
        seconds[name] = machine.seconds * prompts
    return scaled(seconds, layers)


def scaled(seconds: dict[str, float], layers: dict[str, torch.Tensor]) -> float:
    """Time of all matrices, from some of every size."""
    sizes = [len(layers[name]) for name in seconds]
    rate = {
        size: sum(t for n, t in seconds.items() if len(layers[n]) == size) / sizes.count(size)
        for size in sizes
    }
    return sum(rate[len(weight)] for weight in layers.values())


def one_of_each(layers: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict({len(w): (n, w) for n, w in layers.items()}.values())


def difference(mine: dict, layers: dict, changes: dict) -> dict[str, float]:
    """Largest ||dW_ours - dW|| / ||dW||, of the edit and of the float16 factors in the file."""
    edit, worst = mine["edits"][CONTEXT], {"edit": 0.0, "file": 0.0}
    for name, change in changes.items():
        for kind, own in (
            ("edit", layers[name].double() @ edit.U @ edit.V.T),
            ("file", mine["lora"].delta(name).double()),
        ):
            worst[kind] = max(worst[kind], ((own - change.double()).norm() / change.double().norm()).item())
    return worst
