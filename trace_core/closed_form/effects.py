"""Side effects of an edit on shared tokens, long prompts and weighted prompts, and warnings about them."""

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

#: Concepts of a list that are measured. Each costs two encodings, and one more per word with shared tokens.
NAMES = 2
WORDS = 5  #: measured and reported words per concept
#: Share left of a word below which to warn. On demo-sd a van is in 1 of 12 pictures at 0.22 and in all at
#: 0.67, on demo-flux in 9 at 0.49.
LIMIT = 0.3
#: Excess of a long or weighted prompt's residual over the short prompt's from which to warn
LEFT = 0.3
PROMPT = {
    "object": "a photo of a {}",
    "style": "a photo, {}",
    "person": "a photo of {}",
    "explicit": "a photo of {}",
}
#: Prefix to :data:`PROMPT` for a long prompt: quality words as people write them, more than 20 tokens in
#: total
LONG = "high quality, detailed, sharp focus, natural light, wide shot, cinematic, award winning, "
WEIGHT = 1.3  #: prompt weight of ``(name:1.3)``
USED = tuple(group for group in range(len(GROUPS)) if group != BOS)


def side_effects(
    edit: ContextEdit,
    encoder: TextEncoder,
    concepts: Sequence[Concept],
    kinds: Sequence[str],
    keep: Sequence[str],
    eta: float,
    substitutes: Mapping[str, str] | None = None,
) -> dict[str, dict]:
    """Side effects of the first concepts, by target: ``short``, ``long``, ``weighted`` and ``words``.

    ``short``, ``long`` and ``weighted`` are the residuals ``|E d| / |d|`` of three prompts. The rows d are
    the differences between the prompt and its counterpart, weighted by groups, and E is the edit without its
    overshoot: 0 is erased, 1 is unchanged. With a substitute the residual is ``|E d - t| / |d - t|``, where t
    is the difference between the substitute's prompt and the counterpart. A value is None if the prompt does
    not fit the text encoder. ``words`` is the share left of "a photo of a (word)", ``<E d, d> / <d, d>`` with
    the whole edit, in ascending order. All values are in the space of the rows.

    Args:
        keep: the keep list. Its words, the words of the name and everyday words are measured.
        substitutes: substitutes by target.
    """
    substitutes = substitutes or {}
    effects = {}
    for concept, kind in [(c, k) for c, k in zip(concepts, kinds) if not c.parts][:NAMES]:
        if _pairs(encoder, concept, PROMPT[kind]) is None:
            continue
        templates = {"short": PROMPT[kind], "long": LONG + PROMPT[kind]}
        forms = {
            name: _substitute_pairs(encoder, concept, template, substitutes.get(concept.target))
            for name, template in templates.items()
        }
        empty = encoder.encode("").embeddings
        forms["weighted"] = (
            None if forms["short"] is None else [weighted(pairs, empty) for pairs in forms["short"]]
        )
        found = {
            w: _pairs(encoder, Concept(w), PROMPT["object"])
            for w in sharing(encoder, concept, [*keep, *EVERYDAY], concepts)[:WORDS]
        }
        word_shares = sorted((_kept_share(edit, p), w) for w, p in found.items() if p is not None)
        effects[concept.target] = {
            name: None if f is None else _residual(edit, *f, eta=eta) for name, f in forms.items()
        } | {"words": {w: x for x, w in word_shares}}
    return effects


def sharing(
    encoder: TextEncoder, concept: Concept, things: Iterable[str], concepts: Sequence[Concept]
) -> list[str]:
    """Words inside a name, and things that share a token with it, without the erased names."""
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
        # longer ones are spelled letter by letter
        if thing not in found and len(ids) <= 3 and 2 * sum(i in own for i in ids) >= len(ids):
            found[thing] = None
    return [w for w in found if not any(same(w, c.target) for c in concepts)]


def _pairs(encoder: TextEncoder, concept: Concept, template: str) -> Pairs | None:
    """A prompt with the concept, aligned with its counterpart.

    None if it does not fit or the name is not found.
    """
    keys = [
        (fill(template, concept.target), concept.target),
        (fill(template, concept.anchor), concept.anchor),
    ]
    try:
        return align(*encoder.encode_all(keys))
    except ConceptError:  # a missing figure in a report must not lose the work
        return None


def _substitute_pairs(
    encoder: TextEncoder, concept: Concept, template: str, substitute: str | None
) -> list[Pairs] | None:
    """:func:`_pairs` of the concept and, if there is one, of its substitute. None if either is None."""
    found = [
        _pairs(encoder, c, template)
        for c in (concept, replace(concept, anchor=substitute) if substitute else None)
        if c
    ]
    return None if None in found else found


def weighted(pairs: Pairs, empty: Tensor) -> Pairs:
    """The same prompt with the name at :data:`WEIGHT`, as ComfyUI weighs: relative to the empty prompt."""
    erase, want = pairs.erase.clone(), pairs.want
    at = [i for i, group in enumerate(pairs.groups) if group == SUBJECT and i < len(empty)]
    erase[at] = empty[at] + WEIGHT * (erase[at] - empty[at])
    return Pairs(erase, want, pairs.groups, pairs.partners)


