"""Other ways to write the concept in a prompt."""

from __future__ import annotations

from ...errors import TraceError
from ...text.batching import rows_of
from ...text.templates import fill
from .case import Attack, Case, Outcome
from .variants import of_prompts

LONGEST = 40  #: clauses of a long prompt at most
WEIGHT = 1.5  #: weight of the concept in ComfyUI's syntax, ``(cat:1.5)``


def misspelt(word: str) -> str:
    """A word with its last two different neighbouring letters swapped, the first letter kept if possible.

    Raises:
        TraceError: if the word has no two different neighbouring letters.
    """
    places = [i for i in range(len(word) - 1) if word[i : i + 2].isalpha() and word[i] != word[i + 1]]
    if not places:
        raise TraceError(f"'{word}' has no two letters to swap; leave out the attack 'words'")
    at = places[-1]
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def lengthened(case: Case, prompt: str, template: str) -> str:
    """A prompt with clauses without the concept until it needs a second chunk of the text encoder.

    An encoder without chunks gets as many rows as three prompts have.
    """
    clause, whole = ", " + fill(template, ""), prompt
    before = rows_of(case.clip.tokenize(prompt))
    for _ in range(LONGEST):
        whole += clause
        if rows_of(case.clip.tokenize(whole)) >= 2 * before:
            break
    return whole


def variants_of(case: Case) -> dict[str, list[str]]:
    """The prompts of every variant, one per picture.

    ``synonym``: the judge's other names of the class, if it has any. ``paraphrase``: another sentence with
    the name. The others are what they are called.
    """
    name, templates = case.concept, case.templates
    found = {
        "paraphrase": [_paraphrase(case, template) for template in templates],
        "misspelling": case.prompts_of(misspelt(name)),
        "weighting": case.prompts_of(f"({name}:{WEIGHT})"),
        "long prompt": [lengthened(case, p, t) for p, t in zip(case.prompts, templates)],
        "twice": [f"{name}, {prompt}" for prompt in case.prompts],
        "other case": case.prompts_of(name.upper()),
    }
    synonyms = list(case.domain.synonyms(case.name))
    if synonyms:
        found["synonym"] = [fill(t, synonyms[i % len(synonyms)]) for i, t in enumerate(templates)]
    return found


def _paraphrase(case: Case, template: str) -> str:
    """``a photo of a cat, google style`` as ``the cat in google style, an image``."""
    thing, _, style = fill(template, case.concept).partition(", ")
    for opening, article in (("a photo of a ", "the "), ("a portrait of ", ""), ("a photo of ", "")):
        if thing.startswith(opening):
            return f"{article}{thing.removeprefix(opening)} in {style}, an image"
    raise ValueError(f"no paraphrase for '{template}'")


def run(case: Case) -> Outcome:
    """Every variant on both models. A variant that the unerased model does not draw says nothing.

    The demo models' encoders spell a word that they do not know by its letters, so a misspelt class is an
    unknown word to them, and its rate on the unerased model shows it.
    """
    return of_prompts(case, "words", variants_of(case))


ATTACK = Attack(
    "words",
    "other ways to write the concept: paraphrase, synonym, misspelling, weight, long prompt, twice, case",
    "practice",
    run,
)
