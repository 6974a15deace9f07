"""The whole verification of one erasure on one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...backbones import backbone_for
from ...backbones.clips import check_clip
from ...backbones.sampling import SamplerConfig, decode
from ...errors import ConceptError, LoraError
from ...lora.erasure import ErasureLora
from ...lora.gating import base_mismatch, check_fits
from ...text.concepts import Concept, same, with_default_anchor
from ...text.neighbours import nearest_of
from ..protocol import Progress
from . import attacks, items, names
from . import judged as judging
from .drawn import concept_pictures, kept_names, kept_pictures, kept_things
from .layers import only_text, residuals
from .prompts import Probe, neutral_of, probes
from .result import Measured, Verification
from .scene import Effort, Scene
from .trajectory import Asked, curve, ways

MOST = 24  #: concepts of a file that are verified
RIVALS = 2  #: neighbours of a concept that a picture may show instead
THUMBNAILS = 4  #: pictures before and after on the page


def verify(
    model,
    clip,
    lora: ErasureLora,
    concepts: Sequence[Concept] = (),
    keep: Sequence[str] = (),
    synonyms: Mapping[str, Sequence[str]] | None = None,
    vae=None,
    config: SamplerConfig | None = None,
    effort: Effort | None = None,
    seed: int = 0,
    strength: float = 1.0,
    progress: Progress | None = None,
    judge=None,
) -> Verification:
    """What an erasure leaves of its concepts, and what it takes from the rest. Both models are read alone.

    Args:
        model: the unerased ComfyUI ModelPatcher.
        clip: the ComfyUI CLIP that belongs to it.
        lora: the erasure.
        concepts: what it erases; empty: the concepts in the file.
        keep: what must not change; empty: the model's own list, or everyday things.
        synonyms: other names by concept, which the erasure should cover.
        vae: for thumbnails; None: none are made.
        config: how pictures are sampled; None: as the model is meant to be.
        effort: how much is measured.
        seed: seed of everything random; the same seed gives the same figures.
        strength: strength of the erasure.
        progress: ``progress(phase, done, total)``; an exception raised in it cancels.
        judge: a :class:`~trace_core.evaluate.judges.ZeroShot` or
            :class:`~trace_core.evaluate.judges.NudeNet` that looks at the pictures too; None: nobody does.

    Raises:
        ConceptError: if there is no concept, a synonym is of none, or the CLIP does not fit.
        LoraError, ModelError: if the erasure does not fit the model.
    """
    check_clip(backbone_for(model), clip)
    check_fits(model, lora)
    judging.check(judge, vae)
    progress, config = progress or (lambda *_: None), config or SamplerConfig.for_model(model)
    scene = Scene(model, clip, lora, strength, config, effort or Effort(), seed, progress)
    named = _concepts(lora, concepts)
    notes = _notes(scene, named)
    synonyms = _synonyms(named[:MOST], synonyms or {})
    steered = [with_default_anchor(scene.steered(c), list(keep), named) for c in named[:MOST]]
    near, listed = names.nearest(scene, steered), kept_names(scene, steered, keep)
    things = kept_things(scene, steered, keep, near)
    others = {c.target: names.of_concept(c, steered, near, listed) for c in steered}
    stay = [t.name for t in things]
    measured = [_concept(scene, c, stay, synonyms.get(c.target, ()), others[c.target]) for c in steered]
    kept = kept_pictures(scene, things, steered, near, listed) if things else []
    if not kept:
        notes.append("Nothing is left to keep, so that no picture of it was compared.")
    seen = None
    if judge is not None:
        pairs = [(m.concept, m.drawn) for m in measured]
        seen = judging.judged(scene, vae, judge, pairs, kept, things, listed)
    return Verification.of(scene, measured, kept, notes, _thumbnails(scene, vae, measured, kept), seen)


def _concepts(lora: ErasureLora, given: Sequence[Concept]) -> list[Concept]:
    """The concepts to verify.

    Raises:
        ConceptError: if there is none.
    """
    try:
        own = [c for part in lora.parts() for c in part.concepts]
    except LoraError:
        own = []
    found = list(given) or own
    if not found:
        raise ConceptError("the file names no concept that it erases; name what it should erase")
    return found


def _synonyms(concepts: Sequence[Concept], given: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Synonyms by target.

    Raises:
        ConceptError: naming a concept that is not verified.
    """
    found: dict[str, list[str]] = {}
    for name, words in given.items():
        target = next((c.target for c in concepts if same(c.target, name)), None)
        if target is None:
            raise ConceptError(f"'{name}' has synonyms, but it is not among the concepts that are verified")
        found.setdefault(target, []).extend(words)
    return found


