"""Adapters fused by the library's own sums, and the dense matrices to compare with."""

from __future__ import annotations

import json

import torch

from trace_core.backbones.base import CONTEXT, POOLED, Layer
from trace_core.closed_form.policies import POLICIES, keep_prompts
from trace_core.lora import ErasureLora
from trace_core.lora.fusion import FusionConfig
from trace_core.lora.fusion.config import Adapter
from trace_core.lora.fusion.sums import Stream, collect
from trace_core.text.encoding import BOS, GROUPS, TextEncoder
from trace_core.text.templates import TEMPLATES, fill

WIDTH, LENGTH, POOL = 32, 16, 12
KEEP = ["bird", "green car", "sunflower"]
CONTEXTS = {"object": ("small {}", "my {}")}
POLICY = POLICIES["projection"]
NOTHING = lambda *_: None  # noqa: E731


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adapter(seed: int, *targets: str, rank: int = 3, layers=("k0", "k1"), columns=WIDTH) -> Adapter:
    """Random float64 factors on layers of :class:`FakeBackbone`, one part."""
    modules = {
        f"diffusion_model.{m}": (noise(seed + 7 * i, 10, rank), noise(seed + 7 * i + 1, rank, columns))
        for i, m in enumerate(layers)
    }
    lora = ErasureLora(modules, {"trace.concepts": json.dumps([[t, "", 1.0] for t in targets])})
    return Adapter(targets[0], lora, lora.parts(), {})


class Case:
    """Adapters through the library's own sums and solve, in float64, and everything an independent
    evaluation needs.
    """

    def __init__(self, fake, adapters, keep=KEEP, towers=("l",), pooled=0, **config):
        self.config = FusionConfig(**{"contexts": CONTEXTS, "keep_weight": 1.0, **config})
        self.adapters, self.keep = adapters, keep
        self.encoder = TextEncoder(fake.FakeClip(WIDTH, LENGTH, towers, pooled))
        self.backbone = fake.FakeBackbone(
            Layer, fake.random_weights(2, 10, WIDTH), fake.random_weights(1, 10, pooled) if pooled else []
        )
        self.backbone.layers = lambda stream: [
            layer for layer, _ in self.backbone._weights if layer.stream == stream
        ]
        everything = self.backbone._weights
        self.backbone.weights = lambda layers=None: (
            e for e in everything if layers is None or e[0] in layers
        )
        found = [
            Stream(self.backbone, s, adapters, self.config)
            for s in (CONTEXT, POOLED)
            if self.backbone.width(s)
        ]
        self.streams = {s.name: s for s in found if s.layers}
        collect(list(self.streams.values()), self.encoder, adapters, keep, self.config, NOTHING, {})
        for stream in self.streams.values():
            stream.solve(NOTHING, {})

    def rows(self, prompt: str, subject: str, share: float, stream=CONTEXT):
        """Weighted rows ``[n, d]`` of a prompt, from the definition: each row times the root of its
        weight.
        """
        rows = self.encoder.encode(prompt, subject)
        if stream == POOLED:
            return share**0.5 * rows.pooled[None].double()
        use = [g for g in range(len(GROUPS)) if g != BOS or self.config.start == "row"]
        present = [g for g in use if g in rows.groups]
        if self.config.weighting == "row":
            each = [1.0 / sum(g in use for g in rows.groups)] * len(rows.groups)
        else:
            each = [1.0 / (len(present) * rows.groups.count(g)) for g in rows.groups]
        each = torch.tensor([w if g in use else 0.0 for w, g in zip(each, rows.groups)], dtype=torch.float64)
        return (share * each).sqrt()[:, None] * rows.embeddings.double()

    def erased(self, a: Adapter, stream=CONTEXT):
        """C_i^T ``[n, d]``."""
        templates = [*TEMPLATES["object"], *CONTEXTS["object"]]
        return torch.cat(
            [
                self.rows(fill(t, c.target), c.target, c.weight / len(templates), stream)
                for c, _ in a.concepts
                for t in templates
            ]
        )

    def kept(self, stream=CONTEXT):
        prompts = keep_prompts(POLICY, self.keep, ["object"] * len(self.keep), CONTEXTS)
        found = [self.rows(p, e, len(self.keep) / len(prompts), stream) for p, e in prompts]
        return torch.cat(found) if found else torch.zeros(0, WIDTH, dtype=torch.float64)

    def lam(self, stream=CONTEXT):
        """lambda: alpha times the trace over d, start rows left out."""
        total = 0.0
        for rows, weight in [
            *((self.erased(a, stream), 1.0) for a in self.adapters),
            (self.kept(stream), self.config.keep_weight),
        ]:
            total += weight * rows.square().sum().item()
        if self.config.start == "row" and stream == CONTEXT and not self.encoder.bidirectional:
            total -= self.start_trace()
        width = WIDTH if stream == CONTEXT else POOL
        return self.config.alpha * total / width

    def start_trace(self):
        out = 0.0
        templates = [*TEMPLATES["object"], *CONTEXTS["object"]]
        prompts = [
            (fill(t, c.target), c.target, c.weight / len(templates))
            for a in self.adapters
            for c, _ in a.concepts
            for t in templates
        ]
        kept = keep_prompts(POLICY, self.keep, ["object"] * len(self.keep), CONTEXTS)
        prompts += [(p, e, self.config.keep_weight * len(self.keep) / len(kept)) for p, e in kept]
        for prompt, subject, share in prompts:
            out += self.rows(prompt, subject, share)[0].square().sum().item()
        return out

    def change(self, module: str, stream=CONTEXT):
        """The fused dW ``[out, d]`` of a module, before rounding."""
        found = []
        for number, a in enumerate(self.adapters):
            where = self.streams[stream].slices(a)
            if module in where:
                found.append(a.lora.modules[module][0] @ self.streams[stream].solved[number][where[module]])
        return sum(found)


def dense(a: Adapter, module: str) -> torch.Tensor:
    up, down = a.lora.modules[module]
    return up @ down


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a - b).norm() <= 1e-8 * b.norm()


THREE = [("cat",), ("red house",), ("truck", "lorry")]


def three():
    return [adapter(100 * i, *targets) for i, targets in enumerate(THREE)]
