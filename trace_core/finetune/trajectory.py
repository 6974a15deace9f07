"""Training points: latents on the network's own sampling trajectories, with the base model's predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from ..backbones import Backbone
from ..errors import TraceError
from .attention import focus_region
from .prompts import Prompts

#: ``tick(phase, done, total)``, called before every model evaluation; an exception raised in it cancels
Tick = Callable[[str, int, int], None]


@dataclass
class Points:
    """Latents on trajectories, with the base model's predictions.

    Attributes:
        x: ``[n, c, h, w]`` on ComfyUI's noise scale, in the bank's storage type.
        sigma: ``[n]`` noise levels.
        percent: ``[n]`` finished fraction of the schedule, 0..1.
        prompt: ``[n]`` number in :class:`Prompts` of the latent's prompt.
        neutral: ``[n]`` number of the prompt without the concept (keep prompts: the same prompt).
        predictions: name -> raw predictions ``[n, c, h, w]`` of the base model at x.
    """

    x: Tensor
    sigma: Tensor
    percent: Tensor
    prompt: Tensor
    neutral: Tensor
    predictions: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sigma)

    def __getitem__(self, which: Tensor) -> Points:
        out = {f.name: getattr(self, f.name)[which] for f in fields(self) if f.name != "predictions"}
        return Points(**out, predictions={k: v[which] for k, v in self.predictions.items()})

    @property
    def nbytes(self) -> int:
        tensors = [getattr(self, f.name) for f in fields(self) if f.name != "predictions"]
        return sum(t.nbytes for t in (*tensors, *self.predictions.values()))

    @staticmethod
    def join(parts: Sequence[Points]) -> Points:
        """Points concatenated; all parts need the same predictions."""
        out = {
            f.name: torch.cat([getattr(p, f.name) for p in parts])
            for f in fields(Points)
            if f.name != "predictions"
        }
        return Points(
            **out, predictions={k: torch.cat([p.predictions[k] for p in parts]) for k in parts[0].predictions}
        )


@dataclass(frozen=True)
class Sampling:
    """How trajectories are sampled.

    Attributes:
        steps: steps of a trajectory, evenly spaced in the schedule.
        cfg: classifier-free guidance; 1 for none.
        batch: trajectories sampled at once.
        dtype: storage type of latents and predictions.
    """

    steps: int = 12
    cfg: float = 3.0
    batch: int = 32
    dtype: torch.dtype = torch.float16

    @property
    def guided(self) -> bool:
        return self.cfg != 1.0


def schedule(backbone: Backbone, steps: int, offset: float = 0.0) -> tuple[list[float], list[float]]:
    """Percents and noise levels of a trajectory: the largest level, then step i at ``(i + offset) / steps``.

    There are ``steps + 1`` levels. A different ``offset`` in 0..1 each time also visits the levels between
    the steps.
    """
    percents = [0.0, *((i + offset) / steps for i in range(steps))]
    return percents, [backbone.sigma_at(p) for p in percents]


@torch.no_grad()
def trajectories(
    backbone: Backbone,
    prompts: Prompts,
    numbers: Sequence[int],
    uncond: int,
    sampling: Sampling,
    seed: int,
    tick: Callable[[], None],
    until: float = 1.0,
) -> Iterator[tuple[float, float, Tensor, dict[str, Tensor]]]:
    """Sample by Euler's method with classifier-free guidance (Ho and Salimans, arXiv 2207.12598).

    Args:
        until: the part of the schedule, 0..1, after which a trajectory is left unfinished.

    Yields:
        for every step percent, sigma, x ``[n, c, h, w]`` rounded to the bank's type, and the network's
        predictions at x by name (``prompt``; ``uncond`` under guidance); last, with sigma 0, the finished
        latents without predictions.
    """
    generator = torch.Generator().manual_seed(seed)
    offset = torch.rand(1, generator=generator).item()
    percents, sigmas = schedule(backbone, sampling.steps, offset)
    shape = (len(numbers), *prompts._shape)
    noise = torch.randn(shape, generator=generator).to(backbone.device)
    first = torch.tensor(sigmas[0], device=backbone.device)
    x = backbone.model_sampling.noise_scaling(first, noise, torch.zeros_like(noise), True)
    given = [*numbers, *[uncond] * len(numbers)] if sampling.guided else list(numbers)
    condition = prompts.batch(given)
    for percent, sigma, after in zip(percents, sigmas, [*sigmas[1:], 0.0]):
        if percent > until:
            return
        tick()
        x = x.to(sampling.dtype).float()  # so that the predictions belong to the stored latents
        doubled = torch.cat([x, x]) if sampling.guided else x
        level = torch.full((len(doubled),), sigma, device=x.device)
        out = condition.predict(doubled, level)
        predictions = {"prompt": out[: len(x)]}
        guided = predictions["prompt"]
        if sampling.guided:
            predictions["uncond"] = out[len(x) :]
            guided = predictions["uncond"] + sampling.cfg * (predictions["prompt"] - predictions["uncond"])
        yield percent, sigma, x, predictions
        x0 = backbone.denoised_of(x, level[: len(x)], guided)
        x = x + (x - x0) / sigma * (after - sigma)
    yield 1.0, 0.0, x, {}


class TrajectoryBank:
    """Points of the roles ``erase`` and ``keep`` with the base model's predictions, of bounded size.

    The erase points are sampled repeatedly from the current student. Latents of a model that still draws the
    concept already show it, and training only on them leaves the outline of the concept. The keep points come
    from the base model, whose predictions are a by-product of sampling.
    """

    def __init__(
        self, backbone: Backbone, prompts: Prompts, sampling: Sampling, uncond: int, limit: int = 2 << 30
    ):
        """``limit``: largest size of all points in bytes."""
        self.backbone, self.prompts, self.sampling, self.uncond, self.limit = (
            backbone,
            prompts,
            sampling,
            uncond,
            limit,
        )
        self.points: dict[str, Points] = {}

    @property
    def nbytes(self) -> int:
        return sum(points.nbytes for points in self.points.values())

    def expected_bytes(self, trajectories: int, predictions: int) -> int:
        """Expected size of trajectories with this number of predictions at every point."""
        latent = torch.Size(self.prompts._shape).numel() * torch.finfo(self.sampling.dtype).bits // 8
        return trajectories * (self.sampling.steps + 1) * latent * (1 + predictions)

    def sample(
        self,
        role: str,
        pairs: Sequence[tuple[int, int]],
        needed: Sequence[str],
        seed: int,
        state: Callable[[str], None],
        student: str,
        tick: Tick,
        until: float = 1.0,
    ) -> None:
        """Replace the points of a role by newly sampled ones.

        Args:
            pairs: prompt and neutral prompt of every trajectory.
            needed: names of the predictions to store, from :data:`REFERENCES`.
            seed: seed of the noise.
            state: function that switches the network between ``base``, ``start`` and ``student``.
            student: the state to sample from.
            tick: called before every model evaluation.
            until: the part of the schedule, 0..1, after which no points are needed.

        Raises:
            TraceError: if the bank would exceed its limit.
        """
        self._check_room(role, len(pairs), len(needed))
        levels = min(self.sampling.steps, int(until * self.sampling.steps) + 1) + 1
        parts, total, done = [], -(-len(pairs) // self.sampling.batch) * levels, 0

        def sampled():
            nonlocal done
            tick(f"sample {role}", done, total)
            done += 1

        state(student)
        for number, at in enumerate(range(0, len(pairs), self.sampling.batch)):
            batch_pairs = pairs[at : at + self.sampling.batch]
            steps = trajectories(
                self.backbone,
                self.prompts,
                [p for p, _ in batch_pairs],
                self.uncond,
                self.sampling,
                seed * 1009 + number,
                sampled,
                until,
            )
            for percent, sigma, x, found in steps:
                if sigma:
                    parts.append(
                        self._points(
                            batch_pairs, percent, sigma, x, found if student == "base" else {}, needed
                        )
                    )
        points = Points.join(parts)
        self.points[role] = self._completed(role, points, needed, state, tick)
        state("student")

    def _check_room(self, role: str, count: int, predictions: int) -> None:
        """Refuse trajectories of a role that do not fit beside the other roles' points."""
        other_bytes = sum(points.nbytes for name, points in self.points.items() if name != role)
        size = self.expected_bytes(count, predictions)
        if other_bytes + size > self.limit:
            raise TraceError(
                f"{count} trajectories take {(other_bytes + size) >> 20} MB, more than the bank's "
                f"{self.limit >> 20} MB; use fewer trajectories, fewer steps or a smaller picture"
            )

    def _points(
        self, pairs, percent: float, sigma: float, x: Tensor, found: dict[str, Tensor], needed
    ) -> Points:
        """The points of one step. The base model's predictions from sampling are stored if needed."""
        compact = lambda t: t.to(self.sampling.dtype).cpu()  # noqa: E731
        stored = {{"prompt": "concept"}.get(k, k): compact(v) for k, v in found.items()}
        n = len(pairs)
        return Points(
            compact(x),
            torch.full((n,), sigma),
            torch.full((n,), percent),
            torch.tensor([p for p, _ in pairs]),
            torch.tensor([g for _, g in pairs]),
            {k: v for k, v in stored.items() if k in needed},
        )

    @torch.no_grad()
    def _completed(self, role: str, points: Points, needed: Sequence[str], state, tick: Tick) -> Points:
        """Evaluate the predictions that sampling did not provide, in batches of points."""
        missing = [name for name in needed if name not in points.predictions]
        if not missing:
            return points
        size = 2 * self.sampling.batch
        total, done, out = -(-len(points) // size) * len(missing), 0, {}
        for name in missing:
            network, text = REFERENCES[name]
            state(network)
            evaluate, found = self._region if name == REGION else self._predicted, []
            for at in range(0, len(points), size):
                tick(f"teacher on {role}", done, total)
                part, done = points[torch.arange(at, min(at + size, len(points)))], done + 1
                numbers = {"prompt": part.prompt, "neutral": part.neutral}.get(
                    text, [self.uncond] * len(part)
                )
                found.append(evaluate(part, numbers).to(self.sampling.dtype).cpu())
            out[name] = torch.cat(found)
        return replace(points, predictions={**points.predictions, **out})

    def _predicted(self, points: Points, numbers) -> Tensor:
        x, sigma = points.x.to(self.backbone.device).float(), points.sigma.to(self.backbone.device)
        return self.prompts.batch(numbers).predict(x, sigma)

    def _region(self, points: Points, numbers) -> Tensor:
        """``[n, 1, h, w]``: where the network itself attends to the concept."""
        maps, batch, device = [], self.prompts.batch(numbers), self.backbone.device
        with self.backbone.attention_maps(maps):
            batch.predict(points.x.to(device).float(), points.sigma.to(device))
        out = torch.zeros(len(points), 1, *points.x.shape[-2:], device=device)
        for places, layers in batch.attention(maps, slice(0, len(points))):
            columns = self.prompts.columns([numbers[i] for i in places], False).to(device)
            out[places] = focus_region(layers, columns, points.x.shape[-2:])
        return out


REGION = "region"  #: region of the concept from the base model's attention, stored like a prediction

#: name -> (state of the network, prompt) of a prediction
REFERENCES = {
    "concept": ("base", "prompt"),  # p0(c); of keep points p0(p)
    "uncond": ("base", "uncond"),  # p0(0)
    "neutral": ("base", "neutral"),  # p0(g): the same prompt without the concept, or with the anchor
    "start": ("start", "prompt"),  # with the erasure from which training starts
    "start uncond": ("start", "uncond"),
    REGION: ("base", "prompt"),
}
