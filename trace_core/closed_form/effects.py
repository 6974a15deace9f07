"""What an edit does besides: to words that share tokens with a name, to long prompts, to weighted ones. And what to say of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from ..backbones import Backbone
from ..backbones.base import POOLED
from ..concepts import EVERYDAY, Concept, fill, same
from ..errors import ConceptError, ModelError
from ..spelling import check_spelling
from ..text import BOS, GROUPS, SUBJECT, Pairs, TextEncoder, align
from . import spill
from .contrast import FRAME, words_inside
from .edit import ContextEdit
from .policies import row_weights

NAMES = 2  #: concepts of a list that are looked at: every one costs two encodings, and one for each word that shares tokens
WORDS = 5  #: words that are looked at, and told, of each
LIMIT = 0.6  #: as :data:`.spill.LIMIT`: a word that gets this share of the name's change looks different
LEFT = 0.5  #: share of the concept that is left in a long prompt from which on a user should hear of it
PROMPT = {"object": "a photo of a {}", "style": "a photo, {}", "person": "a photo of {}", "explicit": "a photo of {}"}
#: Stands before :data:`PROMPT` in a long prompt: words of quality as people write them, 20 tokens and more with the rest.
LONG = "high quality, detailed, sharp focus, natural light, wide shot, cinematic, award winning, "
WEIGHT = 1.3  #: of ``(name:1.3)``
USED = tuple(group for group in range(len(GROUPS)) if group != BOS)


def side_effects(edit: ContextEdit, encoder: TextEncoder, concepts: Sequence[Concept], kinds: Sequence[str], keep: Sequence[str],
                 eta: float) -> dict[str, dict]:  # fmt: skip
    """Of the first concepts, by target: ``long`` and ``weighted``, and ``words`` that change with the name.

    ``long`` and ``weighted`` are ``|E d| / |d|``, where d are the rows that tell the prompt from its counterpart, weighted by groups,
    and E the edit without its overshoot: 0 is gone, 1 is as before. None where the text encoder has no room for it. ``words`` are
    ``|dC|`` of "a photo of a (word)" over that of the same prompt with the name, the largest first. All in the space of the rows.

    Args:
        keep: the keep list; words of it, of the name, and everyday ones are looked at.
    """
    out = {}
    for concept, kind in [(c, k) for c, k in zip(concepts, kinds) if not c.parts][:NAMES]:
        prompt = PROMPT[kind]
        pairs = _pairs(encoder, concept, prompt)
        found = {"long": None, "weighted": _left(edit, _weighted(encoder, pairs, encoder.encode("").embeddings), eta)}
        try:
            found["long"] = _left(edit, _pairs(encoder, concept, LONG + prompt), eta)
        except ConceptError:  # longer than the text encoder reads
            pass
        own = _change(edit, encoder, fill(PROMPT["object"], concept.target))
        words = sharing(encoder, concept, [*keep, *EVERYDAY], concepts)[:WORDS]
        rows = encoder.encode_all((fill(PROMPT["object"], w), "") for w in words)
        ratios = {w: _changed(edit, r.embeddings, r.groups) / max(own, 1e-12) for w, r in zip(words, rows)}
        out[concept.target] = found | {"words": dict(sorted(ratios.items(), key=lambda item: -item[1]))}
    return out


def sharing(encoder: TextEncoder, concept: Concept, things: Iterable[str], concepts: Sequence[Concept]) -> list[str]:
    """Words inside a name, and things that share a token with it, less what is erased itself."""
    frame = {i for word in FRAME for i in encoder.content_ids(word)}
    own = set(encoder.content_ids(concept.target)) - frame
    words = [w for w in concept.target.casefold().split() if w not in FRAME and len(w) > 2] if " " in concept.target else []
    found = dict.fromkeys([*words_inside(concept), *words])
    for thing in things:
        if thing not in found and own & set(encoder.content_ids(thing)):
            found[thing] = None
    return [w for w in found if not any(same(w, c.target) for c in concepts)]


def _pairs(encoder: TextEncoder, concept: Concept, template: str) -> Pairs:
    keys = [(fill(template, concept.target), concept.target), (fill(template, concept.anchor), concept.anchor)]
    return align(*encoder.encode_all(keys))


def _weighted(encoder: TextEncoder, pairs: Pairs, empty: Tensor) -> Pairs:
    """The same prompt with the name at :data:`WEIGHT`, as ComfyUI weighs: away from the row that the empty prompt has there."""
    erase = pairs.erase.clone()
    at = [i for i, group in enumerate(pairs.groups) if group == SUBJECT and i < len(empty)]
    erase[at] = empty[at] + WEIGHT * (erase[at] - empty[at])
    return Pairs(erase, pairs.want, pairs.groups, pairs.partners)


def _left(edit: ContextEdit, pairs: Pairs, eta: float) -> float:
    d = (pairs.erase - pairs.want).double()
    weights = row_weights(pairs.groups, USED, "group").sqrt()[:, None]
    after = d + (edit.map(d) - d) / (1 + eta)
    return ((weights * after).norm() / (weights * d).norm().clamp_min(1e-12)).item()


def _change(edit: ContextEdit, encoder: TextEncoder, prompt: str) -> float:
    rows = encoder.encode(prompt)
    return _changed(edit, rows.embeddings, rows.groups)


def _changed(edit: ContextEdit, rows: Tensor, groups: tuple[int, ...]) -> float:
    """Norm of the change of a prompt's rows ``[n, d]``, weighted by groups."""
    rows = rows.double()
    return (row_weights(groups, USED, "group").sqrt()[:, None] * (edit.map(rows) - rows)).norm().item()


