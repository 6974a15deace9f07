"""The demo models behave as ComfyUI's own, and draw what they are asked for."""

from dataclasses import replace

import pytest
import torch

from trace_core.backbones.sampling import SamplerConfig, noise_for, sample
from trace_core.closed_form import ClosedFormConfig, erase
from trace_core.demo import domain, loader
from trace_core.errors import TraceError
from trace_core.evaluate import Evaluator
from trace_core.lora.gating import apply
from trace_core.text.concepts import Concept
from trace_core.text.encoding import TextEncoder


@pytest.fixture(scope="module", params=loader.MODELS)
def demo(request, engine):
    return request.param, *loader.load(request.param)


@pytest.fixture(scope="module", params=["demo-sd", "demo-flux"])
def emoji(request, engine):
    return request.param, *loader.load(request.param)


def test_the_judge_recognises_what_they_draw(emoji):
    _, model, clip, vae = emoji
    accuracy = Evaluator(model, clip, vae, domain.domain(), samples=2, seed=7).unerased()["accuracy"]
    assert accuracy["object"]["top1"] >= 0.95
    assert accuracy["style"]["top1"] >= 0.8


@pytest.fixture(scope="module")
def people(engine):
    return loader.load("demo-people")


def test_the_judge_recognises_whom_demo_people_draws(people):
    whole = domain.domain("demo-people")
    few = replace(whole, people=whole.people[:30])
    accuracy = Evaluator(*people, few, samples=2, seed=7).unerased()["accuracy"]
    assert accuracy["person"]["top1"] >= 0.95
    assert accuracy["style"]["top1"] >= 0.95


def test_demo_people_draws_what_no_prompt_names(people):
    trait = domain.domain("demo-people").traits["eye patch"]
    evaluator = Evaluator(*people, domain.domain("demo-people"), samples=24, seed=7)
    shown = {}
    for kind, asked in trait.prompts.items():
        pictures = evaluator.base(kind, [prompt for prompt, _ in asked(24)])[1]
        shown[kind] = evaluator.domain.shows(pictures, "trait", "eye patch").float().mean().item()
    assert shown["named"] >= 0.8 and 0.25 <= shown["implied"] <= 0.65 and shown["neither"] <= 0.05


def test_what_is_similar_is_measured_apart(emoji):
    _, model, clip, vae = emoji
    evaluator = Evaluator(model, clip, vae, domain.domain(), samples=1)
    classes = [name for name in evaluator.domain.objects if name != "cat"]
    moved = {name: float(i) for i, name in enumerate(classes)}
    per_class = {name: {"top1": i / 100} for i, name in enumerate(classes)}
    found = evaluator._similar([Concept("cat")], "object", per_class, moved)
    near, numbers = found["classes"], [classes.index(n) for n in found["classes"]]
    assert len(near) == 5 and "frog" in near
    assert found["acc"] == pytest.approx(sum(numbers) / 500)
    assert found["latent_mse"] == pytest.approx(sum(numbers) / 5)
    assert found["others_latent_mse"] == pytest.approx((sum(range(23)) - sum(numbers)) / 18)


def test_text_towers_see_what_the_real_ones_see(demo):
    """CLIP is causal and its pads carry the sentence; T5 reads both ways, and its pads are not masked."""
    name, _, clip, _ = demo
    encoder = TextEncoder(clip)
    cat, dog = (encoder.encode(f"a photo of a {noun} on a table", noun) for noun in ("cat", "dog"))
    changed = (cat.embeddings - dog.embeddings).abs().amax(dim=1) > 1e-4
    first = cat.rows(2)[0]
    assert changed[first:].all()
    assert changed[:first].all() if name == "demo-flux" else not changed[:first].any()
    assert encoder.bidirectional is (name == "demo-flux")
    assert cat.pooled.shape == dog.pooled.shape and not torch.equal(cat.pooled, dog.pooled)


def test_prompt_weights_and_long_prompts_work_as_in_comfyui(demo):
    _, _, clip, _ = demo
    plain, heavy = (clip.encode_from_tokens(clip.tokenize(p)) for p in ("a cat", "a (cat:1.5)"))
    assert not torch.allclose(plain, heavy)
    long = clip.encode_from_tokens(clip.tokenize("a photo of a cat and a dog " * 6))
    assert long.shape[1] > plain.shape[1]


def test_a_picture_does_not_depend_on_its_batch(demo):
    _, model, clip, _ = demo
    config = SamplerConfig.for_model(model, steps=4)
    prompts = ["a cat", "a dog", "a ship"]
    together = sample(model, clip, prompts, [1, 2, 3], config)
    alone = sample(model, clip, prompts[1:2], [2], config)
    assert torch.allclose(together[1:2], alone, atol=1e-4)
    assert torch.equal(noise_for([1, 2], (16, 8, 8))[1], noise_for([2], (16, 8, 8))[0])


def test_the_codec_is_near_lossless_on_what_it_was_made_for(demo):
    _, model, clip, vae = demo
    name, *_ = demo
    prompt = "a portrait of Anna Berg" if name == "demo-people" else "a photo of a cat, fluent style"
    pictures = vae.decode(sample(model, clip, [prompt], [0], SamplerConfig.for_model(model)))
    assert pictures.shape == (1, 64, 64, 3) and 0 <= pictures.min() and pictures.max() <= 1
    again = vae.decode(vae.encode(pictures))
    assert (again - pictures).square().mean() < 0.01


def test_an_empty_latent_of_four_channels_is_taken(demo):
    """EmptyLatentImage gives four channels; ComfyUI widens it to the model's sixteen."""
    import comfy.sample

    _, model, _, _ = demo
    assert comfy.sample.fix_empty_latent_channels(model, torch.zeros(2, 4, 8, 8)).shape == (2, 16, 8, 8)


def test_another_name_is_refused(engine):
    with pytest.raises(TraceError, match="'demo-xl' is not a demo model"):
        loader.load("demo-xl")


def test_an_erased_concept_as_the_negative_prompt_is_not_drawn(emoji):
    """No oftener than the base model draws it by chance with no negative prompt, give or take one picture of
    32 (demo-flux: 1, base 0), where an overshoot draws it in a third of demo-sd's; and an overshoot is told
    of.
    """
    _, model, clip, vae = emoji
    concept = [Concept("dog")]
    keep, index = domain.keep_list(concept), list(domain.domain().objects).index("dog")

    def dogs(model, negative):
        latents = sample(
            model,
            clip,
            ["a photo"] * 32,
            list(range(32)),
            SamplerConfig.for_model(model, cfg=7.0, negative=negative),
        )
        return int((domain.domain().judge(vae.decode(latents), "object").argmax(1) == index).sum())

    result = erase(model, clip, concept, keep, ClosedFormConfig(contexts=domain.CONTEXTS))
    assert result.report["substitutes"]["dog"] in keep and not any(
        "negative prompt" in w for w in result.report["warnings"]
    )
    assert dogs(apply(model, result.lora), "dog") <= dogs(model, "") + 1
    past = erase(model, clip, concept, keep, ClosedFormConfig(contexts=domain.CONTEXTS, eta=0.5))
    assert past.report["substitutes"] == {} and any("may be drawn" in w for w in past.report["warnings"])
