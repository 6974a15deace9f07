"""What an edit does besides: to words that share tokens with a name, to long prompts, to weighted ones.
And what to say of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.base import POOLED
from ..errors import ConceptError, ModelError
from ..text.concepts import Concept, same
from ..text.encoding import BOS, GROUPS, SUBJECT, Pairs, TextEncoder, align
from ..text.spelling import check_spelling
from ..text.templates import EVERYDAY, fill
from .collateral import LIMIT as MUCH_CHANGED
from .config import ClosedFormConfig
from .contrast import FRAME, words_inside
from .edit import ContextEdit
from .policies import POLICIES, row_weights

#: concepts of a list that are looked at: every one costs two encodings, and one for each word that shares
#: tokens
NAMES = 2
WORDS = 5  #: words that are looked at, and told, of each
#: of a word: on demo-sd a van is in 1 picture of 12 at 0.22 and in all at 0.67, on demo-flux in 9 at 0.49
LIMIT = 0.3
#: what is left in a long or weighted prompt beyond what is left in a short one, from which on a user should
#: hear of it
LEFT = 0.3
PROMPT = {
    "object": "a photo of a {}",
    "style": "a photo, {}",
    "person": "a photo of {}",
    "explicit": "a photo of {}",
}
#: Stands before :data:`PROMPT` in a long prompt: words of quality as people write them, 20 tokens and more
#: with the rest.
LONG = "high quality, detailed, sharp focus, natural light, wide shot, cinematic, award winning, "
WEIGHT = 1.3  #: of ``(name:1.3)``
USED = tuple(group for group in range(len(GROUPS)) if group != BOS)


def side_effects(
    edit: ContextEdit,
    encoder: TextEncoder,
    concepts: Sequence[Concept],
    kinds: Sequence[str],
    keep: Sequence[str],
    eta: float,
    others: Mapping[str, str] | None = None,
) -> dict[str, dict]:
    """Of the first concepts, by target: ``short``, ``long`` and ``weighted`` prompts, and ``words`` that
    change with the name.

    ``short``, ``long`` and ``weighted`` are ``|E d| / |d|``, where d are the rows that tell the prompt from
    its counterpart, weighted by groups, and E the edit without its overshoot: 0 is gone, 1 is as before.
    Where another thing takes the concept's place, it is ``|E d - t| / |d - t|``, and t what tells that
    thing's prompt from the counterpart. None where the text encoder has no room for it. ``words`` is what is
    left of "a photo of a (word)", ``<E d, d> / <d, d>`` with the whole edit, the least first. All in the
    space of the rows.

    Args:
        keep: the keep list; words of it, of the name, and everyday ones are looked at.
        others: what takes a concept's place, by target.
    """
    others = others or {}
    out = {}
    for concept, kind in [(c, k) for c, k in zip(concepts, kinds) if not c.parts][:NAMES]:
        if _pairs(encoder, concept, PROMPT[kind]) is None:
            continue
        templates = {"short": PROMPT[kind], "long": LONG + PROMPT[kind]}
        forms = {
            name: _substitute_pairs(encoder, concept, template, others.get(concept.target))
            for name, template in templates.items()
        }
        empty = encoder.encode("").embeddings
        forms["weighted"] = (
            None if forms["short"] is None else [_weighted(pairs, empty) for pairs in forms["short"]]
        )
        found = {
            w: _pairs(encoder, Concept(w), PROMPT["object"])
            for w in sharing(encoder, concept, [*keep, *EVERYDAY], concepts)[:WORDS]
        }
        left = sorted((_kept_share(edit, p), w) for w, p in found.items() if p is not None)
        out[concept.target] = {
            name: None if f is None else _residual(edit, *f, eta=eta) for name, f in forms.items()
        } | {"words": {w: x for x, w in left}}
    return out


def sharing(
    encoder: TextEncoder, concept: Concept, things: Iterable[str], concepts: Sequence[Concept]
) -> list[str]:
    """Words inside a name, and things that share a token with it, less what is erased itself."""
    frame = {i for word in FRAME for i in encoder.content_ids(word)}
    own = set(encoder.content_ids(concept.target)) - frame
    words = (
        [w for w in concept.target.casefold().split() if w not in FRAME and len(w) > 2]
        if " " in concept.target
        else []
    )
    found = dict.fromkeys([*words_inside(concept), *words])
    for thing in things:
        ids = encoder.content_ids(thing)
        # longer ones are spelled by letters
        if thing not in found and len(ids) <= 3 and 2 * sum(i in own for i in ids) >= len(ids):
            found[thing] = None
    return [w for w in found if not any(same(w, c.target) for c in concepts)]


def _pairs(encoder: TextEncoder, concept: Concept, template: str) -> Pairs | None:
    """A prompt with the concept and its counterpart; None where it does not fit into one, or the name is
    not found in it.
    """
    keys = [
        (fill(template, concept.target), concept.target),
        (fill(template, concept.anchor), concept.anchor),
    ]
    try:
        return align(*encoder.encode_all(keys))
    except ConceptError:  # a figure in a report is no reason to lose the work
        return None


def _substitute_pairs(
    encoder: TextEncoder, concept: Concept, template: str, other: str | None
) -> list[Pairs] | None:
    """:func:`_pairs`, and those of what takes the concept's place, if anything does; None where one of
    them is.
    """
    found = [
        _pairs(encoder, c, template)
        for c in (concept, replace(concept, anchor=other) if other else None)
        if c
    ]
    return None if None in found else found


def _weighted(pairs: Pairs, empty: Tensor) -> Pairs:
    """The same prompt with the name at :data:`WEIGHT`, as ComfyUI weighs: away from the row that the empty
    prompt has there.
    """
    erase, want = pairs.erase.clone(), pairs.want
    at = [i for i, group in enumerate(pairs.groups) if group == SUBJECT and i < len(empty)]
    erase[at] = empty[at] + WEIGHT * (erase[at] - empty[at])
    return Pairs(erase, want, pairs.groups, pairs.partners)


def _residual(edit: ContextEdit, pairs: Pairs, aim: Pairs | None = None, eta: float = 0.0) -> float:
    """Share of the way from the counterpart, or to what takes the concept's place, that is left."""
    d = (pairs.erase - pairs.want).double()
    t = torch.zeros_like(d) if aim is None else (aim.want - pairs.want).double()
    weights = row_weights(pairs.groups, USED, "group").sqrt()[:, None]
    after = d + (edit.map(d) - d) / (1 + eta)
    return ((weights * (after - t)).norm() / (weights * (d - t)).norm().clamp_min(1e-12)).item()


