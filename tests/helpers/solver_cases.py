"""Erasures in float64 through the library's own collection, for the tests of the solvers."""

from __future__ import annotations

import torch

from trace_core.backbones.base import POOLED, Layer
from trace_core.closed_form import POLICIES, ClosedFormConfig
from trace_core.closed_form.accumulate import accumulate
from trace_core.closed_form.edit import LayerEdits
from trace_core.closed_form.policies import erased_pairs
from trace_core.closed_form.solve import solve
from trace_core.text.concepts import Concept
from trace_core.text.encoding import TextEncoder

WIDTH, LENGTH = 96, 16
WIDE = 384  #: more than the concepts of CONCEPTS have directions
CONCEPTS = [Concept("cat", "dog"), Concept("caterpillar"), Concept("red house", "tree", weight=2.0)]
KEEP = ["bird", "green car", "sunflower", "boat", "person"]
CONTEXTS = {"object": ("small {}", "{} now", "my {}")}


def random_rows(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def definite(d: int, seed: int = 0, condition: float = 1e4) -> torch.Tensor:
    """A keep matrix with the given condition number."""
    q, _ = torch.linalg.qr(random_rows(d, d, seed))
    return (q * torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), d, dtype=torch.float64)) @ q.T


class Case:
    """An erasure through the real collect, with everything a test wants to look at."""

    def __init__(
        self,
        fake,
        policy="projection",
        concepts=None,
        width=WIDTH,
        towers=("l",),
        pooled=0,
        keep=KEEP,
        **config,
    ):
        self.policy = POLICIES[policy]
        self.concepts = [Concept("cat", "dog")] if concepts is None else concepts
        self.config = ClosedFormConfig(policy=policy, contexts=CONTEXTS, **config).settled(self.concepts)
        self.keep = keep
        self.encoder = TextEncoder(fake.FakeClip(width, LENGTH, towers, pooled))
        extra = fake.random_weights(1, 20, pooled + 6, seed=2) if pooled else []
        self.backbone = fake.FakeBackbone(Layer, fake.random_weights(4, 24, width), extra)
        if pooled:  # as in SDXL, size embeddings stand behind the pooled vector
            self.backbone._weights[-1] = (Layer("diffusion_model.p0", POOLED, pooled), extra[0])
        self.sums = accumulate(
            self.backbone, self.encoder, self.policy, self.concepts, self.keep, self.config, lambda *_: None
        )
        self.solved = {
            stream: solve(self.policy, part, self.config, lambda stream=stream: self.gram(stream))
            for stream, part in self.sums.items()
        }
        self.edits = {stream: edit for stream, (edit, _) in self.solved.items()}

    def gram(self, stream):
        """``sum W^T W`` over the stream's layers, in float64."""
        parts = [w[:, : layer.columns] for layer, w in self.backbone.weights() if layer.stream == stream]
        return sum(w.T @ w for w in parts)

    def pairs(self):
        """``(erase, want, weight)`` of every row that is remapped, float64."""
        for concept in self.concepts:
            for pairs, weights, *_ in erased_pairs(self.policy, concept, "object", self.encoder, CONTEXTS):
                for c, g, w in zip(pairs.erase.double(), pairs.want.double(), weights.tolist()):
                    if w > 0:
                        yield c, g, w

    def differences(self) -> torch.Tensor:
        """Every ``c - g`` that is remapped and not zero, ``[n, d]``."""
        rows = [(c - g, c) for c, g, _ in self.pairs()]
        return torch.stack([d for d, c in rows if d.norm() > 1e-6 * c.norm()])

    def edited(self):
        """``(layer, W, W')`` in float64."""
        for layer, weight in self.backbone.weights():
            edit = self.edits[layer.stream]
            change = weight.clone().zero_()
            if isinstance(edit, LayerEdits):
                left, right = edit._solve(weight[:, : layer.columns])
            else:
                left, right = weight[:, : layer.columns] @ edit.U, edit.V.T
            change[:, : layer.columns] = left @ right
            yield layer, weight, weight + change


GRADED = [
    Concept("cat", "dog", strength=0.5),
    Concept("caterpillar"),
    Concept("red house", "tree", 2.0, strength=1.5),
]
