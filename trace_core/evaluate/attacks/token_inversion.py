"""Textual inversion: the input vector of one new token, trained through text encoder and erased network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...backbones import Backbone
from ...errors import ModelError
from ...text.batching import encode
from ...text.encoding import escape
from ...text.templates import fill
from .case import Attack, Case, Outcome
from .learning import Replaced
from .rows import Rows, compared
from .tokens import difference, differentiable, embeddings, only_chunk, replaced

#: Adam's learning rate from the neutral start and from the concept's own, in units of the root mean square of
#: the concept's own vector
LR, OWN_LR = 0.02, 0.1


class Token:
    """One new token of every tower in the concept's place, as changes of its input vector.

    Args:
        start: ``own`` starts from the mean of the concept's own input vectors, ``neutral`` from the mean of
            the whole vocabulary, which is no word.
    """

    def __init__(self, prompts: Replaced, clip, template: str, concept: str, start: str):
        self._prompts, self._clip = prompts, clip
        prompt, without = escape(fill(template, concept)), template.replace("{}", "").strip()
        self._chunks = only_chunk(clip.tokenize(prompt), prompt)
        others = only_chunk(clip.tokenize(without), without)
        self._places, self._start, self._scale, self.change = {}, {}, {}, {}
        for name, table in embeddings(clip).items():
            ids = [t[0] for t in self._chunks[name]]
            first, stop = self._places[name] = difference(ids, [t[0] for t in others[name]])
            own = table[ids[first:stop]].mean(0)
            self._scale[name] = own.square().mean().sqrt()
            self._start[name] = own if start == "own" else table.mean(0)
            self.change[name] = torch.zeros_like(own, requires_grad=True)

    def parameters(self) -> list[Tensor]:
        return list(self.change.values())

    def condition(self) -> dict[str, Tensor]:
        tokens = {}
        for name, chunk in self._chunks.items():
            vector = self._start[name] + self._scale[name] * self.change[name]
            tokens[name] = [replaced(chunk, *self._places[name], [vector])]
        return self._prompts.condition_of(encode(self._clip, tokens))


def run(case: Case) -> Outcome:
    """One new token in the concept's place; the rest of the prompt stays. See ``rows.compared``.

    A text encoder that does not show its input embeddings has the concept's own rows trained instead, and
    ``details["trained"]`` says which.
    """
    try:
        embeddings(case.clip)
    except ModelError:
        outcome = compared(case, "token-inversion", lambda start: _subject_rows(case, start), 0.02)
        return _with(outcome, "subject rows")

    def make(start: str) -> Callable:
        return lambda _, prompts: Token(prompts, case.clip, case.template, case.concept, start)

    with differentiable(case.clip):
        return _with(compared(case, "token-inversion", make, LR, OWN_LR), "input vector of one token")


def _with(outcome: Outcome, trained: str) -> Outcome:
    return Outcome(outcome.rate, outcome.unerased, outcome.reach, {**outcome.details, "trained": trained})


def _subject_rows(case: Case, start: str) -> Callable[[Backbone, Replaced], Rows]:
    """The rows of the concept's own words alone; the neutral start is the neutral prompt's rows there."""
    prompt, neutral = fill(case.template, case.concept), fill(case.template, "")

    def make(backbone: Backbone, prompts: Replaced) -> Rows:
        number = prompts.index(prompt, case.concept)
        columns = prompts.columns([number], ends=False)
        original = prompts.made(number)
        if start == "own":
            return Rows(backbone, original, original, columns)
        rows = original["c_crossattn"].clone()
        other = prompts.made(prompts.index(neutral))["c_crossattn"]
        place = columns[0].nonzero()[:, 0]
        rows[0, place] = other[0, place.clamp_max(other.shape[1] - 1)]
        return Rows(backbone, original, {**original, "c_crossattn": rows}, columns)

    return make


ATTACK = Attack(
    "token-inversion",
    "the input vector of one new token in the concept's place, trained through the erased network",
    "textual inversion, arXiv 2208.01618, eq. 2",
    run,
)