def _notes(scene: Scene, concepts: Sequence[Concept]) -> list[str]:
    notes = []
    if len(concepts) > MOST:
        notes.append(f"The file has {len(concepts)} concepts. The first {MOST} were verified.")
    mismatch = base_mismatch(scene.model, scene.lora)
    if mismatch:
        notes.append(f"{mismatch[0].upper()}{mismatch[1:]}.")
    if not only_text(scene):
        notes.append(
            "The erasure also acts on layers that do not read the text directly. The text layers alone would "
            "say little, so the predictions and the pictures decide."
        )
    return notes


def _concept(
    scene: Scene,
    concept: Concept,
    kept: Sequence[str],
    synonyms: Sequence[str],
    others: Sequence[str],
) -> Measured:
    """Everything that is measured of one concept."""
    kind, name = concept.kind, concept.target
    asked = probes(concept, kind, synonyms, scene.encoder)
    if not asked:
        raise ConceptError(f"the text encoder has no room for a prompt with '{name}'; shorten the name")
    plain = asked[0]
    found = ways(Asked(scene, asked, phase=f"predictions for '{name}'"))
    neutral = Probe("neutral", plain.prompt, plain.reference, neutral_of(concept, kind))
    line, towards = curve(Asked(scene, [neutral], phase=f"schedule of '{name}'"))
    near = [entry for entry, _ in nearest_of(name, kept, kind, scene.encoder)] if kind != "explicit" else []
    near = [entry for entry in near if not same(entry, concept.anchor)] or list(kept)
    lines = [*items.of_ways(concept, found)]
    if scene.config.cfg != 1:
        lines.append(items.of_negative(concept, towards))
    left = []
    if only_text(scene):
        known = [w.probe.name for w in found if w.known]
        left = residuals(scene, asked, f"text layers of '{name}'")
        lines += filter(None, [items.of_layers(concept, left, known)])
    drawn = concept_pictures(scene, concept, kind, near[:RIVALS], others)
    lines.append(items.of_pictures(drawn))
    tried = []
    if scene.effort.attacks:
        tried = [*filter(None, [attacks.rece(scene, plain)]), *attacks.mixed(scene, concept, kind, near)]
        lines += items.of_attacks(concept, tried)
    return Measured(concept, lines, found, line, towards, left, drawn, tried)


def _thumbnails(scene: Scene, vae, measured: Sequence[Measured], kept) -> list[tuple]:
    """``(prompt, before, after)`` with pictures ``[h, w, 3]`` of the first concepts and the weakest thing."""
    if vae is None:
        return []
    chosen = [(m.drawn, i) for i in range(THUMBNAILS) for m in measured if i < len(m.drawn.prompts)]
    chosen = chosen[:THUMBNAILS] + [(thing, 0) for thing in sorted(kept, key=items.rank)[:2]]
    out = []
    for number, (drawn, i) in enumerate(chosen):
        scene.progress("decode", number, len(chosen))
        pair = (decode(vae, z[i : i + 1])[0, ..., :3].cpu().float() for z in (drawn.before, drawn.after))
        out.append((drawn.prompts[i], *pair))
    return out
