"""Words inside names are kept by themselves."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from trace_core.closed_form.contrast import contrast_words, shared_rows, word_weight, words_inside
from trace_core.closed_form.policies import (
    KEEP_PEOPLE,
    KEEP_PROMPTS,
    KEEP_TEMPLATES,
    POLICIES,
    keep_prompts,
    keep_shares,
)
from trace_core.text.concepts import Concept, combined
from trace_core.text.encoding import SUBJECT, TextEncoder
from trace_core.text.templates import EVERYDAY


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Van Gogh", ["van"]),
        ("Emma Stone", ["stone"]),
        ("Tiger Woods", ["tiger", "woods"]),
        ("Spider-Man", ["spider", "man"]),
        ("fire truck", ["fire", "truck"]),
        ("Claude Monet", []),
        ("cat", []),
        ("a cat", []),  # the same thing with an article: kept, it would not be erased
        ("a photo of a cat", []),
        ("cat style", []),
        ("red background", []),
        ("google style", []),
        ("猫", []),
        ("R2-D2", []),
    ],
)
def test_words_inside_a_name(name, words):
    assert words_inside(Concept(name)) == words


def test_a_word_that_is_erased_itself_is_not_kept():
    assert contrast_words([Concept("Van Gogh"), Concept("van")]) == {}
    assert contrast_words([Concept("Van Gogh"), Concept("Tiger Woods"), Concept("Tiger")]) == {
        "Van Gogh": ["van"],
        "Tiger Woods": ["woods"],
    }
    assert contrast_words([combined("cat", "red background")]) == {}


def test_words_inside_names_get_prompts_and_weight():
    policy, keep, concepts = (
        "projection",
        ["house", "tree", "van"],
        [Concept("Van Gogh"), Concept("Jack Black")],
    )
    prompts = keep_prompts(POLICIES[policy], keep[:2], ["object"] * 2, {}, concepts)
    without = keep_prompts(POLICIES[policy], keep[:2], ["object"] * 2, {}, concepts, contrast=False)
    assert without == prompts[: len(without)], "the list's own prompts are as they were"
    added = prompts[len(without) :]
    assert added and {entry for _, entry in added} == {"van"} and all("van" in prompt for prompt, _ in added)
    shares = keep_shares(POLICIES[policy], prompts, keep[:2], ["object"] * 2, contrast_words(concepts))
    own, word = sum(shares[: len(without)]), sum(shares[len(without) :])
    factor = POLICIES[policy].keep
    assert own == pytest.approx(2 * factor), "every entry of the list counts once"
    assert word == pytest.approx(2 * factor)
    assert keep_shares(POLICIES[policy], without, keep[:2], ["object"] * 2, {}) == pytest.approx(
        [2 * factor / len(without)] * len(without)
    )


@pytest.mark.parametrize("policy", ["uce", "mace", "trce"])
def test_published_methods_have_the_keep_set_of_their_papers(policy):
    given = POLICIES[policy], ["house", "tree"], ["object"] * 2, {}
    assert keep_prompts(*given, [Concept("Van Gogh")]) == keep_prompts(*given)


def test_many_words_do_not_drown_the_keep_list():
    assert word_weight(1, 37) == word_weight(4, 37) == 37
    assert 200 * word_weight(200, 37) == pytest.approx(4 * 37)


@pytest.mark.parametrize(("entries", "each"), [(1, 6), (20, 6), (37, 6), (56, 4), (112, 2), (1000, 2)])
def test_a_long_keep_list_has_fewer_prompts_an_entry(entries, each):
    """The demo's 37 entries keep their six: their figures are in the README."""
    keep = [f"thing {i}" for i in range(entries)]
    prompts = keep_prompts(POLICIES["projection"], keep, ["object"] * entries, {})
    assert len(prompts) == len(set(prompts)) == entries * each <= max(KEEP_PROMPTS, 2 * entries)
    assert {entry for _, entry in prompts} == set(keep) and each <= KEEP_TEMPLATES
    assert len({prompt.replace(entry, "{}") for prompt, entry in prompts}) >= min(18, entries), (
        "all templates come"
    )


@pytest.mark.parametrize(("names", "each"), [(1, 10), (100, 10), (400, 5), (2000, 2)])
def test_kept_people_have_more_prompts_and_no_more_weight(names, each):
    keep = [*(f"Anna Berg {i}" for i in range(names)), "tree", "house"]
    kinds = ["person"] * names + ["object"] * 2
    policy = POLICIES["projection"]
    prompts = keep_prompts(policy, keep, kinds, {}, people=KEEP_PEOPLE)
    count = Counter(entry for _, entry in prompts)
    assert {count[name] for name in keep[:names]} == {max(each, count["tree"])}
    assert count["tree"] == len([p for p, e in keep_prompts(policy, keep, kinds, {}) if e == "tree"])
    weight = Counter()
    for (_, entry), share in zip(prompts, keep_shares(policy, prompts, keep, kinds, {})):
        weight[entry] += share
    assert list(weight.values()) == pytest.approx([policy.keep] * len(keep)), "every entry counts once"


def test_everyday_things_fit_one_bound():
    assert (
        len(keep_prompts(POLICIES["projection"], EVERYDAY, ["object"] * len(EVERYDAY), {}))
        == 2 * len(EVERYDAY)
        <= KEEP_PROMPTS
    )


@pytest.mark.parametrize("towers", [("l",), ("t5xxl",)])
def test_rows_that_a_causal_tower_gives_the_word_as_well(fake, towers):
    encoder = TextEncoder(fake.FakeClip(16, 24, towers))
    name, word = encoder.encode("a photo of Van Gogh", "Van Gogh"), encoder.encode("a photo of van", "van")
    found = shared_rows(encoder, name, "Van Gogh", ["van"])
    if towers == ("t5xxl",):
        assert found == [], "it sees what follows"
        return
    assert found == name.rows(SUBJECT)[:1] == word.rows(SUBJECT)
    assert torch.equal(name.embeddings[found], word.embeddings[found])
    for target, words in (("Van Gogh", ["gogh"]), ("Emma Stone", ["stone"]), ("van", ["van"])):
        assert shared_rows(encoder, encoder.encode(f"a photo of {target}", target), target, words) == []
