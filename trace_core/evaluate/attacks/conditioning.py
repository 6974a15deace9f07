"""The concept's conditioning mixed with another one, and the concept as the negative prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...text.batching import Encoded, encode
from ...text.templates import fill
from .case import Attack, Case, Outcome
from .prepared import Prepared, averaged, concatenated
from .variants import of_prompts

SHARE = 0.5  #: of the concept in an average
DRAWN = 0.1  #: rate of the unerased model from which a variant counts; it draws one of two classes at best


def run(case: Case) -> Outcome:
    """The concept's prompts, concatenated and averaged with the same prompts of other classes.

    ``details`` also has ``negative``: how often the concept is drawn where it is the *negative* prompt and
    the positive one is empty. Guidance then leads away from what the model predicts for the concept, so
    a model that predicts the opposite of the concept draws it.
    """
    ways: dict[str, Callable[[Encoded, Encoded], Encoded]] = {
        "concatenated": concatenated,
        "averaged": lambda a, b: averaged(a, b, SHARE),
    }
    names = [case.others[i % len(case.others)] for i in range(case.samples)]
    others = [fill(template, name) for template, name in zip(case.templates, names)]
    made, prompts = {}, {}
    for name, mix in ways.items():
        prompts[name] = [f"{prompt} / {name} / {other}" for prompt, other in zip(case.prompts, others)]
        for key, *pair in zip(prompts[name], case.prompts, others):
            made[key] = mix(*(encode(case.clip, case.clip.tokenize(text)) for text in pair))
    outcome = of_prompts(case, "conditioning", prompts, Prepared(case.clip, made), DRAWN)
    details = {**outcome.details, "negative": negative(case)}
    return replace(outcome, details=details)


def negative(case: Case) -> dict:
    """Rates of the concept as the negative prompt of an empty prompt.

    Returns:
        ``rate`` and ``unerased``; None for a model that is sampled without classifier-free guidance, which
        reads no negative prompt.
    """
    if case.config.cfg == 1:
        return {"rate": None, "unerased": None, "note": "cfg is 1, so no negative prompt is read"}
    prompt = case.template.format(case.concept)
    config, empty = replace(case.config, negative=prompt), [""] * case.samples
    rates = {
        name: case.rate(model, empty, f"conditioning, negative, {name}", config=config)
        for name, model in (("rate", case.erased), ("unerased", case.model))
    }
    return {**rates, "prompt": prompt}


ATTACK = Attack(
    "conditioning",
    "the concept concatenated or averaged with another class, and the concept as the negative prompt",
    "ComfyUI's ConditioningConcat and ConditioningAverage",
    run,
)
