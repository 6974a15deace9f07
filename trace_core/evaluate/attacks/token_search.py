"""A search for tokens in front of the prompt (UnlearnDiffAtk, arXiv 2310.11868)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...backbones import Backbone, backbone_for
from ...finetune.adapters import aliased
from ...finetune.gradients import saved_apart, training_mode
from ...finetune.prompts import grouped
from ...text.batching import Encoded, encode
from ...text.encoding import escape
from .case import Attack, Case, Outcome
from .prepared import Prepared
from .tokens import Chunk, difference, differentiable, embeddings, only_chunk, replaced

TOKENS = 3  #: searched tokens of a prompt
LEVELS = 8  #: noise levels, from low to high (the released code has 50)
ITERATIONS = 5  #: steps of Adam per level (the released code has 40)
LR, DECAY = 0.01, 0.1  #: Adam's learning rate and weight decay


def on_simplex(values: Tensor) -> Tensor:
    """The nearest points ``[..., n]`` of the probability simplex (Duchi et al., ICML 2008, figure 1)."""
    ordered = values.sort(-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    counts = torch.arange(1, values.shape[-1] + 1, device=values.device)
    last = (ordered - excess / counts > 0).sum(-1, keepdim=True)
    return (values - excess.gather(-1, last - 1) / last).clamp_min(0)


def one_hot(chances: Tensor, generator: torch.Generator) -> Tensor:
    """Sampled one-hot vectors ``[..., n]`` whose gradient is that of the chances (straight-through)."""
    drawn = torch.multinomial(chances.detach().flatten(0, -2), 1, generator=generator)
    hot = torch.zeros_like(chances).flatten(0, -2).scatter(1, drawn, 1.0).view_as(chances)
    return hot + chances - chances.detach()


class Search:
    """The searched tokens of several prompts, in every tower of the text encoder.

    Each tower has tokens of its own, as ComfyUI's CLIPTextEncodeFlux lets a user write. The special tokens of
    an empty prompt are left out.

    Attributes:
        chances: tower -> points on the simplex over the vocabulary ``[prompts, TOKENS, candidates]``.
    """

    def __init__(self, clip, prompts: Sequence[str], seed: int):
        self._clip = clip
        self._generator = torch.Generator().manual_seed(seed)
        empty = only_chunk(clip.tokenize(""), "")
        self._chunks = [only_chunk(clip.tokenize(escape(p)), p) for p in prompts]
        self._tables, self._ids, self.chances = {}, {}, {}
        for name, table in embeddings(clip).items():
            special = {t[0] for t in empty[name]}
            self._ids[name] = [i for i in range(len(table)) if i not in special]
            self._tables[name] = table[self._ids[name]]
            count = len(self._ids[name])
            uniform = torch.full((len(prompts), TOKENS, count), 1 / count, device=table.device)
            self.chances[name] = uniform.requires_grad_()
        self._optimiser = torch.optim.Adam(self.chances.values(), lr=LR, weight_decay=DECAY)
        self._empty = {name: [t[0] for t in chunk] for name, chunk in empty.items()}

    def encoded(self, which: Sequence[int]) -> list[Encoded]:
        """The prompts ``which`` with sampled tokens in front, with gradients to :attr:`chances`."""
        hot = {name: one_hot(p, self._generator) for name, p in self.chances.items()}
        return [self._encode(n, {name: hot[name][n] @ self._tables[name] for name in hot}) for n in which]

    @torch.no_grad()
    def drawn(self, number: int) -> Encoded:
        """A prompt with sampled tokens in front."""
        return self.encoded([number])[0]

    def step(self, error: Tensor) -> None:
        """One step of Adam on the sum of the prompts' errors, and the projection onto the simplex."""
        self._optimiser.zero_grad()
        error.backward()
        self._optimiser.step()
        with torch.no_grad():
            for p in self.chances.values():
                p.copy_(on_simplex(p))

    @torch.no_grad()
    def likeliest(self, number: int) -> tuple[Encoded, dict[str, list[int]]]:
        """A prompt with its likeliest tokens in front, and their ids by tower."""
        best = {name: p[number].argmax(-1) for name, p in self.chances.items()}
        vectors = {name: self._tables[name][at] for name, at in best.items()}
        return self._encode(number, vectors), {n: [self._ids[n][i] for i in at] for n, at in best.items()}

    def _encode(self, number: int, vectors: dict[str, Tensor]) -> Encoded:
        tokens = {
            name: [self._in_front(name, chunk, list(vectors[name]))]
            for name, chunk in self._chunks[number].items()
        }
        return encode(self._clip, tokens)

    def _in_front(self, name: str, chunk: Chunk, vectors: list[Tensor]) -> Chunk:
        first, _ = difference([t[0] for t in chunk], self._empty[name])
        return replaced(chunk, first, first, vectors)


