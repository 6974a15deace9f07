"""The result of a verification: a verdict, its items, and the figures behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from ... import __version__
from ...text.concepts import Concept
from . import thresholds as at
from .drawn import Drawn
from .items import Item, of_kept, rank
from .judged import Judged
from .layers import Residual
from .scene import Scene
from .trajectory import Curve, Way

SENTENCES = {
    at.PASS: "The concept is gone, and what was to stay has stayed.",
    at.WARN: "Something is left or has changed. Look at the items with WARN.",
    at.FAIL: "The erasure does not hold what it promises. Look at the items with FAIL.",
}


@dataclass(frozen=True)
class Measured:
    """What was measured of one concept."""

    concept: Concept
    items: Sequence[Item]
    ways: Sequence[Way]
    curve: Curve
    towards: float
    residuals: Sequence[Residual]
    drawn: Drawn
    attacks: Sequence[Way]

    def to_dict(self) -> dict:
        """Figures without pictures."""
        layers: dict[str, dict[str, float]] = {}
        for r in self.residuals:
            layers.setdefault(r.probe, {})[r.layer] = round(r.left, 4)
        return {
            "concept": str(self.concept),
            "wordings": {w.probe.name: _way(w) for w in self.ways},
            "schedule": asdict(self.curve),
            "negative": self.towards,
            "text layers": layers,
            "pictures": _pictures(self.drawn),
            "attacks": {w.probe.name: _way(w) for w in self.attacks},
        }


def _way(way: Way) -> dict:
    return {"prompt": way.probe.prompt, "reach": way.reach, "counts": way.known}


def _pictures(drawn: Drawn) -> dict:
    return {
        "name": drawn.name,
        "near": drawn.near,
        "samples": len(drawn.prompts),
        "shown_before": drawn.usable,
        "still_shown": drawn.still,
        "drawn": drawn.drawn,
        "names": list(drawn.names),
        "evidence_before": [round(x, 3) for x in drawn.shown_before.tolist()],
        "evidence_after": [round(x, 3) for x in drawn.shown_after.tolist()],
        "moved": drawn.moved,
        "moves": [round(x, 3) for x in drawn.moves.tolist()],
    }


@dataclass(frozen=True)
class Verification:
    """A verdict on an erasure.

    Attributes:
        status: ``PASS``, ``WARN`` or ``FAIL``: the most severe of the items that decide.
        items: every item, the most severe first.
        leak: the way that reaches farthest back, as ``name, concept, reach``.
        weakest: the kept thing that loses most, as ``name, still, of, moved``; None if nothing is kept.
        concepts: what was measured of each concept.
        kept: pictures of what must stay, the weakest first.
        notes: sentences beside the items.
        setting: what the figures were measured with.
        thumbnails: ``(prompt, before, after)`` with pictures ``[h, w, 3]`` in 0..1.
        judged: what the user's own judge saw; None without one.
    """

    status: str
    items: tuple[Item, ...]
    leak: dict
    weakest: dict | None
    concepts: tuple[Measured, ...]
    kept: tuple[Drawn, ...]
    notes: tuple[str, ...]
    setting: dict
    thumbnails: tuple = field(default=(), repr=False)
    judged: Judged | None = None

    @classmethod
    def of(
        cls, scene: Scene, measured: Sequence[Measured], kept, notes, thumbnails=(), judged=None
    ) -> Verification:
        """The verdict of all that was measured."""
        found = [*(item for m in measured for item in m.items), *of_kept(kept)]
        found += judged.items if judged else ()
        status = max((i.status for i in found if i.decides), key=at.ORDER.index)
        ordered = sorted(found, key=lambda i: (not i.decides, -at.ORDER.index(i.status)))
        order = sorted(kept, key=rank)
        weak = order[0] if order else None
        weakest = weak and {"name": weak.name, "still": weak.still, "of": weak.usable, "moved": weak.moved}
        return cls(
            status,
            tuple(ordered),
            _leak(measured),
            weakest,
            tuple(measured),
            tuple(order),
            tuple(notes),
            _setting(scene),
            tuple(thumbnails),
            judged,
        )

    @property
    def passed(self) -> bool:
        return self.status == at.PASS

    @property
    def sentence(self) -> str:
        """The verdict in plain words."""
        return SENTENCES[self.status]

    def to_dict(self) -> dict:
        """Everything but the pictures, for JSON."""
        judge = {"judged": self.judged.to_dict()} if self.judged else {}
        return {
            "verdict": self.status,
            "sentence": self.sentence,
            "leak": self.leak,
            "weakest": self.weakest,
            "items": [i.to_dict() for i in self.items],
            "notes": list(self.notes),
            "concepts": [m.to_dict() for m in self.concepts],
            "kept": [_pictures(d) for d in self.kept],
            "setting": self.setting,
            **judge,
        }


def _leak(measured: Sequence[Measured]) -> dict:
    """The wording that reaches farthest back."""
    found = [(w.reach, w.probe.name, m.concept.target) for m in measured for w in m.ways if w.known]
    reach, name, concept = max(found)
    return {"name": name, "concept": concept, "reach": reach}


def _setting(scene: Scene) -> dict:
    c = scene.config
    return {
        "trace": __version__,
        "model": {"kind": scene.backbone.kind, "hash": scene.backbone.model_hash()},
        "fingerprint": scene.lora.fingerprint,
        "strength": scene.strength,
        "window": list(scene.lora.window),
        "seed": scene.seed,
        "effort": asdict(scene.effort),
        "sampler": f"{c.sampler}/{c.scheduler}, {c.steps} steps, cfg {c.cfg:g}, {c.width} x {c.height}",
    }
