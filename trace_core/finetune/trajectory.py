"""Where a network is trained: latents on its own sampling trajectories, with the base model's predictions
beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from ..backbones import Backbone
from ..errors import ConceptError, TraceError
from ..text.batching import BatchEncoder, Given
from ..text.encoding import FIRST_EOT, PAD, SUBJECT, TextEncoder, escape
from ..text.spelling import same_length
from .attention import focus_region

#: ``tick(phase, done, total)``, called before every model evaluation; raise from it to cancel
Tick = Callable[[str, int, int], None]

TOGETHER = 32  #: prompts whose rows are held twice while they are encoded


class Prompts:
    """Prompts as the network is given them, each encoded once and kept in the network's own precision."""

    def __init__(self, backbone: Backbone, clip, shape: tuple[int, int, int], guidance: float):
        self._backbone, self._clip, self._shape, self._guidance = backbone, clip, shape, guidance
        self._index: dict[str, int] = {}
        self._made: list[dict[str, Tensor]] = []
        self._subjects: dict[int, str] = {}
        self._groups: dict[int, tuple[int, ...]] = {}
        self._encoder: TextEncoder | None = None
        self._batch = BatchEncoder(clip)
        self.texts: list[str] = []

    def index(self, prompt: str, subject: str = "") -> int:
        """The number of a prompt, which is encoded when it is new; ``subject`` is the concept in it, for
        :meth:`columns`.

        Raises:
            ConceptError: if it takes more rows than the others, as a batch cannot hold both.
        """
        return self.indices([(prompt, subject)])[0]

    def indices(self, prompts: Sequence[tuple[str, str]]) -> list[int]:
        """The numbers of prompts with their subjects, as :meth:`index` gives them; those that are new are
        encoded together.
        """
        new = list(dict.fromkeys(prompt for prompt, _ in prompts if prompt not in self._index))
        for start in range(0, len(new), TOGETHER):
            part = new[start : start + TOGETHER]
            for prompt, encoded in zip(part, self._batch([same_length(self._clip, escape(p)) for p in part])):
                self._add(prompt, Given(*encoded))
        self._subjects |= {self._index[prompt]: subject for prompt, subject in prompts if subject}
        return [self._index[prompt] for prompt, _ in prompts]

    def _add(self, prompt: str, clip: Given) -> None:
        made = self._backbone.condition(clip, prompt, self._shape, self._guidance)
        if self._made and {k: v.shape for k, v in made.items()} != {
            k: v.shape for k, v in self._made[0].items()
        }:
            raise ConceptError(f"'{prompt[:60]}' takes more rows of text than the other prompts; shorten it")
        self._index[prompt] = len(self._made)
        self._made.append(made)
        self.texts.append(prompt)

    def columns(self, numbers: Tensor | Sequence[int], ends: bool) -> Tensor:
        """Which text rows are a concept's words, ``[n, m]`` bool; ``ends``: and the end and pad rows, which
        know it as well.

        Raises:
            ConceptError: if the concept's tokens cannot be found in a prompt.
        """
        self._encoder = self._encoder or TextEncoder(self._clip)
        for n in {int(n) for n in numbers} - set(self._groups):
            groups, rows = (
                self._encoder.encode(self.texts[n], self._subjects[n]).groups,
                self._made[n]["c_crossattn"].shape[1],
            )
            # padding may be the tokenizer's own here, see same_length
            self._groups[n] = (groups + (PAD,) * rows)[:rows]
        wanted = torch.tensor([SUBJECT, FIRST_EOT, PAD] if ends else [SUBJECT])
        return torch.stack([torch.isin(torch.tensor(self._groups[int(n)]), wanted) for n in numbers])

    def batch(self, numbers: Tensor | Sequence[int]) -> dict[str, Tensor]:
        """The conditions of some prompts, one after the other: name -> ``[n, ...]``."""
        numbers = [int(n) for n in numbers]
        return {k: torch.cat([self._made[n][k] for n in numbers]) for k in self._made[0]}

    @property
    def nbytes(self) -> int:
        return sum(v.nbytes for made in self._made for v in made.values())


@dataclass
class Points:
    """Latents on trajectories, and what the base model predicts there.

    Attributes:
        x: ``[n, c, h, w]`` on ComfyUI's noise scale, in the bank's compact type.
        sigma: ``[n]`` noise levels.
        percent: ``[n]`` how much of the schedule lies behind, 0..1.
        prompt: ``[n]`` the prompt a latent was sampled with, by its number in :class:`Prompts`.
        neutral: ``[n]`` the prompt without the concept (keep prompts: the same prompt).
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
        """One after the other; all with the same predictions."""
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
        steps: of a trajectory, even in percent of the schedule.
        cfg: classifier-free guidance; 1 for none.
        batch: trajectories at a time.
        dtype: what latents and predictions are stored in.
    """

    steps: int = 12
    cfg: float = 3.0
    batch: int = 32
    dtype: torch.dtype = torch.float16

    @property
    def guided(self) -> bool:
        return self.cfg != 1.0