# --------------------------------------------------------------------------------------------- what is said


def effect_warnings(effects: Mapping[str, Mapping], keep: Sequence[str], contrast: Mapping[str, Sequence[str]]) -> list[str]:
    """Of :func:`side_effects`: only what matters, the weakest first, each with what would cure it."""
    out = []
    for target, found in effects.items():
        held = [*keep, *EVERYDAY, *contrast.get(target, ())]
        lost = [(w, r) for w, r in found["words"].items() if r > LIMIT and any(same(w, k) for k in held)]
        for word, ratio in lost[:3]:
            cure = "it is kept, so a lower energy is what is left to try" if any(same(word, k) for k in keep) else f"keep it by a line '{word}' in the keep list"
            out.append(f"'{word}' shares words with '{target}' and gets {100 * ratio:.0f} % of its change; {cure}")
        if found["long"] is not None and found["long"] > LEFT:
            out.append(f"in a prompt of 20 words {100 * found['long']:.0f} % of what tells '{target}' is left; TRACE's finetune after it takes most of that")
        if found["weighted"] > LEFT:
            out.append(f"as ({target}:{WEIGHT:g}) in a prompt {100 * found['weighted']:.0f} % of what tells it is left; a strength of {WEIGHT:g} reaches it")
    return out


def weight_warnings(backbone: Backbone, solved: Mapping, layers: Mapping, spilt: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What a user should hear before sharing the result: of ranks, kept rows, and combinations."""
    out = []
    for stream, info in solved.items():
        width = backbone.width(stream)
        if info["rank"] > 0.9 * width:
            out.append(f"the edit takes {info['rank']} of {width} directions of the {stream}; little text is left, lower energy")
    worst = max(layers, key=lambda m: layers[m]["keep_change"], default=None)
    if worst and (change := layers[worst]["keep_change"]) > 0.75:
        out.append(f"the keep set's rows change by {100 * change:.0f} % in {worst}; lower strength or energy, or keep more")
    for target, parts in spilt.items():
        part = max(parts, key=parts.get)
        if parts[part] > spill.LIMIT:
            out.append(f"'{part}' without the rest of '{target}' gets {100 * parts[part]:.0f} % of its change and may go as well: this text encoder "
                       "hardly tells them apart; TRACE's finetune after it gives most of that back")  # fmt: skip
    return out


def spelling_of(backbone: Backbone, encoder: TextEncoder, concepts: Sequence[Concept], stream: str) -> list[str]:
    """Of names that a tower cannot spell: errors and warnings, unless the pooled vector alone is edited, which is CLIP's.

    Raises:
        ConceptError: naming one of which nothing is known.
        ModelError: if a pooled vector is to be edited that the model does not read.
    """
    if stream == POOLED:
        if backbone.width(POOLED) is None:
            raise ModelError("this model reads no pooled vector of the text, so the pooled stream alone cannot be edited; use stream all")
        return []
    remedy = ", or edit CLIP's pooled vector alone, which can spell it (stream pooled)" if backbone.width(POOLED) else ""
    return check_spelling(encoder, concepts, remedy)
