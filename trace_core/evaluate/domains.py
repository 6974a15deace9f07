"""What a judge can tell apart, and the prompts that ask for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..text.concepts import same

OBJECT, STYLE, PERSON, TRAIT = "object", "style", "person", "trait"


@dataclass(frozen=True)
class Trait:
    """Content that a picture can show although its prompt does not name it.

    Attributes:
        head: the judge's head for it, of two classes; the second is the trait.
        prompts: by kind of prompt (``named``, ``implied``, ``neither``), a function from a number to as many
            pairs of a prompt and the person in it.
    """

    head: str
    prompts: Mapping[str, Callable[[int], list[tuple[str, str]]]]


@dataclass(frozen=True)
class Domain:
    """The classes that a judge can distinguish.

    Attributes:
        objects: object class -> synonyms.
        styles: style classes.
        judge: ``judge(pictures, head) -> probabilities [n, classes]``, head ``object``, ``style``, ``person``
            or a trait's.
        people: names of people.
        traits: content that prompts may only imply, by name.
    """

    objects: Mapping[str, Sequence[str]]
    styles: Sequence[str]
    judge: Callable[[Tensor, str], Tensor]
    people: Sequence[str] = ()
    traits: Mapping[str, Trait] = field(default_factory=dict)

    @property
    def heads(self) -> dict[str, list[str]]:
        """Classes by kind, without kinds that have none."""
        found = {OBJECT: list(self.objects), PERSON: list(self.people), STYLE: list(self.styles)}
        return {head: classes for head, classes in found.items() if classes}

    def synonyms(self, name: str) -> Sequence[str]:
        """Other names of an object class; of other classes none."""
        return self.objects.get(name, ())

    def locate(self, concept: str) -> tuple[str, str] | None:
        """``(kind, class)`` of a concept, or None if the judge does not know it.

        A synonym gives its class.
        """
        for head, classes in self.heads.items():
            for name in classes:
                if any(same(concept, word) for word in (name, *self.synonyms(name))):
                    return head, name
        return next(((TRAIT, t) for t in self.traits if same(concept, t)), None)

    def known(self) -> list[str]:
        """Names of everything that the judge knows."""
        return [name for classes in (*self.heads.values(), self.traits) for name in classes]

    def subjects(self) -> list[str]:
        """The classes that a picture shows in some style: objects or people, with their articles."""
        return [f"a {name}" for name in self.objects] or list(self.people)

    def templates(self, head: str, count: int) -> list[str]:
        """Prompts with ``{}`` in the place of a class of a kind, cycling through the other kind.

        ``a photo of a {}, <style>``, ``a portrait of {}, <style>``, ``a photo of <subject>, {}``.
        """
        if head == STYLE:
            around = [f"a photo of {subject}, {{}}" for subject in self.subjects()]
        else:
            opening = "a photo of a {}" if head == OBJECT else "a portrait of {}"
            around = [f"{opening}, {style}" for style in self.styles]
        return [around[i % len(around)] for i in range(count)]

    def prompts(self, head: str, name: str, count: int) -> list[str]:
        """``count`` prompts that ask for a class or a synonym."""
        return [template.replace("{}", name) for template in self.templates(head, count)]

    def shows(self, pictures: Tensor, head: str, name: str) -> Tensor:
        """Whether the judge sees a class or trait in each of the pictures ``[n, h, w, 3]``: bool ``[n]``."""
        if head == TRAIT:
            return self.judge(pictures, self.traits[name].head).argmax(-1) == 1
        return self.judge(pictures, head).argmax(-1) == self.heads[head].index(name)


def all_shown(domain: Domain, pictures: Tensor, places: Sequence[tuple[str, str]]) -> Tensor:
    """Which of the pictures show every ``(kind, class)`` of ``places``: bool ``[n]``."""
    return torch.stack([domain.shows(pictures, head, name) for head, name in places]).all(dim=0)
