"""Many prompts in one pass of the text towers give the rows that each gives alone."""

from __future__ import annotations

import logging

import pytest
import torch

from trace_core.closed_form import ClosedFormConfig, erase
from trace_core.errors import ConceptError
from trace_core.text.batching import BatchEncoder
from trace_core.text.concepts import Concept
from trace_core.text.encoding import TextEncoder

PROMPTS = [
    "",
    "a cat",
    "a photo of a dog",
    "a photo of a (cat)",
    "Van Gogh",
    "an image of a house, red background",
    "a cat",
]


def sdxl_clip(tiny):
    """SDXL's two towers and its pooled vector, the towers tiny; the tokenizers are the demo's, which every
    engine has.
    """
    import comfy.sd
    import comfy.supported_models_base

    from trace_core.demo import sizes, text_towers

    tower, tokenizer = (
        text_towers._clip_model(sizes.CLIP_SD),
        text_towers._clip_tokenizer(sizes.CLIP_SD["hidden_size"]),
    )

    class Model(comfy.sdxl_clip.SDXLClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            torch.nn.Module.__init__(self)
            self.clip_l, self.clip_g = (
                tower(device=device, dtype=dtype, model_options=model_options) for _ in "lg"
            )
            for side in (self.clip_l, self.clip_g):  # penultimate layer, not normed, as SDXL's
                side.layer, side.layer_idx, side.layer_norm_hidden_state = "hidden", -2, False
                side.options_default = ("hidden", -2, True)
            self.dtypes = {dtype}

    class Tokenizer(comfy.sdxl_clip.SDXLTokenizer):
        def __init__(self, embedding_directory=None, **_):
            self.clip_l, self.clip_g = (tokenizer(embedding_directory=embedding_directory) for _ in "lg")
            self.clip_g.pad_token = 0

    clip = comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(Tokenizer, Model), model_options={"dtype": torch.float32}
    )
    tiny.initialise(clip.cond_stage_model)
    return clip


@pytest.fixture(scope="module")
def clips(families, tiny):
    return {"sd1": families["sd1"].clip, "flux": families["flux"].clip, "sdxl": sdxl_clip(tiny)}


def alone(clip, prompt: str):
    rows, pooled = clip.encode_from_tokens(
        clip.tokenize(prompt.replace("(", "\\(").replace(")", "\\)")), return_pooled=True
    )
    return rows[0], None if pooled is None else pooled[0]


def furthest(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def calls_of(clip, monkeypatch) -> list:
    calls, plain = [], clip.encode_from_tokens
    monkeypatch.setattr(clip, "encode_from_tokens", lambda *a, **k: calls.append(a) or plain(*a, **k))
    return calls


@pytest.mark.parametrize("family", ["sd1", "sdxl", "flux"])
def test_rows_and_pooled_are_those_of_each_prompt_alone(clips, family, monkeypatch):
    clip = clips[family]
    expected = [alone(clip, p) for p in PROMPTS]
    calls = calls_of(clip, monkeypatch)
    found = list(TextEncoder(clip).encode_all((p, "") for p in PROMPTS))
    assert len(calls) == 2, "one pass for all, and one prompt alone to see that they agree"
    for rows, (own, pooled) in zip(found, expected):
        assert furthest(rows.embeddings, own) < 1e-5
        assert (rows.pooled is None) == (pooled is None)
        assert pooled is None or furthest(rows.pooled, pooled) < 1e-5
    different = [own for _, own in expected if own is not None]
    assert len(different) < 2 or furthest(different[0], different[1]) > 1e-2, (
        "pooled vectors that could not be mixed up"
    )


def test_towers_are_left_as_they_were(clips):
    model = clips["sdxl"].cond_stage_model
    before = [dict(m.__dict__) for m in model.modules()]
    list(TextEncoder(clips["sdxl"]).encode_all((p, "") for p in PROMPTS))
    for module, old in zip(model.modules(), before):
        assert "encode" not in module.__dict__ and set(module.__dict__) - set(old) == set()


def test_a_prompt_is_encoded_once_whatever_is_looked_up_in_it(clips, monkeypatch):
    calls = calls_of(clips["sd1"], monkeypatch)
    encoder = TextEncoder(clips["sd1"])
    cat, dog, plain = encoder.encode_all(
        [("a cat and a dog", "cat"), ("a cat and a dog", "dog"), ("a cat and a dog", "")]
    )
    assert len(calls) == 1 and len(calls[0][0]["l"]) == 1
    assert cat.groups != dog.groups != plain.groups and torch.equal(cat.embeddings, dog.embeddings)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "flux"])