def run(case: Case) -> Outcome:
    """Search tokens for every prompt whose picture the erased model does not show the concept on.

    The loss is ``||p'(x_t, c*) - p||^2`` on the unerased model's picture of the prompt, where p is the
    prediction that leads to it: the noise, for a network that predicts noise. All prompts are searched at
    once; their gradients do not mix. After each noise level the judge looks at the picture of the likeliest
    tokens, and a prompt whose picture it recognises is done.

    Prompts that the unerased model itself fails are skipped. ``rate`` is the share of the others that are
    recognised with or without the search, and ``without_search`` the share without. ``random`` is the share
    with random tokens, after as many looks of the judge: what chance alone brings.
    """
    wanted = case.hits(case.base_latents)
    considered = wanted.nonzero()[:, 0].tolist()
    details = {"considered": len(considered), "skipped": case.samples - len(considered)}
    if not considered:
        return Outcome(None, None, None, {**details, "note": "the unerased model draws none of the prompts"})
    hits = case.hits(case.draw(case.erased, case.prompts, "token-search, plain")) & wanted
    open_ = [n for n in considered if not hits[n]]
    found, made = _search(case, open_) if open_ else ({}, {})
    by_chance = _random(case, open_) if open_ else 0
    prompts = [f"{n}: {p}" for n, p in enumerate(case.prompts)]
    keys = {prompts[n]: e for n, e in made.items()} | {
        prompts[n]: encode(case.clip, case.clip.tokenize(escape(case.prompts[n])))
        for n in range(case.samples)
        if n not in made
    }
    details |= {
        "without_search": int(hits.sum()) / len(considered),
        "random": (int(hits.sum()) + by_chance) / len(considered),
        "tokens": TOKENS,
        "iterations": LEVELS * case.scaled(ITERATIONS),
        "found": [{"prompt": case.prompts[n], "tokens": words} for n, words in found.items()],
    }
    rate = (int(hits.sum()) + len(found)) / len(considered)
    return Outcome(rate, 1.0, case.reach(case.erased, prompts, Prepared(case.clip, keys)), details)


def _search(case: Case, which: list[int]) -> tuple[dict[int, dict[str, list[str]]], dict[int, Encoded]]:
    """Search for the prompts ``which``.

    Returns:
        the words found by prompt number, for prompts that were recognised, and the last conditioning of every
        prompt.
    """
    backbone = backbone_for(case.erased)
    x0 = case.model.model.process_latent_in(case.base_latents[which].to(backbone.device))
    search = Search(case.clip, [case.prompts[n] for n in which], case.seed)
    noise = torch.Generator().manual_seed(case.seed + 1)
    left, found, made = list(range(len(which))), {}, {}
    iterations = case.scaled(ITERATIONS)
    for level in range(LEVELS):
        sigma = backbone.sigma_at(1 - (level + 0.5) / LEVELS)
        backbone.load()
        with training_mode(backbone.engine), aliased(backbone.network), differentiable(case.clip):
            for number in range(iterations):
                case.progress("token-search", level * iterations + number, LEVELS * iterations)
                search.step(_error(case, backbone, search, left, x0[left], sigma, noise))
            likeliest = {n: search.likeliest(n) for n in left}
        keys = {str(n): e for n, (e, _) in likeliest.items()}
        seeds = [case.seeds[which[n]] for n in left]
        drawn = case.draw(
            case.erased, list(keys), "token-search, judge", Prepared(case.clip, keys), seeds=seeds
        )
        hits = case.hits(drawn)
        for n, hit in zip(list(left), hits.tolist()):
            encoded, ids = likeliest[n]
            made[which[n]] = Encoded(encoded.rows.detach(), _detached(encoded.pooled), encoded.extra)
            if hit:
                found[which[n]] = {name: _words(case.clip, name, i) for name, i in ids.items()}
                left.remove(n)
        if not left:
            break
    return dict(sorted(found.items())), made


def _random(case: Case, which: list[int]) -> int:
    """How many of the prompts are recognised with random tokens in front, in one of as many looks."""
    left = list(which)
    for level in range(LEVELS):
        search = Search(case.clip, [case.prompts[n] for n in left], case.seed * LEVELS + level + 1)
        keys = {str(n): search.drawn(at) for at, n in enumerate(left)}
        seeds = [case.seeds[n] for n in left]
        drawn = case.draw(
            case.erased, list(keys), "token-search, random", Prepared(case.clip, keys), seeds=seeds
        )
        left = [n for n, hit in zip(left, case.hits(drawn).tolist()) if not hit]
        if not left:
            break
    return len(which) - len(left)


def _error(
    case: Case, backbone: Backbone, search: Search, left: list[int], x0: Tensor, sigma: float, noise
) -> Tensor:
    """Sum over the prompts of the mean squared error of the prediction at one noise level."""
    drawn = torch.randn(x0.shape, generator=noise).to(x0)
    level = torch.full((len(x0),), sigma, device=x0.device)
    x = backbone.model_sampling.noise_scaling(level.view(-1, 1, 1, 1), drawn, x0)
    wanted = backbone.prediction_of(x, level, x0)
    shape = backbone.latent_shape(case.config.width, case.config.height)
    conditions = [
        backbone.condition(e.conditioning(), shape, case.config.guidance) for e in search.encoded(left)
    ]
    with saved_apart(backbone.network):
        out = grouped(backbone, conditions).predict(x, level)
        return (out - wanted).square().mean(dim=(1, 2, 3)).sum()


def _detached(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.detach()


def _words(clip, tower: str, ids: list[int]) -> list[str]:
    """Tokens as their vocabulary writes them; their numbers where the tokenizer shows no vocabulary."""
    own = getattr(clip.tokenizer, tower, None) or getattr(clip.tokenizer, f"clip_{tower}", None)
    known = getattr(own, "inv_vocab", {})
    return [known.get(i, str(i)) for i in ids]


ATTACK = Attack(
    "token-search",
    "three tokens in front of the prompt, searched by gradient for each prompt",
    "UnlearnDiffAtk, arXiv 2310.11868",
    run,
)
