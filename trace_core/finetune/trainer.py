"""The training loop: a bank of points, then one forward and one backward pass per step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones import Backbone
from ..closed_form.policies import POLICIES, keep_prompts
from ..errors import TraceError
from ..lora.erasure import ErasureLora
from ..text.concepts import Concept
from ..text.kinds import kinds_of_kept
from ..text.prompts import prompt_pairs
from ..text.templates import TEMPLATES
from .adapters import Adapters
from .adversarial import Adversary
from .attention import suppression
from .implied import adversary_of
from .objectives import OBJECTIVES, Term
from .objectives.base import LIVE, squared_error
from .options import AUTO, FinetuneConfig
from .progress import Diverged, Progress
from .prompts import Prompts
from .resume import TrainingState, identity
from .saliency import joint_masks, trained_share
from .trajectory import REGION, Points, Sampling, TrajectoryBank, trajectories
from .windows import auto_window, inside


class Trainer:
    """One finetune of one model. Use it through :func:`finetune`."""

    def __init__(
        self,
        backbone: Backbone,
        clip,
        concepts: Sequence[Concept],
        keep: Sequence[str],
        config: FinetuneConfig,
        report: Callable[[Progress], None],
        preview: Callable[[int, Tensor, list[str]], None] | None,
        start: ErasureLora | None,
        region: Tensor | None = None,
        near: Sequence[str] = (),
    ):
        """``near``: prompts of kept neighbours. The others are those of :func:`finetune`."""
        # [1, 1, h, w]
        self.region = None if region is None else region.reshape(-1, *region.shape[-2:])[:1, None].float()
        self.backbone, self.config, self.objective = backbone, config, OBJECTIVES[config.objective]
        self.start, self._report, self._preview = start, report, preview
        self.concepts = [c.target for c in concepts]  #: targets, as in the training state
        self.shape = backbone.latent_shape(config.width, config.height)
        self.prompts = Prompts(backbone, clip, self.shape, config.guidance)
        self.uncond = self.prompts.index("")
        self.strengths: dict[int, float] = {}  #: strength of the concept in a prompt, by prompt number
        self.erase_pairs = self._pairs(concepts)
        self.keep_pairs = self._keep_prompt_pairs(keep, concepts, near)
        sampling = Sampling(config.sampling_steps, config.cfg, max(1, min(32, config.batch)))
        self.bank = TrajectoryBank(backbone, self.prompts, sampling, self.uncond, config.bank_limit)
        self.step, self.losses, self.history, self.kept_share = 0, {}, [], None
        self._began = self._trained_from = None
        self.adversary = Adversary(self, None)
        self._started_at = backbone.evaluations
        self.identity = identity(self)  # before adapters change the names of the network's modules

    def _pairs(self, concepts: Sequence[Concept]) -> list[tuple[int, int]]:
        """Prompts of the concepts with their neutral counterparts, template by template."""
        out = []
        for concept in concepts:
            kind = concept.kind_and_why(self.config.kind)[0]
            found = prompt_pairs(concept, (*self.config.contexts.get(kind, ()), *TEMPLATES[kind]))
            numbers = self.prompts.indices(
                [key for prompt, subject, other, _ in found for key in ((prompt, subject), (other, ""))]
            )
            out += zip(numbers[::2], numbers[1::2])
            self.strengths |= dict.fromkeys(numbers[::2], concept.strength)
        return out

    def _keep_prompt_pairs(
        self, keep: Sequence[str], concepts: Sequence[Concept], near: Sequence[str]
    ) -> list[tuple[int, int]]:
        if self.objective.unconditional:
            return [(self.uncond, self.uncond)]
        kinds = kinds_of_kept(keep, (c.kind_and_why(self.config.kind)[0] for c in concepts))
        prompts = keep_prompts(POLICIES["projection"], keep, kinds, self.config.contexts, concepts)
        texts = [*(own := [text for text, _ in prompts]), *(text for text in near if text not in own)]
        return [(number,) * 2 for number in self.prompts.indices([(text, "") for text in texts])]

    # --------------------------------------------------------------------------------------- the bank

    def draw_pairs(self, pairs: list, count: int, seed: int) -> list[tuple[int, int]]:
        """``count`` of the pairs; all are used before one repeats."""
        generator = torch.Generator().manual_seed(seed)
        order = [
            int(i)
            for _ in range(-(-count // len(pairs)))
            for i in torch.randperm(len(pairs), generator=generator)
        ]
        return [pairs[i] for i in order[:count]]

    def _needed(self, role: str) -> list[str]:
        """Predictions that the terms of a role need.

        Without an overshoot, the concept's own is not needed.
        """
        names = {n for t in self.terms() if t.role == role for n in t.needs}
        partial = any(s != 1 for s in self.strengths.values())
        if role == "erase" and self.objective.name == "trace" and not self.config.eta and not partial:
            names -= {"concept"}
        names |= set(self.objective.also_needs if role == "erase" else ())
        given = {REGION} if self.config.kind == "style" or self.region is not None else set()
        return sorted(names - given - set(LIVE))

    def terms(self) -> list[Term]:
        """The objective's terms with points in this window, with the weights of this run."""
        early = self.config.window == AUTO or self.config.window[0] > 0
        terms = [t for t in self.objective.terms if early or t.when != "early"]
        terms = [replace(t, weight=self.config.weights.get(t.name, t.weight)) for t in terms]
        return [t for t in terms if t.weight > 0]

    def fill_bank(self, role: str, adapters: Adapters, fresh: bool) -> None:
        """Sample a role's points. ``fresh``: the student still equals the start of training."""
        config = self.config
        pairs, count = (
            (self.erase_pairs, config.trajectories)
            if role == "erase"
            else (self.keep_pairs, config.keep_trajectories)
        )
        turn = 0 if role == "keep" else self.step // config.refresh
        whole = config.window == AUTO or any(t.role == role and t.when == "all" for t in self.terms())
        student = (
            "base"
            if role == "keep" or self.objective.student == "base" or (fresh and not self.started)
            else "student"
        )
        self.bank.sample(
            role,
            self.draw_pairs(pairs, count, config.seed * 7919 + turn),
            self._needed(role),
            config.seed * 104729 + turn * 2 + (role == "keep"),
            adapters.use,
            student,
            self.tick,
            1.0 if whole else config.window[1],
        )

    def measure_window(self, adapters: Adapters) -> tuple[float, float]:
        """Measure the window on the base model's own trajectories of the concept."""
        count = min(8, len(self.erase_pairs))
        self.bank.sample(
            "window",
            self.draw_pairs(self.erase_pairs, count, self.config.seed),
            ["concept", "neutral"],
            self.config.seed,
            adapters.use,
            "base",
            self.tick,
        )
        return auto_window(self.bank.points.pop("window"))

    def mask_by_saliency(self, adapters: Adapters) -> None:
        """ANT, section 3.3: train only weights with large gradients on every prompt and every seed.

        Each prompt and seed gives one map of the largest ``config.saliency`` of each layer's ``|gradient|``.
        Weights in all maps are trained. The released code uses the smallest gradients instead.
        """
        count, masks = self.config.saliency_maps, None
        for number in range(count):
            seed = self.config.seed * 6151 + number
            self.bank.sample(
                "erase",
                self.draw_pairs(self.erase_pairs, count, self.config.seed)[number : number + 1] * 4,
                self._needed("erase"),
                seed,
                adapters.use,
                "base",
                self.tick,
            )
            self.tick("saliency", number, count)
            total, _ = self.loss(*self.batch(seed))
            total.backward()
            masks = joint_masks(masks, adapters.gradients(), self.config.saliency)
            for p in adapters.parameters():
                p.grad = None
        del self.bank.points["erase"]
        adapters.restrict(masks)
        self.kept_share = trained_share(masks)

    # --------------------------------------------------------------------------------------- a step

    def batch(self, seed: int | None = None) -> tuple[list[tuple[Term, Points]], list[int]]:
        """Points of every term for one step, drawn from the seed and the step's number, or from ``seed``."""
        generator = torch.Generator().manual_seed(
            self.config.seed * 15485863 + self.step if seed is None else seed
        )
        terms = self.terms()
        if not terms:
            raise TraceError(
                f"no term of {self.objective.name} has points in the window {self.config.window}; widen it"
            )
        shares = sum(t.share for t in terms)
        out, numbers = [], []
        for term in terms:
            points = self.bank.points[term.role]
            where = inside(points.percent, self.config.window, term.when).nonzero()[:, 0]
            if not len(where):
                raise TraceError(
                    f"no step of a trajectory lies {term.when} in the window {self.config.window}; widen it"
                )
            count = max(1, round(self.config.batch * term.share / shares))
            if self.objective.whole:
                count, drawn = len(where), torch.arange(len(where))
            elif term.focus:
                density = term.focus(self.backbone.time_of(points.sigma[where]))
                drawn = torch.multinomial(
                    density.clamp_min(1e-12), count, replacement=True, generator=generator
                )
            else:
                drawn = torch.randint(len(where), (count,), generator=generator)
            chosen = points[where[drawn]]
            out.append((term, chosen))
            numbers += chosen.prompt.tolist() if term.prompt == "prompt" else [self.uncond] * count
        return self.adversary.prepare(out, numbers)

    def loss(self, drawn: list[tuple[Term, Points]], numbers: list[int]) -> tuple[Tensor, dict[str, float]]:
        """One forward pass over all terms. Returns the weighted sum of their mean errors, and each error."""
        device, maps = self.backbone.device, []
        x = torch.cat([points.x for _, points in drawn]).to(device).float()
        sigma = torch.cat([points.sigma for _, points in drawn]).to(device)
        batch = self.adversary.conditions(numbers)
        with self.backbone.attention_maps(maps) if any(t.attention for t, _ in drawn) else nullcontext():
            out = batch.predict(x, sigma)
        total, errors, at = 0.0, {}, 0
        for term, points in drawn:
            part = slice(at, at + len(points))
            if term.attention:
                error = self._attention(batch.attention(maps, part), points)
            else:
                error = self._error(term, points, out[part])
            error = error.mean()
            total, errors[term.name], at = total + term.weight * error, error.item(), part.stop
        self.backbone.evaluations += 2 * len(x)  # the backward pass
        return total, errors

    def _error(self, term: Term, points: Points, out: Tensor) -> Tensor:
        """Error of every sample, ``[n]``."""
        predictions = {k: v.to(out.device).float() for k, v in points.predictions.items()}
        sigma = points.sigma.to(out.device)
        if term.error:
            return term.error(out, predictions, sigma, self.config.eta or 0.0)
        target = term.target(predictions, self.config.eta or 0.0)
        strength = torch.tensor(
            [self.strengths.get(int(n), 1.0) for n in points.prompt], device=out.device
        ).view(-1, 1, 1, 1)
        if term.name == "erase" and (strength != 1).any():
            target = predictions["concept"] + strength * (target - predictions["concept"])
        return squared_error(out, target, sigma)

    def _attention(self, parts: Iterable[tuple[list[int], list]], points: Points) -> Tensor:
        """Attention to the concept inside its region, per sample, ``[n]``, end and pad rows included.

        ``parts``: samples with prompts of one length, and their queries and keys in every layer.
        """
        places, errors = [], []
        for own, layers in parts:
            chosen, device = points[torch.tensor(own)], layers[0][0].device
            if self.region is not None:
                region = (
                    F.interpolate(self.region, points.x.shape[-2:], mode="nearest")
                    .expand(len(own), -1, -1, -1)
                    .to(device)
                )
            else:
                # for a style: everywhere
                region = chosen.predictions[REGION].to(device) if REGION in chosen.predictions else None
            columns = self.prompts.columns(chosen.prompt, True).to(device)
            errors.append(suppression(layers, region, columns))
            places += own
        return torch.cat(errors)[torch.tensor(places).argsort().to(errors[0].device)]

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine to a twentieth (Loshchilov and Hutter, arXiv 1608.03983)."""
        warm = max(1, min(10, self.config.steps // 10))
        if self.step < warm:
            return self.config.lr * (self.step + 1) / warm
        part = (self.step - warm) / max(1, self.config.steps - warm)
        return self.config.lr * (0.05 + 0.95 * (1 + math.cos(math.pi * part)) / 2)

    def tick(self, phase: str, done: int, total: int) -> None:
        now, rate = time.monotonic(), None
        self._began = self._began or now
        if self._trained_from is not None and self.step > self._trained_from[0]:
            rate = (self.step - self._trained_from[0]) / max(1e-9, now - self._trained_from[1])
        left = None if rate is None else (self.config.steps - self.step) / rate
        self._report(
            Progress(
                phase,
                self.step,
                self.config.steps,
                done,
                total,
                dict(self.losses),
                rate,
                left,
                self.bank.nbytes,
                self.backbone.evaluations - self._started_at,
                None if self.config.window == AUTO else self.config.window,
            )
        )

    def train(
        self,
        adapters: Adapters,
        start: ErasureLora | None,
        resume: TrainingState | None,
        checkpoint: Callable[[TrainingState], None] | None,
    ) -> None:
        """Run all steps. Randomness depends only on the seed and the step, so a resumed run is identical."""
        config, self.started = self.config, bool(start)
        parameters = adapters.parameters()
        optimiser = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0)
        half = torch.float16 in (next(self.backbone.network.parameters()).dtype, self.backbone.compute_dtype)
        # scaled, because small gradients vanish in float16
        scaler = self.scaler = torch.amp.GradScaler(self.backbone.device.type, enabled=half)
        self.adversary = adversary_of(config, self.objective)(self, adapters)
        if config.window == AUTO:
            measured = resume.window if resume else AUTO
            measured = self.measure_window(adapters) if measured == AUTO else measured
            config = self.config = replace(config, window=measured)
        if any(t.role == "keep" for t in self.terms()):
            self.fill_bank("keep", adapters, True)
        if config.saliency:
            # while the adapter is zero, so that a resumed run gets the same masks
            self.mask_by_saliency(adapters)
        if resume:
            self.step, self.history = resume.put(adapters, optimiser, scaler), list(resume.history)
            self.adversary.restore(resume.adversary)
        self._trained_from = (self.step, time.monotonic())
        good = TrainingState.take(adapters, optimiser, self)
        while self.step < config.steps:
            if self.step % config.refresh == 0 or "erase" not in self.bank.points:
                good = TrainingState.take(adapters, optimiser, self)
                if checkpoint:
                    checkpoint(good)
                self.fill_bank("erase", adapters, self.step == 0)
                self.adversary.refreshed()
            self._maybe_preview(adapters)
            self.tick("train", self.step, config.steps)
            for group in optimiser.param_groups:
                group["lr"] = self.learning_rate()
            total, self.losses = self.loss(*self.batch())
            scaler.scale(total).backward()
            scaler.unscale_(optimiser)
            self.adversary.correct()
            adapters.mask_gradients()
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            if not math.isfinite(total.item()) or (not half and not math.isfinite(norm.item())):
                text = (
                    f"the loss is {total.item()} at step {self.step}; lower the learning rate ({config.lr:g})"
                )
                raise Diverged(text, good)
            scaler.step(optimiser)
            scaler.update()
            optimiser.zero_grad(set_to_none=True)
            self.history.append({"step": self.step, **self.losses})
            self.step += 1
        self._maybe_preview(adapters)
        self.tick("train", self.step, config.steps)

    def _maybe_preview(self, adapters: Adapters) -> None:
        """Sample a concept prompt and a keep prompt with a fixed seed.

        The base model samples at step 0, and the student later.
        """
        if not self._preview or not self.config.preview_every or self.step % self.config.preview_every:
            return
        numbers = [self.erase_pairs[0][0], self.keep_pairs[0][0]]
        adapters.use("student" if self.step else "base")
        *_, last = trajectories(
            self.backbone,
            self.prompts,
            numbers,
            self.uncond,
            self.bank.sampling,
            self.config.seed,
            lambda: self.tick("preview", self.step, self.config.steps),
        )
        adapters.use("student")
        self._preview(self.step, last[2].cpu(), [self.prompts.texts[n] for n in numbers])
