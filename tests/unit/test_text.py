"""Prompts to rows: groups, alignment on token ids, and what is refused."""

from __future__ import annotations

import pytest
import torch

from trace_core.errors import ConceptError
from trace_core.text.encoding import (
    AFTER,
    BEFORE,
    BOS,
    FIRST_EOT,
    PAD,
    SUBJECT,
    TextEncoder,
    TextRows,
    align,
    escape,
)

LETTERS = {"B": BOS, "b": BEFORE, "S": SUBJECT, "a": AFTER, "E": FIRST_EOT, "p": PAD}


def rows_of(words: str, groups: str, value: float = 0.0) -> TextRows:
    """Rows whose only number tells where they stand: ids are the words' letters, row i holds value + i."""
    ids = tuple(ord(w[0]) for w in words.split())
    assert len(ids) == len(groups)
    return TextRows(
        value + torch.arange(len(ids)).float()[:, None], ids, tuple(LETTERS[g] for g in groups), None
    )


def partners(erase: TextRows, want: TextRows) -> list[int]:
    pairs = align(erase, want)
    assert torch.equal(pairs.erase, erase.embeddings)
    assert pairs.groups == erase.groups
    return pairs.want[:, 0].long().tolist()


# --------------------------------------------------------------------------------------------- alignment


def test_align_single_token_anchor():
    erase = rows_of("< x y C z > > >", "BbbSaEpp")
    assert partners(erase, rows_of("< x y D z > > >", "BbbSaEpp")) == [0, 1, 2, 3, 4, 5, 6, 7]


def test_align_longer_subject_uses_the_anchors_first_row_again():
    erase = rows_of("< x C D E z > >", "BbSSSaEp")
    assert partners(erase, rows_of("< x d z > > > >", "BbSaEppp")) == [0, 1, 2, 2, 2, 3, 4, 5]


def test_align_longer_anchor_is_paired_from_its_last_token():
    """The last token of each carries its meaning in a causal encoder; pads beyond the end stay on the last
    row.
    """
    erase = rows_of("< x C z > > > >", "BbSaEppp")
    assert partners(erase, rows_of("< x d e f z > >", "BbSSSaEp")) == [0, 1, 4, 5, 6, 7, 7, 7]


def test_align_two_token_subject_to_two_token_anchor():
    erase = rows_of("< C D > >", "BSSEp")
    assert partners(erase, rows_of("< d e > >", "BSSEp")) == [0, 1, 2, 3, 4]


def test_align_neutral_pairs_the_subject_with_the_row_that_follows():
    erase = rows_of("< x C D z > > >", "BbSSaEpp")
    assert partners(erase, rows_of("< x z > > > > >", "BbbEpppp")) == [0, 1, 2, 2, 2, 3, 4, 5]


def test_align_neutral_with_nothing_left():
    erase = rows_of("< C D > > >", "BSSEpp")
    assert partners(erase, rows_of("< > > > > >", "BEpppp")) == [0, 1, 1, 1, 2, 3]


def test_align_neutral_that_changes_the_template():
    """`a cat, red` -> `a, red`: the words behind the concept are found although they moved."""
    erase = rows_of("< a C , r > >", "BbSaaEp")
    assert partners(erase, rows_of("< a , r > > >", "BbbbEpp")) == [0, 1, 2, 2, 3, 4, 5]


def test_align_anchor_that_starts_as_the_concept_does():
    """`red cat` -> `red dog`: the shared word belongs to the subject, not to the common beginning."""
    erase = rows_of("< r C > >", "BSSEp")
    assert partners(erase, rows_of("< r D > >", "BSSEp")) == [0, 1, 2, 3, 4]


def test_align_anchor_that_ends_as_the_concept_does():
    """`grumpy cat` -> `cat`: paired from the last token backwards."""
    erase = rows_of("< g C z > >", "BSSaEp")
    assert partners(erase, rows_of("< C z > > >", "BSaEpp")) == [0, 1, 1, 2, 3, 4]


def test_align_neutral_keeps_a_repeated_word_apart():
    """`x C x` -> `x x`: both x are found, the concept is paired with the second."""
    erase = rows_of("< x C x > >", "BbSaEp")
    assert partners(erase, rows_of("< x x > > >", "BbbEpp")) == [0, 1, 2, 2, 3, 4]


