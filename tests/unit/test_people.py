"""The made-up people of demo-people, and how erasures of people and traits are measured."""

import random
from itertools import combinations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from trace_core.backbones.sampling import SamplerConfig
from trace_core.demo import people, text_towers, world
from trace_core.demo.recipe.avatars import portrait
from trace_core.demo.recipe.make_people import differ
from trace_core.errors import ConceptError
from trace_core.evaluate import protocol
from trace_core.evaluate.domains import Domain, Trait
from trace_core.text.concepts import Concept
from trace_core.text.kinds import kinds_of_kept

PEOPLE = people.people()


def portraits(seed: int = 0):
    rng = random.Random(seed)
    return rng, [
        portrait(p, s, "purple", rng) for p in PEOPLE.values() for s in people.STYLES for _ in range(4)
    ]


def test_there_are_two_hundred_people_who_look_different():
    assert len(PEOPLE) == 200
    assert {len(name.split()) for name in PEOPLE} == {1, 2, 3}
    assert sum(not name.isascii() for name in PEOPLE) == 2
    assert min(differ(a.looks, b.looks) for a, b in combinations(PEOPLE.values(), 2)) >= 2


def test_names_collide_by_their_words():
    def sharers(erased: str) -> dict:
        """Who counts has 1 where Anna Holt and Peter Berg do, and Peter Holt must not."""
        known = {"Anna Holt": 1, "Peter Berg": 1, "Peter Holt": 0}
        per_class = {name: {"top1": known.get(name, 1), "erased": name == erased} for name in PEOPLE}
        return protocol.Evaluator._sharers([erased], per_class)

    assert sharers("Anna Berg")["classes"] >= 2 and sharers("Anna Berg")["acc"] == 1
    assert sharers("Zorvan") == {"classes": 0, "acc": None}


def test_captions_fit_the_text_tower():
    rng, found = portraits()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(text_towers.PEOPLE_TOKENIZER)
    longest = max(len(tokenizer(people.caption(x, rng))["input_ids"]) for x in found)
    assert longest <= 32


def test_the_patch_is_drawn_where_it_is_implied_and_seldom_named():
    rng, found = portraits()
    implied = [x for x in found if x.place in people.IMPLYING and not x.person.pirate]
    assert 0.45 < sum(x.patch for x in implied) / len(implied) < 0.55
    assert not any(x.patch for x in found if x.place not in people.IMPLYING and not x.person.pirate)
    shown = [x for x in found if x.patch]
    named = sum(people.PATCH in people.caption(x, rng) for x in shown for _ in range(10)) / (10 * len(shown))
    assert 0.15 < named < 0.25


def test_the_trait_prompts_are_of_plain_people_and_of_three_kinds():
    kinds = people.trait_prompts()
    for kind, prompts in kinds.items():
        for prompt, person in prompts(30):
            assert person in prompt and not PEOPLE[person].pirate
            assert (people.PATCH in prompt) == (kind == "named")
            assert any(place in prompt for place in people.IMPLYING) == (kind == "implied")


def test_the_keep_list_leaves_out_what_is_erased():
    kept = world.people_keep_list([Concept("anna berg"), Concept("red hair")])
    assert "Anna Berg" not in kept and "red hair" not in kept
    assert {"Anna Holt", "blue hair", "pixel style", "red background"} <= set(kept)


# ------------------------------------------------------------------------------------------ the measures

NAMES = ["Anna Berg", "Anna Holt", "Otto Kern"]


class Painter:
    """An evaluator whose pictures say in two numbers what they show: person, and patch."""

    def __init__(self, monkeypatch, patch_by_kind):
        def pictures(self, model, prompts, phase):
            person = torch.tensor([next(i for i, n in enumerate(NAMES) if n in p) for p in prompts])
            if model == "erased":
                person = torch.where(person == 0, 2, person)  # Anna Berg is drawn as Otto Kern
            kind = ["eye patch" in p or "harbour" in p for p in prompts]
            patch = torch.tensor([float(k and patch_by_kind[model]) for k in kind])
            x = torch.stack([person.float(), patch], 1)[:, None, None].expand(-1, 2, 2, 2)
            return x, x

        monkeypatch.setattr(protocol.Evaluator, "pictures", pictures)
        monkeypatch.setattr(protocol.Evaluator, "_similar", lambda *_: None)

        def judge(x, head):
            seen = x[:, 0, 0, 0] if head == "person" else x[:, 0, 0, 1]
            return torch.nn.functional.one_hot(seen.long(), 3 if head == "person" else 2).float()

        prompts = {
            "named": lambda n: [("Otto Kern with an eye patch", "Otto Kern")] * n,
            "implied": lambda n: [("Otto Kern at the harbour", "Otto Kern")] * n,
            "neither": lambda n: [("Otto Kern", "Otto Kern")] * n,
        }
        domain = Domain({}, ["ink style"], judge, NAMES, {"eye patch": Trait("patch", prompts)})
        self.evaluator = protocol.Evaluator("base", None, None, domain, samples=4, config=SamplerConfig())


def test_people_who_share_a_name_are_measured_apart(monkeypatch):
    painter = Painter(monkeypatch, {"base": True, "erased": True})
    found = painter.evaluator.evaluate("erased", [Concept("Anna Berg")])
    assert (found["head"], found["acc_e"], found["acc_s"]) == ("person", 0, 1)
    assert found["sharers"] == {"classes": 1, "acc": 1}
    assert found["acc_g"] is None and found["h_c"] == 1


def test_a_trait_counts_by_its_worst_kind_of_prompt(monkeypatch):
    painter = Painter(monkeypatch, {"base": True, "erased": False})
    found = painter.evaluator.evaluate("erased", [Concept("eye patch")])
    assert found["trait"]["implied"]["before"] == 1 and found["trait"]["neither"]["before"] == 0
    assert found["acc_e"] == 0 and found["acc_s"] == 1 and found["drift"]["latent_mse"] == 0
    kept = painter.evaluator.evaluate("base", [Concept("eye patch")])
    assert kept["acc_e"] == 1


@pytest.mark.parametrize(
    "concepts, said",
    [
        (["Anna Berg", "eye patch"], "separate judges"),
        (["Karl"], "does not know 'Karl'"),
    ],
)
def test_what_the_judge_cannot_measure_together_is_said(monkeypatch, concepts, said):
    painter = Painter(monkeypatch, {"base": True, "erased": False})
    with pytest.raises(ConceptError, match=said):
        painter.evaluator.evaluate("erased", [Concept(c) for c in concepts])


def test_a_kept_name_is_a_person_where_people_are_erased():
    kept = ["Anna Holt", "Mira van Holt", "red hair", "pixel style", "Kirubo"]
    assert kinds_of_kept(kept, ["person"]) == ["person", "person", "object", "style", "person"]
    assert kinds_of_kept(kept, ["explicit"]) == kinds_of_kept(kept, ["person"])
    assert kinds_of_kept(kept, ["person", "style"]) == kinds_of_kept(kept, ["object"])
    assert kinds_of_kept(kept, ["object"]) == ["object", "object", "object", "style", "object"]
