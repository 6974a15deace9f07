"""Templates as long as people write prompts."""

from __future__ import annotations

import pytest

from trace_core.concepts import KINDS, fill
from trace_core.long_prompts import LONGEST, OPENINGS, PLACES, SHARES, TAGS, long_templates
from trace_core.text import SUBJECT, TextEncoder

NAMES = ["cat", "a very long name of a red house", "dog"]


@pytest.mark.parametrize("towers", [("l",), ("l", "t5xxl")])
@pytest.mark.parametrize("length", [24, 77, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_every_name_fits_and_is_found(fake, kind, length, towers):
    encoder = TextEncoder(fake.FakeClip(32, length, towers))
    made = long_templates(kind, encoder, NAMES)
    assert made == long_templates(kind, encoder, NAMES) and len(made) >= 6
    content = min(length, LONGEST + 2) - 2
    for template in made:
        for name in NAMES:
            prompt = fill(template, name)
            assert encoder.length(prompt) <= content and encoder.encode(prompt, name).rows(SUBJECT)


def test_the_concept_stands_early_in_the_middle_and_late(fake):
    encoder = TextEncoder(fake.FakeClip(32, 77))
    made = long_templates("object", encoder, ["cat"])
    assert len(made) == len(SHARES) * len(PLACES)
    starts = [t.startswith(OPENINGS["object"]) for t in made]
    ends = [t.endswith(OPENINGS["object"]) for t in made]
    assert sum(starts) == sum(ends) == len(SHARES) and not any(a and b for a, b in zip(starts, ends))
    lengths = sorted(encoder.length(fill(t, "cat")) for t in made)
    assert lengths[0] >= 20 and lengths[-1] >= 60
    assert any(tag in t for tag in TAGS for t in made)


def test_a_name_as_long_as_a_prompt_leaves_no_room(fake):
    encoder = TextEncoder(fake.FakeClip(32, 24))
    assert long_templates("object", encoder, [" ".join(["cat"] * 21)]) == []