def test_clip_skip_and_lora_are_those_of_the_clip_that_is_given(clips, family):
    """On a clone, as ComfyUI's nodes make it; afterwards the original gives what it gave."""
    clip, pairs = clips[family], [(p, "") for p in PROMPTS]
    first = [r.embeddings for r in TextEncoder(clip).encode_all(pairs)]
    changed = clip.clone()
    if family != "flux":  # T5 has no clip skip on the oldest engine
        changed.clip_layer(-1 if family == "sdxl" else -2)
    key = [
        k
        for k in clip.cond_stage_model.state_dict()
        if k.endswith(("mlp.fc1.weight", "wi_0.weight", "wi.weight"))
    ][-1]
    weight = clip.cond_stage_model.state_dict()[key]
    changed.add_patches({key: (0.1 * torch.ones_like(weight),)}, 1.0)
    for rows, prompt in zip(TextEncoder(changed).encode_all(pairs), PROMPTS):
        assert furthest(rows.embeddings, alone(changed, prompt)[0]) < 1e-5
    assert furthest(rows.embeddings, first[-1]) > 1e-3, "the clone's rows are others"
    for rows, before in zip(TextEncoder(clip).encode_all(pairs), first):
        assert torch.equal(rows.embeddings, before)


class Wrapped:
    """A CLIP of another pack: it reads ComfyUI's, and scales rows by the mean of all that it is given at
    once.
    """

    def __init__(self, clip):
        self._clip, self.cond_stage_model = clip, clip.cond_stage_model
        self.tokenize = clip.tokenize

    def encode_from_tokens(self, tokens, return_pooled=False):
        rows, pooled = self._clip.encode_from_tokens(tokens, return_pooled=True)
        return rows - rows.mean(), pooled


class Refusing(Wrapped):
    """One that takes a single chunk only."""

    def encode_from_tokens(self, tokens, return_pooled=False):
        if any(len(chunks) > 1 for chunks in tokens.values()):
            raise ValueError("one chunk, please")
        return self._clip.encode_from_tokens(tokens, return_pooled=True)


class Counting(Wrapped):
    """One whose pooled vector is no tower's own."""

    def encode_from_tokens(self, tokens, return_pooled=False):
        rows, pooled = self._clip.encode_from_tokens(tokens, return_pooled=True)
        return rows, 2 * pooled


@pytest.mark.parametrize("wrapper", [Wrapped, Refusing, Counting])
def test_what_does_not_take_several_prompts_gets_one_at_a_time(clips, wrapper, caplog):
    clip = wrapper(clips["flux"])
    expected = [alone(clip, p) for p in PROMPTS]
    with caplog.at_level(logging.DEBUG, logger="trace_core.text.batching"):
        found = list(TextEncoder(clip).encode_all((p, "") for p in PROMPTS))
    assert "one at a time" in caplog.text
    for rows, (own, pooled) in zip(found, expected):
        assert torch.equal(rows.embeddings, own) and torch.equal(rows.pooled, pooled)


def test_too_little_memory_for_several_prompts(clips, monkeypatch):
    """Also in the middle of a list."""
    clip, plain, limit = clips["sd1"], clips["sd1"].encode_from_tokens, [10**9]

    def small(tokens, **options):
        if len(tokens["l"]) > limit[0]:
            raise torch.OutOfMemoryError("too little")
        return plain(tokens, **options)

    monkeypatch.setattr(clip, "encode_from_tokens", small)
    batch, tokens = BatchEncoder(clip), [clip.tokenize(p) for p in PROMPTS]
    before = batch(tokens)
    limit[0] = 1
    for found, own in zip(batch(tokens), before):
        assert furthest(found.rows, own.rows) < 1e-5


def test_weights_and_long_prompts_go_alone(clips):
    clip = clips["sd1"]
    prompts = ["a cat", "a (cat:1.3)", "a dog", "a photo of a cat and a dog " * 6]
    for found, prompt in zip(BatchEncoder(clip)([clip.tokenize(p) for p in prompts]), prompts):
        assert furthest(found.rows, clip.encode_from_tokens(clip.tokenize(prompt))[0]) < 1e-5


@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_closed_form_is_the_same_with_and_without_batches(families, family, monkeypatch):
    case = families[family]
    model, config = case.model(), ClosedFormConfig()
    fast = erase(model, case.clip, [Concept("cat", "dog")], ["house", "tree", "bird"], config)
    monkeypatch.setattr("trace_core.text.batching.BATCH_ROWS", 1)
    monkeypatch.setattr("trace_core.text.encoding.BATCH_ROWS", 1)
    slow = erase(model, case.clip, [Concept("cat", "dog")], ["house", "tree", "bird"], config)
    assert fast.report["solved"]["context"]["rank"] == slow.report["solved"]["context"]["rank"]
    for module in slow.lora.modules:
        assert (fast.lora.delta(module) - slow.lora.delta(module)).norm() < 2e-3 * slow.lora.delta(
            module
        ).norm(), module


def test_fault_of_one_prompt_among_others_is_told_by_name(clips):
    with pytest.raises(ConceptError, match="'a photo of a cat.*does not fit"):
        list(
            TextEncoder(clips["sd1"]).encode_all(
                [("a dog", ""), ("a photo of a cat " * 30, ""), ("a cat", "")]
            )
        )