def _residual(edit: ContextEdit, pairs: Pairs, aim: Pairs | None = None, eta: float = 0.0) -> float:
    """Share of the difference that is left, relative to the counterpart or to the substitute."""
    d = (pairs.erase - pairs.want).double()
    t = torch.zeros_like(d) if aim is None else (aim.want - pairs.want).double()
    weights = row_weights(pairs.groups, USED, "group").sqrt()[:, None]
    after = d + (edit.map(d) - d) / (1 + eta)
    return ((weights * (after - t)).norm() / (weights * (d - t)).norm().clamp_min(1e-12)).item()


def _kept_share(edit: ContextEdit, pairs: Pairs) -> float:
    """Share of a word's own difference that is left: its projection on itself, weighted by groups."""
    d = (pairs.erase - pairs.want).double()
    weights = row_weights(pairs.groups, USED, "group")[:, None]
    return ((weights * d * edit.map(d)).sum() / (weights * d * d).sum().clamp_min(1e-12)).item()


# --------------------------------------------------------------------------------------------- warnings


def effect_warnings(
    effects: Mapping[str, Mapping], keep: Sequence[str], contrast: Mapping[str, Sequence[str]]
) -> list[str]:
    """Warnings about :func:`side_effects`, the weakest word first, each with a remedy."""
    out = []
    for target, found in effects.items():
        kept_names = [*keep, *EVERYDAY, *contrast.get(target, ())]
        weakened = [
            (w, r) for w, r in found["words"].items() if r < LIMIT and any(same(w, k) for k in kept_names)
        ]
        for word, left in weakened[:3]:
            is_kept = any(same(word, k) for k in (*keep, *contrast.get(target, ())))
            remedy = (
                "it is kept already, so lower the energy"
                if is_kept
                else f"to keep it, write {word} in the keep list"
            )
            out.append(
                f"{100 * max(left, 0.0):.0f} % of '{word}' is left, because it shares tokens with "
                f"'{target}'; {remedy}"
            )
        for form, name in (
            ("long", "a prompt of 20 words"),
            ("weighted", f"a prompt with ({target}:{WEIGHT:g})"),
        ):
            if found[form] is not None and found[form] > found["short"] + LEFT:
                out.append(
                    f"{100 * found[form]:.0f} % of '{target}' is left in {name}, against "
                    f"{100 * found['short']:.0f} % in a short prompt; TRACE's finetune after the closed form "
                    "removes more"
                )
    return out


def weight_warnings(
    backbone: Backbone, solved: Mapping, layers: Mapping, changes: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Warnings about high rank, changed keep rows, and combinations with much collateral change."""
    out = []
    for stream, info in solved.items():
        width = backbone.width(stream)
        if info["rank"] > 0.9 * width:
            out.append(
                f"the edit uses {info['rank']} of {width} directions of the {stream}, so little other text "
                "is left; lower the energy"
            )
    worst = max(layers, key=lambda m: layers[m]["keep_change"], default=None)
    if worst and (change := layers[worst]["keep_change"]) > 0.75:
        out.append(
            f"the rows of the keep set change by {100 * change:.0f} % in {worst}; lower strength or "
            "energy, or keep more"
        )
    for target, parts in changes.items():
        part = max(parts, key=parts.get)
        if parts[part] > MUCH_CHANGED:
            out.append(
                f"'{part}' without the rest of '{target}' gets {100 * parts[part]:.0f} % of the change of "
                "the combination and may be erased as well, because this text encoder hardly separates the "
                "two; TRACE's finetune after the closed form restores most of it"
            )
    return out


def negative_prompt_warnings(config: ClosedFormConfig, concepts: Sequence[Concept]) -> list[str]:
    """Warnings about an overshoot: in a negative prompt, guidance then draws the concept."""
    past = config.strength * max(c.strength for c in concepts) * (1 + (config.eta or 0.0))
    if POLICIES[config.policy].solver != "projection" or past <= 1:
        return []
    names = f"'{concepts[0].target}'" + (f" and {len(concepts) - 1} more" if len(concepts) > 1 else "")
    return [
        f"the edit steers past its target, so {names} in a negative prompt may be drawn instead of avoided; "
        "leave eta out and strength at 1"
    ]


def people_note(config: ClosedFormConfig, count: int) -> str:
    """What the values of people mean; see :func:`~trace_core.closed_form.config.of_people`."""
    erased = "1 person is" if count == 1 else f"{count} people are"
    return (
        f"energy is {config.energy:g} and eta {config.eta:g}, because {erased} erased and others stay; in a "
        "negative prompt an erased name may now and then be drawn, which eta 0 with energy 0.97 avoids"
    )


def spelling_of(
    backbone: Backbone, encoder: TextEncoder, concepts: Sequence[Concept], stream: str
) -> list[str]:
    """Check that the text encoder can spell the names. Returns warnings.

    The check is skipped if only the pooled vector is edited, because CLIP spells every name.

    Raises:
        ConceptError: naming a concept of which no character is known.
        ModelError: if the pooled vector is to be edited but the model does not read it.
    """
    if stream == POOLED:
        if backbone.width(POOLED) is None:
            raise ModelError(
                "this model reads no pooled vector of the text, so the pooled stream alone cannot be "
                "edited; use stream all"
            )
        return []
    remedy = (
        ", or edit only CLIP's pooled vector, because CLIP can spell it (--stream pooled on the command line)"
        if backbone.width(POOLED)
        else ""
    )
    return check_spelling(encoder, concepts, remedy)