def _kept_share(edit: ContextEdit, pairs: Pairs) -> float:
    """Share of a word's own rows that is still there: their part along themselves, weighted by groups."""
    d = (pairs.erase - pairs.want).double()
    weights = row_weights(pairs.groups, USED, "group")[:, None]
    return ((weights * d * edit.map(d)).sum() / (weights * d * d).sum().clamp_min(1e-12)).item()


# --------------------------------------------------------------------------------------------- what is said


def effect_warnings(
    effects: Mapping[str, Mapping], keep: Sequence[str], contrast: Mapping[str, Sequence[str]]
) -> list[str]:
    """Of :func:`side_effects`: only what matters, the weakest first, each with what would cure it."""
    out = []
    for target, found in effects.items():
        held = [*keep, *EVERYDAY, *contrast.get(target, ())]
        lost = [(w, r) for w, r in found["words"].items() if r < LIMIT and any(same(w, k) for k in held)]
        for word, left in lost[:3]:
            kept = any(same(word, k) for k in (*keep, *contrast.get(target, ())))
            cure = (
                "it is kept already, so lower the energy"
                if kept
                else f"to keep it, write {word} in the keep list"
            )
            out.append(
                f"of '{word}', which shares tokens with '{target}', {100 * max(left, 0.0):.0f} % is left; "
                f"{cure}"
            )
        for form, name in (
            ("long", "a prompt of 20 words"),
            ("weighted", f"a prompt with ({target}:{WEIGHT:g})"),
        ):
            if found[form] is not None and found[form] > found["short"] + LEFT:
                out.append(
                    f"{name} still holds {100 * found[form]:.0f} % of what tells '{target}', a short one "
                    f"{100 * found['short']:.0f} %; TRACE's finetune after the closed form takes more of it"
                )
    return out


def weight_warnings(
    backbone: Backbone, solved: Mapping, layers: Mapping, changes: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """What a user should hear before sharing the result: of ranks, kept rows, and combinations."""
    out = []
    for stream, info in solved.items():
        width = backbone.width(stream)
        if info["rank"] > 0.9 * width:
            out.append(
                f"the edit takes {info['rank']} of {width} directions of the {stream}; little text is left, "
                "lower energy"
            )
    worst = max(layers, key=lambda m: layers[m]["keep_change"], default=None)
    if worst and (change := layers[worst]["keep_change"]) > 0.75:
        out.append(
            f"the keep set's rows change by {100 * change:.0f} % in {worst}; lower strength or energy, or "
            "keep more"
        )
    for target, parts in changes.items():
        part = max(parts, key=parts.get)
        if parts[part] > MUCH_CHANGED:
            out.append(
                f"'{part}' without the rest of '{target}' gets {100 * parts[part]:.0f} % of its change and "
                "may go as well: this text encoder hardly tells them apart; TRACE's finetune after it "
                "gives most of that back"
            )
    return out


def negative_prompt_warnings(config: ClosedFormConfig, concepts: Sequence[Concept]) -> list[str]:
    """The warning of an overshoot: guidance away from the opposite of a concept draws the concept."""
    past = config.strength * max(c.strength for c in concepts) * (1 + (config.eta or 0.0))
    if POLICIES[config.policy].solver != "projection" or past <= 1:
        return []
    names = f"'{concepts[0].target}'" + (f" and {len(concepts) - 1} more" if len(concepts) > 1 else "")
    return [
        f"the edit steers past its aim, so {names} in a negative prompt may be drawn, not avoided; leave "
        "eta out and strength at 1"
    ]


def spelling_of(
    backbone: Backbone, encoder: TextEncoder, concepts: Sequence[Concept], stream: str
) -> list[str]:
    """Of names that a tower cannot spell: errors and warnings, unless the pooled vector alone is edited,
    which is CLIP's.

    Raises:
        ConceptError: naming one of which nothing is known.
        ModelError: if a pooled vector is to be edited that the model does not read.
    """
    if stream == POOLED:
        if backbone.width(POOLED) is None:
            raise ModelError(
                "this model reads no pooled vector of the text, so the pooled stream alone cannot be "
                "edited; use stream all"
            )
        return []
    remedy = (
        ", or edit CLIP's pooled vector alone, which can spell it (--stream pooled on the command line)"
        if backbone.width(POOLED)
        else ""
    )
    return check_spelling(encoder, concepts, remedy)
