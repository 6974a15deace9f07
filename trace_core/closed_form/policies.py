"""Pairing policies: which rows are remapped, to what, and by which solver. Each follows one paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from ..text.concepts import Concept
from ..text.encoding import (
    AFTER,
    BEFORE,
    BOS,
    FIRST_EOT,
    GROUPS,
    PAD,
    SUBJECT,
    Pairs,
    TextEncoder,
    TextRows,
    align,
)
from ..text.prompts import asks_for, prompt_pairs, separating_prompts
from ..text.templates import TEMPLATES, fill
from .adversarial import REACH
from .contrast import contrast_prompts, shared_rows, word_weight

#: Share of each token group in a prompt's weight. Pads and end tokens outnumber the subject 70 to 1, so each
#: group has a weight that its rows divide.
GROUP_WEIGHTS = {"bos": 1.0, "before": 1.0, "subject": 1.0, "after": 1.0, "first_eot": 1.0, "pad": 1.0}


#: Prompts for each entry of the keep set; entries use different templates
KEEP_TEMPLATES = 6
#: Approximate total of keep prompts. An entry of a long list has fewer prompts, but at least two: the demo's
#: 37 entries have six each, the 112 everyday things two. A prompt of 77 rows costs SD1.5's text encoder 14
#: GFLOP. The weight of an entry does not depend on its number of prompts.
KEEP_PROMPTS = 224
#: The same for kept people. Two prompts do not say well what a name is in others: with 100 people erased, two
#: for each kept one cost 3 points of their accuracy on demo-people.
KEEP_PEOPLE = 2048
#: Approximate total of prompts of kept neighbours; each neighbour has at least two
NEIGHBOUR_PROMPTS = 48


#: Mean squared norm of the rows of CLIP ViT-L/14, the text encoder of SD 1.4. Constants of papers that depend
#: on the size of its rows are divided by it.
CLIP_ENERGY = 784.0


@dataclass(frozen=True)
class Policy:
    """How one method pairs rows.

    Attributes:
        name: name in the paper and on the command line.
        solver: ``projection``, ``ridge``, or a solver of :mod:`~trace_core.closed_form.peers`.
        groups: token groups whose rows are remapped.
        templates: number of templates of the kind (0: the concept alone).
        alpha: default of the relative regulariser ``lambda = alpha tr(keep)/d``.
        relative: the paper's lambda as a share of the kept rows' energy, in place of ``alpha``.
        constants: the paper's other constants, by kind of concept; those of objects are the default.
        last: pair only the concept's last token, and keep only the last token of kept things.
        values: edit only the layers of the values, where keys and values are separate layers.
        weighting: ``group`` (equal weight per group) or ``row`` (equal weight per row, as in MACE's sums).
        keep: factor of the keep set's weight.
        tolerance: for the ridge: drop singular values of the edit below this share of the largest.
        source: paper and equation.
    """

    name: str
    solver: str
    groups: tuple[int, ...]
    templates: int
    source: str
    alpha: float = 1e-3
    relative: float | None = None
    weighting: str = "group"
    keep: float = 1.0
    tolerance: float = 1e-9
    constants: Mapping[str, Mapping] = field(default_factory=dict)
    last: bool = False
    values: bool = False


#: former policy names, which saved files and workflows still use
FORMER_NAMES = {"trace": "projection"}

POLICIES: dict[str, Policy] = {
    "projection": Policy(
        "projection",
        "projection",
        (BEFORE, SUBJECT, AFTER, FIRST_EOT, PAD),
        99,
        "TRACE (arXiv 2505.23312), stage 1; projection form derived here",
    ),
    "uce": Policy(
        "uce",
        "ridge",
        (SUBJECT,),
        0,
        "UCE (arXiv 2308.14761), eq. 7: last subject token, lambda 0.5",
        relative=0.5 / CLIP_ENERGY,
        weighting="row",
        last=True,
    ),
    "mace": Policy(
        "mace",
        "ridge",
        (AFTER, FIRST_EOT, PAD),
        30,
        "MACE (arXiv 2403.06135), eq. 2: co-words, end and pads",
        weighting="row",
    ),
    "trce": Policy("trce", "ridge", (FIRST_EOT,), 15, "TRCE (arXiv 2503.07389), stage 1: first end token"),
    "double": Policy(
        "double",
        "double",
        (SUBJECT,),
        0,
        "Double Projections (arXiv 2604.10032); that it erases the last subject token is our reading",
        constants={"object": {"anchored": True}},
        weighting="row",
        last=True,
    ),
    "speed": Policy(
        "speed",
        "speed",
        (SUBJECT,),
        0,
        "SPEED (arXiv 2503.07392): last subject token, values",
        constants={
            "object": {"tau": 0.1, "rho": 1.0, "beta": 0.0, "filtered": True},
            "person": {"tau": 1e-4, "rho": 0.05, "filtered": False},
            "explicit": {"rho": 0.7, "beta": 0.5},
        },
        weighting="row",
        last=True,
        values=True,
    ),
    "oce": Policy(
        "oce",
        "oce",
        (SUBJECT,),
        0,
        "OCE (arXiv 2605.28902): last subject token, values",
        constants={
            "object": {"e": 2000.0, "b": 10.0, "a": 0.0, "l": 10.0},
            "style": {"e": 500.0, "a": 1.0},
            "person": {"e": 3500.0, "b": 50.0, "a": 5.0},
            "explicit": {"e": 3000.0, "b": 20.0},
        },
        weighting="row",
        last=True,
        values=True,
    ),
    "rece": Policy(
        "rece",
        "rece",
        (SUBJECT,),
        0,
        "RECE (arXiv 2407.12383): UCE, then rounds against adversarial rows",
        relative=0.5 / CLIP_ENERGY,
        constants={
            "object": {"rounds": 1, "reach": REACH, "lambda": 0.1 / CLIP_ENERGY, "keep": 0.1},
            "style": {"reach": 0.01 * REACH},
            "explicit": {"rounds": 3},
        },
        weighting="row",
        last=True,
    ),
}


#: The policy ``projection`` for combined concepts. A projection removes whole directions, and the directions
#: of a combination are nearly those of its parts, which must stay. The ridge instead weighs the rows of the
#: combination against many rows of each part without the other.
COMBINED = Policy(
    "projection",
    "ridge",
    (BEFORE, SUBJECT, AFTER, FIRST_EOT, PAD),
    99,
    "derived here: UCE's equation on TRACE's rows",
    alpha=1e-6,
    keep=0.1,
    tolerance=1e-2,
)


@lru_cache(1024)
def row_weights(groups: tuple[int, ...], use: tuple[int, ...], weighting: str) -> Tensor:
    """Weight of every row of a prompt, ``[n]``, zero outside the groups ``use``, with sum 1.

    Prompts with the same groups share one tensor, which must not be changed.
    """
    groups = torch.tensor(groups)
    weights = torch.zeros(len(groups), dtype=torch.float64)
    for group in use:
        members = groups == group
        count = int(members.sum())
        if count:
            weights[members] = 1.0 if weighting == "row" else GROUP_WEIGHTS[GROUPS[group]] / count
    return weights / weights.sum().clamp_min(1e-300)


def keep_weights(policy: Policy, rows: TextRows) -> Tensor:
    """Weight of every row of a keep prompt, ``[n]``, with sum 1."""
    if not policy.last:
        return row_weights(rows.groups, tuple(range(len(GROUPS))), policy.weighting)
    weights = torch.zeros(len(rows.groups), dtype=torch.float64)
    weights[rows.rows(SUBJECT)[-1]] = 1.0
    return weights


def erased_pairs(
    policy: Policy,
    concept: Concept,
    kind: str,
    encoder: TextEncoder,
    contexts: Mapping[str, Sequence[str]],
    words: Sequence[str] = (),
) -> Iterator[tuple[Pairs, Tensor, TextRows, TextRows]]:
    """For each prompt of a concept: the pairs, the weight of every row, and both prompts' rows.

    The weights of a concept sum to ``concept.weight``, minus the weights of rows shared with the kept
    ``words`` of the name.
    """
    if policy.last:
        yield _last_tokens(concept, encoder)
        return
    prompts = prompt_pairs(concept, [*TEMPLATES[kind][: policy.templates], *contexts.get(kind, ())])
    rows = encoder.encode_all(
        key for prompt, subject, other, instead in prompts for key in ((prompt, subject), (other, instead))
    )
    for erase, want in zip(rows, rows):
        pairs = align(erase, want)
        weights = row_weights(pairs.groups, policy.groups, policy.weighting) * concept.weight / len(prompts)
        weights[shared_rows(encoder, erase, concept.target, words)] = 0.0
        yield pairs, weights, erase, want


def _last_tokens(concept: Concept, encoder: TextEncoder) -> tuple[Pairs, Tensor, TextRows, TextRows]:
    """The only pair of UCE and others: the last tokens of the concept and of its guide.

    Without a guide: the empty prompt's.
    """
    prompt, _, other, instead = prompt_pairs(concept, ["{}"])[0]
    erase, want = encoder.encode(prompt, concept.target), encoder.encode(other, instead or concept.anchor)
    last = erase.rows(SUBJECT)[-1]
    guide = (want.rows(SUBJECT) or want.rows(BOS) or want.rows(FIRST_EOT))[-1]
    pairs = Pairs(erase.embeddings[last : last + 1], want.embeddings[guide : guide + 1], (SUBJECT,), (guide,))
    return pairs, torch.full((1,), concept.weight, dtype=torch.float64), erase, want


def keep_prompts(
    policy: Policy,
    keep: Sequence[str],
    kinds: Sequence[str],
    contexts: Mapping[str, Sequence[str]],
    concepts: Sequence[Concept] = (),
    contrast: bool = True,
    people: int = 0,
) -> list[tuple[str, str]]:
    """Prompts of the keep set, each with its entry (to be marked as subject).

    Args:
        concepts: erased concepts. The parts of a combined concept are kept separately (see
            :func:`~trace_core.text.prompts.separating_prompts`), and no prompt contains both parts.
        contrast: keep the contrast words of the concepts too, see :mod:`~trace_core.closed_form.contrast`.
            The published methods have no such prompts.
        people: approximate total of prompts of kept people, who have no fewer than other entries.
    """
    objects = [*TEMPLATES["object"], *contexts.get("object", ())]
    inside = (
        contrast_prompts(concepts, objects, KEEP_TEMPLATES)
        if contrast and policy.name == "projection"
        else []
    )
    both = [c for c in concepts if c.parts]
    if policy.last:
        parts = [part for c in both for part in c.parts]
        return [(entry, entry) for entry in dict.fromkeys([*keep, *parts])]
    out = []
    several = max(2, min(KEEP_TEMPLATES, KEEP_PROMPTS // max(len(keep), 1)))
    each = people // max(sum(kind == "person" for kind in kinds), 1)
    for number, (entry, kind) in enumerate(zip(keep, kinds)):
        templates = [*TEMPLATES[kind], *contexts.get(kind, ())]
        count = max(several, min(len(templates), each)) if kind == "person" else several
        chosen = {(number + i * len(templates) // count) % len(templates) for i in range(count)}
        out += [(fill(templates[i], entry), entry) for i in sorted(chosen)]
    out += [(fill(template, word), word) for template, word in inside]
    out += [pair for c in both for pair in separating_prompts(c, keep, contexts)]
    return [(prompt, entry) for prompt, entry in out if not any(asks_for(prompt, c) for c in both)]


def neighbour_prompts(
    near: Mapping[str, str], contexts: Mapping[str, Sequence[str]], encoder: TextEncoder
) -> list[tuple[str, str]]:
    """Prompts of kept neighbours, each with its name; names use different templates of their kind.

    Prompts in which the encoder cannot find the name are left out.

    Args:
        near: neighbours with their kinds.
    """
    out = []
    count = max(2, min(KEEP_TEMPLATES, NEIGHBOUR_PROMPTS // max(len(near), 1)))
    for number, (name, kind) in enumerate(near.items()):
        templates = [*TEMPLATES[kind], *contexts.get(kind, ())]
        chosen = {(number + i * len(templates) // count) % len(templates) for i in range(count)}
        out += [(fill(templates[i], name), name) for i in sorted(chosen)]
    return [(prompt, name) for prompt, name in out if encoder.finds(prompt, name)]


def keep_shares(
    policy: Policy,
    prompts: Sequence[tuple[str, str]],
    keep: Sequence[str],
    kinds: Sequence[str],
    inside: Mapping[str, Sequence[str]],
) -> list[float]:
    """Weight of every keep prompt. Each entry of the keep list has weight 1 in total over its prompts.

    Args:
        prompts: result of :func:`keep_prompts`.
        kinds: kinds of the keep list's entries. People have more prompts each than other entries.
        inside: contrast words among them. A projection removes whole directions. It spares those of a
            contrast word only if the word weighs as much as the list, see
            :func:`~trace_core.closed_form.contrast.word_weight`.
    """
    words = {word for found in inside.values() for word in found}
    people = {entry for entry, kind in zip(keep, kinds) if kind == "person"} - words
    count = sum(entry in people for entry in keep)
    own, of_people = (sum(entry in names for _, entry in prompts) for names in (words, people))
    rest = policy.keep * (len(keep) - count) / max(len(prompts) - own - of_people, 1)
    person = policy.keep * count / max(of_people, 1)
    word = policy.keep * word_weight(len(words), len(keep)) * len(words) / own if own else 0.0
    return [word if entry in words else person if entry in people else rest for _, entry in prompts]
