"""Attacks on an erasure with access to the erased model: how much of the concept comes back.

* adversarial rows (RECE, arXiv 2407.12383): rows in closed form that the erased layers map to the base
layers' output
  for the concept
* inverted rows (textual inversion, arXiv 2208.01618): rows trained by gradient through the erased network
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ..backbones import Backbone, backbone_for
from ..backbones.base import CONTEXT, POOLED
from ..backbones.sampling import SamplerConfig, decode, sample
from ..closed_form.solvers import cholesky
from ..errors import ConceptError
from ..finetune.adapters import attached
from ..finetune.gradients import saved_apart, training_mode
from ..finetune.prompts import Prompts
from ..finetune.trajectory import Sampling, trajectories
from ..lora.erasure import ErasureLora
from ..lora.gating import apply
from ..text.batching import encode
from .metrics import top1
from .protocol import Domain, object_prompts, style_prompts

RIDGE = 0.1  #: RECE's lambda, its value for most concepts
BATCH = 16  #: points per step of the inversion
TRAJECTORIES = 16  #: trajectories of the base model for the training points of the inversion
RECOGNISED = 0.5  #: share of recognised pictures from which a concept counts as recovered

#: ``progress(phase, done, total)``; an exception raised in it cancels
Progress = Callable[[str, int, int], None]


def recoverability(
    model,
    lora: ErasureLora,
    clip,
    vae,
    domain: Domain,
    concept: str,
    samples: int = 20,
    seed: int = 0,
    steps: int = 100,
    every: int = 10,
    lr: float = 0.02,
    progress: Progress | None = None,
    config: SamplerConfig | None = None,
) -> dict:
    """Attack an erasure in both ways, and judge what comes back. The model is read, never written.

    Args:
        model: the base ComfyUI ModelPatcher.
        lora: the erasure, applied over the whole schedule.
        domain: the judge.
        concept: an object, synonym or style that the judge knows.
        samples: pictures per measurement.
        seed: seed of the pictures and of the training noise.
        steps, every, lr: Adam steps of the inversion, steps per judgement, learning rate.
        progress: ``progress(phase, done, total)``; an exception raised in it cancels.

    Returns:
        ``plain`` (top-1 of the concept without an attack), ``adversarial_rows`` (top-1 with RECE's rows), and
        ``inversion``: ``curve`` of ``[step, top-1]``, and ``recovered_at``, the first step at which at least
        :data:`RECOGNISED` is recognised, or None.

    Raises:
        ConceptError: if the judge does not know the concept.
    """
    place = domain.locate(concept)
    if place is None:
        raise ConceptError(f"the judge does not know '{concept}'")
    head, name = place
    progress = progress or (lambda *_: None)
    config = config or SamplerConfig.for_model(model)
    classes = list(domain.objects) if head == "object" else list(domain.styles)
    prompts = _prompts(concept, head, domain, samples)
    seeds = [seed * 100003 + i for i in range(samples)]
    erased = apply(model, lora)

    def recognised(latents: Tensor) -> float:
        return top1(domain.judge(decode(vae, latents), head), classes.index(name))

    results = {}
    for label, maps in (("plain", None), ("adversarial_rows", adversarial_maps(model, erased))):
        report, reader = partial(progress, label), Rewritten(clip, maps) if maps else clip
        results[label] = recognised(sample(erased, reader, prompts, seeds, config, report))
    prompt = f"a photo of a {concept}" if head == "object" else f"a photo, {concept}"
    curve = inversion(
        model, lora, clip, prompt, recognised, samples, seed, steps, every, lr, config, progress
    )
    setting = {"concept": concept, "samples": samples, "seed": seed}
    results["inversion"] = _inverted(curve, prompt, lr)
    return {**results, **setting, "lambda": RIDGE, "recognised_from": RECOGNISED}


def _prompts(concept: str, head: str, domain: Domain, samples: int) -> list[str]:
    if head == "object":
        return object_prompts(concept, list(domain.styles), samples)
    return style_prompts(concept, list(domain.objects), samples)


def _inverted(curve: list[list], prompt: str, lr: float) -> dict:
    reached = next((step for step, share in curve if share >= RECOGNISED), None)
    return {"curve": curve, "recovered_at": reached, "prompt": prompt, "steps": curve[-1][0], "lr": lr}


# ------------------------------------------------------------------------------------------- adversarial rows


def adversarial_map(before: Sequence[Tensor], after: Sequence[Tensor], strength: float = RIDGE) -> Tensor:
    """RECE, eq. 6: ``A = (sum W'^T W' + lambda I)^-1 (sum W'^T W)``.

    The W' map the rows ``c' = A c`` to about the same output as the W map c.

    Args:
        before, after: the layers' text columns W (base model) and W' (erased model), ``[out_i, d]`` each.
        strength: lambda.

    Returns:
        ``[d, d]`` float64.
    """
    width = after[0].shape[1]
    gram = strength * torch.eye(width, dtype=torch.float64)
    cross = torch.zeros(width, width, dtype=torch.float64)
    for old, new in zip(before, after):
        new = new.double()
        gram += new.T @ new
        cross += new.T @ old.double()
    return torch.cholesky_solve(cross, cholesky(gram))


def adversarial_maps(model, erased, strength: float = RIDGE) -> dict[str, Tensor]:
    """:func:`adversarial_map` of every text stream, over all layers that read it."""
    out, (base, changed) = {}, (backbone_for(m) for m in (model, erased))
    for stream in (CONTEXT, POOLED):
        layers = base.layers(stream)
        if layers:
            columns = base.width(stream)
            pair = ([w[:, :columns].cpu() for _, w in b.weights(layers)] for b in (base, changed))
            out[stream] = adversarial_map(*pair, strength)
    return out


class Rewritten:
    """A CLIP that applies linear maps to the rows and pooled vectors of every prompt but the empty one."""

    def __init__(self, clip, maps: Mapping[str, Tensor]):
        self._clip, self._maps = clip, maps

    def tokenize(self, text: str) -> tuple[str, dict]:
        return text, self._clip.tokenize(text)

    def encode_from_tokens(
        self, tokens: tuple[str, dict], return_pooled: bool = True, return_dict: bool = False
    ):
        text, tokens = tokens
        found = encode(self._clip, tokens).conditioning()
        rows, pooled = found["cond"], found["pooled_output"]
        if text:
            rows = (rows.double() @ self._maps[CONTEXT].to(rows.device).T).to(rows.dtype)
            if POOLED in self._maps and pooled is not None:
                pooled = (pooled.double() @ self._maps[POOLED].to(pooled.device).T).to(pooled.dtype)
        return {**found, "cond": rows, "pooled_output": pooled} if return_dict else (rows, pooled)


# ------------------------------------------------------------------------------------------- inverted rows


class _Rows(Prompts):
    """Prompts of which one has trained rows."""

    def made(self, number: int) -> dict[str, Tensor]:
        return self._conditions[number]

    def put(self, number: int, made: dict[str, Tensor]) -> None:
        self._conditions[number] = made


class _Attack:
    """The trained rows, in units of their root mean square, and their optimiser."""

    def __init__(
        self, backbone: Backbone, prompts: _Rows, number: int, original, trained, lr: float, seed: int
    ):
        self.backbone, self.prompts, self.number, self.original = backbone, prompts, number, original
        self.trained = trained
        self.scale = {k: v.square().mean().sqrt() for k, v in trained.items()}
        self.change = {k: torch.zeros_like(v, requires_grad=True) for k, v in trained.items()}
        self.optimiser = torch.optim.Adam(self.change.values(), lr=lr)
        self.generator = torch.Generator().manual_seed(seed)

    def condition(self) -> dict[str, Tensor]:
        """The prompt's condition with the current rows."""
        rows = {k: v + self.scale[k] * self.change[k] for k, v in self.trained.items()}
        return _with_text(self.original, rows)

    def show(self) -> None:
        """Use the current rows for the prompt."""
        self.prompts.put(
            self.number, {k: v.detach() if isinstance(v, Tensor) else v for k, v in self.condition().items()}
        )

    def step(self, points: tuple[Tensor, ...]) -> None:
        """One step of Adam on a batch of points: x, sigma, and the base network's predictions."""
        rows_condition = self.condition()
        drawn = torch.randint(len(points[0]), (BATCH,), generator=self.generator)
        x, sigma, wanted = (t[drawn] for t in points)
        with saved_apart(self.backbone.network):
            condition = {
                k: v.expand(len(x), *v.shape[1:]) if isinstance(v, Tensor) else v
                for k, v in rows_condition.items()
            }
            out = self.backbone.predict(x, sigma, condition)
            squared = (out - wanted).square().mean(dim=(1, 2, 3))
            error = ((1 + sigma.square().clamp_max(30)) * squared).mean()
            self.optimiser.zero_grad()
            error.backward()
        self.optimiser.step()


def inversion(
    model,
    lora: ErasureLora,
    clip,
    prompt: str,
    judge: Callable[[Tensor], float],
    samples: int = 20,
    seed: int = 0,
    steps: int = 100,
    every: int = 10,
    lr: float = 0.02,
    config: SamplerConfig | None = None,
    progress: Progress | None = None,
) -> list[list]:
    """Train a prompt's rows until the erased network predicts like the base network with the original rows.

    Textual inversion (arXiv 2208.01618, eq. 2) on the base model's own trajectories, but of the whole
    prompt's rows (and pooled vector) instead of one word's: ``min_v E ||p'(x, sigma, v) - p0(x, sigma,
    c)||^2`` by Adam, starting from the prompt's own rows.

    Args:
        judge: ``judge(latents [samples, c, h, w]) -> share recognised``.
        lr: learning rate in units of the rows' root mean square.

    Returns:
        ``[step, share]`` from step 0 on. It ends early after full recognition twice in a row.
    """
    config = config or SamplerConfig.for_model(model)
    progress, backbone = progress or (lambda *_: None), backbone_for(model)
    shape, cfg = backbone.latent_shape(config.width, config.height), config.cfg
    backbone.load()
    with training_mode(backbone.engine):
        prompts = _Rows(backbone, clip, shape, config.guidance)
        uncond, number = prompts.index(""), prompts.index(prompt)
        # attached() needs a trained adapter, which stays zero here; the erasure is its start
        target = backbone.lora_targets("text")[:1]
        with attached(backbone, target, 1, lora, seed) as adapters:
            adapters.use("base")
            source = Sampling(config.steps, cfg, TRAJECTORIES, torch.float32)
            points = _points(backbone, prompts, number, uncond, source, seed + 1)
            adapters.use("start")
            original = prompts.made(number)
            trained = _text(original, backbone)
            attack = _Attack(backbone, prompts, number, original, trained, lr, seed)
            pictures, curve = Sampling(config.steps, cfg, samples), []
            for step in range(steps + 1):
                if step % every == 0 or step == steps:
                    attack.show()
                    share = _share(backbone, prompts, number, uncond, pictures, seed, judge)
                    curve.append([step, share])
                    if len(curve) > 1 and curve[-1][1] == curve[-2][1] == 1:
                        break
                if step == steps:
                    break
                progress("inversion", step, steps)
                attack.step(points)
    return curve


def _points(
    backbone: Backbone, prompts: Prompts, number: int, uncond: int, sampling: Sampling, seed: int
) -> tuple[Tensor, ...]:
    """Points on the base model's trajectories: x ``[n, c, h, w]``, sigma ``[n]``, predictions like x."""
    xs, sigmas, predictions = [], [], []
    for _, sigma, x, found in trajectories(
        backbone, prompts, [number] * sampling.batch, uncond, sampling, seed, lambda: None
    ):
        if found:
            xs.append(x)
            sigmas.append(torch.full((len(x),), sigma, device=x.device))
            predictions.append(found["prompt"])
    return torch.cat(xs), torch.cat(sigmas), torch.cat(predictions)


def _text(condition: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """The text of a condition: the rows, and the text columns of the pooled vector if the model reads one."""
    pooled = backbone.width(POOLED)
    text = {"c_crossattn": condition["c_crossattn"]} | ({"y": condition["y"][:, :pooled]} if pooled else {})
    return {k: v.detach().float().clone() for k, v in text.items()}


def _with_text(condition: dict[str, Tensor], text: dict[str, Tensor]) -> dict[str, Tensor]:
    """A condition with other text. Columns behind the pooled vector (SDXL's sizes) stay."""
    out = dict(condition)
    for name, value in text.items():
        rest = condition[name][:, value.shape[1] :] if name == "y" else condition[name][:, :0]
        out[name] = torch.cat([value.to(rest.dtype), rest], dim=1)
    return out


@torch.no_grad()
def _share(backbone, prompts, number: int, uncond: int, sampling: Sampling, seed: int, judge) -> float:
    """Share of recognised pictures from a prompt's current rows, in the network's current state."""
    *_, last = trajectories(
        backbone, prompts, [number] * sampling.batch, uncond, sampling, seed, lambda: None
    )
    return judge(last[2].cpu())