def schedule(backbone: Backbone, steps: int, offset: float = 0.0) -> tuple[list[float], list[float]]:
    """Percents and noise levels of a trajectory: the model's largest, then step i at ``(i + offset) / steps``
    of its schedule.

    An ``offset`` in 0..1, another each time, visits what lies between the steps. There are ``steps + 1``
    levels.
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
) -> Iterator[tuple[float, float, Tensor, dict[str, Tensor]]]:
    """Sample by Euler's method with classifier-free guidance (Ho and Salimans, arXiv 2207.12598), and show
    every step.

    Yields:
        percent, sigma, x ``[n, c, h, w]`` rounded to the bank's type, and the network's predictions at x by
        name (``prompt``; ``uncond`` under guidance); last, with sigma 0, the finished latents and no
        predictions.
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
        tick()
        x = x.to(sampling.dtype).float()  # the predictions belong to exactly what is stored
        doubled = torch.cat([x, x]) if sampling.guided else x
        level = torch.full((len(doubled),), sigma, device=x.device)
        out = backbone.predict(doubled, level, condition)
        found = {"prompt": out[: len(x)]}
        guided = found["prompt"]
        if sampling.guided:
            found["uncond"] = out[len(x) :]
            guided = found["uncond"] + sampling.cfg * (found["prompt"] - found["uncond"])
        yield percent, sigma, x, found
        x0 = backbone.denoised_of(x, level[: len(x)], guided)
        x = x + (x - x0) / sigma * (after - sigma)
    yield 1.0, 0.0, x, {}


class TrajectoryBank:
    """Points of two roles, ``erase`` and ``keep``, of bounded size, and the base model's predictions there.

    The erase points are sampled again from the current student: the latents of a model that still draws the
    concept already show it, and training on them alone leaves its outline. The keep points come from the base
    model, whose predictions are a by-product of sampling them.
    """

    def __init__(
        self, backbone: Backbone, prompts: Prompts, sampling: Sampling, uncond: int, limit: int = 2 << 30
    ):
        """``limit``: bytes that all points may take together."""
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
        """What so many trajectories will take, with so many predictions at every point."""
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
    ) -> None:
        """Replace the points of a role by fresh ones.

        Args:
            pairs: prompt and neutral prompt of every trajectory.
            needed: the predictions to store, of :data:`REFERENCES`.
            seed: of the noise.
            state: switches the network between ``base``, ``start`` and ``student``.
            student: the state that the trajectories are sampled from.
            tick: called before every model evaluation.

        Raises:
            TraceError: if the bank would outgrow its limit.
        """
        others = sum(points.nbytes for name, points in self.points.items() if name != role)
        size = self.expected_bytes(len(pairs), len(needed))
        if others + size > self.limit:
            raise TraceError(
                f"{len(pairs)} trajectories take {(others + size) >> 20} MB, more than the bank's "
                f"{self.limit >> 20} MB; use fewer trajectories, fewer steps or a smaller picture"
            )
        parts, total, done = [], -(-len(pairs) // self.sampling.batch) * (self.sampling.steps + 1), 0

        def sampled():
            nonlocal done
            tick(f"sample {role}", done, total)
            done += 1

        state(student)
        for number, at in enumerate(range(0, len(pairs), self.sampling.batch)):
            some = pairs[at : at + self.sampling.batch]
            steps = trajectories(
                self.backbone,
                self.prompts,
                [p for p, _ in some],
                self.uncond,
                self.sampling,
                seed * 1009 + number,
                sampled,
            )
            for percent, sigma, x, found in steps:
                if sigma:
                    parts.append(
                        self._points(some, percent, sigma, x, found if student == "base" else {}, needed)
                    )
        points = Points.join(parts)
        self.points[role] = self._completed(role, points, needed, state, tick)
        state("student")

    def _points(
        self, pairs, percent: float, sigma: float, x: Tensor, found: dict[str, Tensor], needed
    ) -> Points:
        """The points of one step. What the base model predicted while it sampled is kept where it is
        needed.
        """
        compact = lambda t: t.to(self.sampling.dtype).cpu()  # noqa: E731
        kept = {{"prompt": "concept"}.get(k, k): compact(v) for k, v in found.items()}
        n = len(pairs)
        return Points(
            compact(x),
            torch.full((n,), sigma),
            torch.full((n,), percent),
            torch.tensor([p for p, _ in pairs]),
            torch.tensor([g for _, g in pairs]),
            {k: v for k, v in kept.items() if k in needed},
        )

    @torch.no_grad()
    def _completed(self, role: str, points: Points, needed: Sequence[str], state, tick: Tick) -> Points:
        """Evaluate the references that sampling did not give, a batch of points at a time."""
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
        return self.backbone.predict(x, sigma, self.prompts.batch(numbers))

    def _region(self, points: Points, numbers) -> Tensor:
        """``[n, 1, h, w]``: where the network itself looks at the concept."""
        layers: list = []
        with self.backbone.attention_maps(layers):
            self._predicted(points, numbers)
        return focus_region(
            layers, self.prompts.columns(numbers, False).to(self.backbone.device), points.x.shape[-2:]
        )


REGION = "region"  #: where the concept is, by the base model's attention; not a prediction, but kept like one

#: Name -> which network predicts, and for which prompt
REFERENCES = {
    "concept": ("base", "prompt"),  # p0(c); of keep points p0(p)
    "uncond": ("base", "uncond"),  # p0(0)
    "neutral": ("base", "neutral"),  # p0(g): the same prompt without the concept, or with the anchor
    "start": ("start", "prompt"),  # with the erasure that training starts from
    "start uncond": ("start", "uncond"),
    REGION: ("base", "prompt"),
}