def test_align_full_prompt_without_end_token():
    erase = rows_of("< x C z", "BbSa")
    assert partners(erase, rows_of("< x d z", "BbSa")) == [0, 1, 2, 3]


def test_align_without_start_token():
    erase = rows_of("x C > p p", "bSEpp")
    assert partners(erase, rows_of("x d > p p", "bSEpp")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("target", ["cat", "caterpillar", "a very long multi token concept"])
@pytest.mark.parametrize("anchor", ["", "dog", "another quite long anchor phrase", "cat house"])
@pytest.mark.parametrize("template", ["{}", "a photo of a {}", "{} on the table", "the {}, red"])
@pytest.mark.parametrize("towers", [("l",), ("l", "t5xxl")])
def test_align_pairs_equal_ids_outside_the_subject(fake, target, anchor, template, towers):
    """Ends on ends, pads on pads, every word of the template on the same word, order kept; on either kind
    of tower.
    """
    from trace_core.text.templates import fill

    encoder = TextEncoder(fake.FakeClip(8, 40, towers))
    erase = encoder.encode(fill(template, target), target)
    want = encoder.encode(fill(template, anchor), anchor)
    marked = TextRows(torch.arange(len(want.ids)).float()[:, None], want.ids, want.groups, None)
    chosen = align(erase, marked).want[:, 0].long().tolist()
    assert chosen == sorted(chosen)
    for i, j in enumerate(chosen):
        if erase.groups[i] == SUBJECT:
            assert want.groups[j] == SUBJECT or not anchor
        elif erase.groups[i] == PAD:
            assert want.groups[j] == PAD
        else:
            assert erase.ids[i] == want.ids[j]


# --------------------------------------------------------------------------------------------- groups


def names(rows: TextRows) -> str:
    return "".join({v: k for k, v in LETTERS.items()}[g] for g in rows.groups)


def test_groups_of_a_causal_tower(fake):
    encoder = TextEncoder(fake.FakeClip(8, 12))
    assert not encoder.bidirectional
    # photo = phot + o
    assert names(encoder.encode("a photo of a caterpillar, red", "caterpillar")) == "BbbbbbSSSaaE"
    assert names(encoder.encode("a cat", "cat")) == "BbSEpppppppp"
    assert names(encoder.encode("a cat")) == "BbbEpppppppp"
    assert names(encoder.encode("")) == "BEpppppppppp"


def test_groups_of_t5(fake):
    encoder = TextEncoder(fake.FakeClip(8, 10, ("l", "t5xxl"), pooled=4))
    assert encoder.bidirectional
    assert names(encoder.encode("a cat, red", "cat")) == "bSaaEppppp"
    assert names(encoder.encode("")) == "Eppppppppp"
    assert encoder.encode("a cat").ids[-1] == fake.PAD_T5
    assert encoder.encode("a cat").pooled.shape == (4,)


def test_groups_of_a_tower_that_pads_with_zero(fake):
    encoder = TextEncoder(fake.FakeClip(8, 8, ("g",)))
    (tower,) = encoder.towers
    assert (tower.start, tower.end, tower.pad) == ((fake.START,), (fake.END,), 0)
    assert names(encoder.encode("a cat", "cat")) == "BbSEpppp"


def test_the_last_occurrence_is_the_subject(fake):
    encoder = TextEncoder(fake.FakeClip(8, 12))
    assert names(encoder.encode("cat of a cat", "cat")) == "BbbbSEpppppp"


def test_alignment_is_on_ids_not_on_words(fake):
    """`housecat` is cut as hous-ecat: the word is there, its tokens are not."""
    encoder = TextEncoder(fake.FakeClip(8, 12))
    with pytest.raises(ConceptError, match="tokens of 'cat' cannot be found in 'a housecat'"):
        encoder.encode("a housecat", "cat")


def test_last_token_that_is_joined_with_the_sign_behind_it(fake):
    """T5 has tokens such as `2,`: `R2-D2, red` ends its concept in another token than `R2-D2` alone."""
    clip = fake.FakeClip(8, 12, ("t5xxl",))
    comma, two, joined = clip.ids(",")[0], clip.ids("2")[0], 7
    original = clip.ids

    def ids(text):
        out = original(text)
        while (two, comma) in zip(out, out[1:]):
            at = list(zip(out, out[1:])).index((two, comma))
            out[at : at + 2] = [joined]
        return out

    clip.ids = ids
    encoder = TextEncoder(clip)
    assert names(encoder.encode("a bee 2, red", "bee 2")) == "bSSaEppppppp"
    assert names(encoder.encode("a bee 2 red", "bee 2")) == "bSSaEppppppp"
    with pytest.raises(ConceptError, match="cannot be found"):
        encoder.encode("a 2, red", "2")


def test_rows_of_causal_towers_are_the_same_before_the_subject(fake):
    causal, t5 = (TextEncoder(fake.FakeClip(8, 12, towers)) for towers in (("l",), ("t5xxl",)))
    for encoder, equal in ((causal, True), (t5, False)):
        cat, dog = encoder.encode("a photo of a cat", "cat"), encoder.encode("a photo of a dog", "dog")
        before = cat.rows(BEFORE)
        assert before == dog.rows(BEFORE)
        assert torch.equal(cat.embeddings[before], dog.embeddings[before]) is equal


def test_rows_are_what_the_clip_gives(fake):
    clip = fake.FakeClip(8, 12, pooled=4)
    encoder = TextEncoder(clip)
    rows, pooled = clip.encode_from_tokens(clip.tokenize("a cat"), return_pooled=True)
    got = encoder.encode("a cat", "cat")
    assert torch.equal(got.embeddings, rows[0]) and torch.equal(got.pooled, pooled[0])
    assert got.embeddings.dtype == torch.float32
    assert got.ids == tuple(i for i, _ in clip.tokenize("a cat")["l"][0])


def test_every_prompt_is_encoded_once(fake):
    clip = fake.FakeClip(8, 12)
    calls = []
    original = clip.encode_from_tokens
    clip.encode_from_tokens = lambda *a, **k: calls.append(a) or original(*a, **k)
    encoder = TextEncoder(clip)
    assert encoder.encode("a cat", "cat") is encoder.encode("a cat", "cat")
    assert len(calls) == 1


@pytest.mark.parametrize("every", [1, 40])
def test_what_is_remembered_has_a_bound(fake, every):
    """Hundreds of prompts of concepts come and go; the neutral one is encoded once, however seldom it is
    used.
    """
    clip = fake.FakeClip(8, 12, pooled=4)
    calls = []
    original = clip.encode_from_tokens
    clip.encode_from_tokens = lambda *a, **k: calls.append(a) or original(*a, **k)
    one = 4 * (12 * 8 + 4)
    encoder = TextEncoder(clip, limit=5 * one + 1)
    neutral = encoder.encode("a photo of a ")
    assert neutral.bytes == one
    for i in range(200):
        encoder.encode(f"cat {i}", "cat")
        if i % every == 0:
            assert encoder.encode("a photo of a ") is neutral
        assert encoder._bytes == sum(rows.bytes for rows in encoder._cache.values()) <= encoder.limit
    assert len(encoder._cache) == 5 and len(calls) == 201
    last, first = encoder.encode("cat 199", "cat"), encoder.encode("cat 0", "cat")
    assert len(calls) == 202, "the last is remembered, the first was forgotten"
    assert first.embeddings.shape == last.embeddings.shape
    for i in range(10):
        encoder.encode("cat" * i)
        assert encoder._bytes <= encoder.limit, "neutral ones alone have the same bound"


def test_a_prompt_larger_than_the_bound_is_encoded_all_the_same(fake):
    encoder = TextEncoder(fake.FakeClip(8, 12), limit=1)
    assert encoder.encode("a cat", "cat") is encoder.encode("a cat", "cat")
    assert encoder.encode("a dog", "dog").embeddings.shape == (12, 8) and len(encoder._cache) == 1


def test_rows_do_not_share_memory_with_the_clip(fake):
    """Inside ComfyUI the conditioning is an inference tensor and may be written by others."""
    clip = fake.FakeClip(8, 12)
    held = torch.ones(1, 12, 8)
    clip.encode_from_tokens = lambda *_, **__: (held, None)
    rows = TextEncoder(clip).encode("a cat", "cat")
    held.zero_()
    assert rows.embeddings.min() == 1


# --------------------------------------------------------------------------------------------- escapes


@pytest.mark.parametrize("prompt", ["a cat (animal)", "((cat))", "cat (1.3)", "(cat:1.3)", "cat)", "(cat"])
def test_parentheses_are_words_not_weights(fake, prompt):
    clip = fake.FakeClip(8, 16)
    tokens = clip.tokenize(escape(prompt))["l"][0]
    assert all(weight == 1.0 for _, weight in tokens)
    content = [i for i, _ in tokens if i not in (fake.START, fake.END)]
    assert content == clip.ids(prompt)


@pytest.mark.parametrize(
    ("prompt", "escaped"),
    [
        ("saber (fate)", r"saber \(fate\)"),
        (r"saber \(fate\)", r"saber \(fate\)"),
        (r"AC\DC", r"AC\DC"),
        ("x\\", "x\\"),
    ],
)
def test_escape(prompt, escaped):
    """As people type them in ComfyUI; a backslash that escapes nothing is a character, and must not be
    doubled.
    """
    assert escape(prompt) == escaped == escape(escaped)


def test_a_concept_with_parentheses_is_found(fake):
    encoder = TextEncoder(fake.FakeClip(8, 16))
    assert names(encoder.encode("a photo of (cat)", "(cat)"))[:10] == "BbbbbSSSEp"


# --------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("towers", [("l",), ("t5xxl",)])
@pytest.mark.parametrize("dropped", ["🐈", "قطة", "\u200b"])
def test_concept_that_the_tokenizer_drops(fake, dropped, towers):
    with pytest.raises(
        ConceptError, match=f"tokenizer drops '{dropped}' entirely; write the concept in words"
    ):
        TextEncoder(fake.FakeClip(8, 12, towers)).encode(f"a photo of a {dropped}", dropped)


def test_anchor_that_the_tokenizer_drops(fake):
    with pytest.raises(ConceptError, match="tokenizer drops '🐶'"):
        TextEncoder(fake.FakeClip(8, 12)).encode("a photo of a 🐶", "🐶")


def test_prompt_of_several_chunks(fake):
    with pytest.raises(
        ConceptError, match=r"is 24 tokens long and does not fit into one prompt of 12; shorten"
    ):
        TextEncoder(fake.FakeClip(8, 12)).encode("one two six ten red sea sky sun cat dog bee", "bee")


def test_concept_of_several_chunks(fake):
    with pytest.raises(ConceptError, match="does not fit into one prompt"):
        TextEncoder(fake.FakeClip(8, 12)).content_ids("cat " * 40)


def test_textual_inversion(fake):
    with pytest.raises(ConceptError, match="textual-inversion embedding; erase a concept by its words"):
        TextEncoder(fake.FakeClip(8, 12, embeddings=("mystyle",))).encode("a mystyle", "mystyle")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite(fake, bad):
    clip = fake.FakeClip(8, 12)
    original = clip.encode_from_tokens

    def broken(tokens, return_pooled=False):
        rows, pooled = original(tokens, return_pooled=True)
        rows[0, 3, 2] = bad
        return rows, pooled

    clip.encode_from_tokens = broken
    with pytest.raises(ConceptError, match="returns NaN for 'a cat'; load it in float32"):
        TextEncoder(clip).encode("a cat", "cat")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_pooled_vector_that_is_not_finite(fake, bad):
    clip = fake.FakeClip(8, 12, pooled=4)
    original = clip.encode_from_tokens

    def broken(tokens, return_pooled=False):
        rows, pooled = original(tokens, return_pooled=True)
        pooled[0, 1] = bad
        return rows, pooled

    clip.encode_from_tokens = broken
    with pytest.raises(ConceptError, match="NaN"):
        TextEncoder(clip).encode("a cat", "cat")


def test_clip_whose_rows_are_not_its_tokens(fake):
    clip = fake.FakeClip(8, 12)
    original = clip.encode_from_tokens
    clip.encode_from_tokens = lambda t, return_pooled=False: (original(t)[:, :-2], None)
    with pytest.raises(ConceptError, match="gives 10 rows for 12 tokens"):
        TextEncoder(clip).encode("a cat", "cat")
