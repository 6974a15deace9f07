"""Every attack on the demo models: it runs, changes nothing, and finds what was not erased at all."""

from __future__ import annotations

import json

import pytest
import torch

from trace_core.backbones.sampling import SamplerConfig
from trace_core.cli.main import main
from trace_core.closed_form import ClosedFormConfig, erase
from trace_core.demo import domain, loader
from trace_core.errors import ConceptError, TraceError
from trace_core.evaluate.attacks import ATTACKS, attack
from trace_core.evaluate.attacks import case as cases
from trace_core.evaluate.attacks.learning import Course, learn
from trace_core.evaluate.attacks.rows import rows_from
from trace_core.evaluate.attacks.tokens import differentiable, embeddings
from trace_core.text.batching import encode
from trace_core.text.concepts import Concept

TRAINED = ("token-inversion", "rows-inversion")


def few_steps(model) -> SamplerConfig:
    return SamplerConfig.for_model(model, steps=6)


@pytest.fixture(scope="module")
def found(demo, lora):
    """Every attack with two pictures and as few steps as there can be; the model is as before."""
    model, clip, vae = demo
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    rows = clip.encode_from_tokens(clip.tokenize("a photo of a cat"))
    made = attack(
        model, lora, clip, vae, domain.domain(), "cat", "all", 2, config=few_steps(model), budget=0.02
    )
    model.unpatch_model()
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())
    assert torch.equal(rows, clip.encode_from_tokens(clip.tokenize("a photo of a cat")))
    return made


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_reports(found, name):
    r = found["attacks"][name]
    assert r["rate"] is None or 0 <= r["rate"] <= 1
    assert r["plain"] == found["plain"]["rate"] <= 0.5 and found["unerased"]["rate"] == 1
    assert r["reach"] is None or r["reach"] <= 1
    if name in TRAINED:
        assert {"steps", "steps_unerased", "steps_own"} <= set(r)
        assert all(curve[0][0] == 0 and len(curve) >= 2 for curve in r["curves"].values())
    json.dumps(found)


def test_rece_brings_back_at_least_what_is_there(found):
    assert found["attacks"]["rece"]["rate"] >= found["plain"]["rate"]
    assert found["attacks"]["rece"]["reach"] > found["plain"]["reach"]


def test_a_picture_alone_survives_little_noise(found):
    variants = found["attacks"]["img2img"]["variants"]
    assert list(variants) == ["0.3", "0.5", "0.7", "1"]
    assert variants["0.3"]["picture"] == 1 and variants["1"]["unerased"] == 1


def test_the_negative_prompt_is_a_variant(found):
    variants = found["attacks"]["conditioning"]["variants"]
    assert list(variants) == ["concatenated", "averaged", "negative prompt"]
    assert variants["negative prompt"]["unerased"] == 0


def test_the_text_free_inversion_comes_back_to_the_picture(found):
    r = found["attacks"]["latent-inversion"]
    assert r["rate"] == r["unerased"] == r["pictures"] == 1


def test_an_unerased_model_gives_everything(demo):
    """Without an erasure every attack that the model can follow at all draws the concept."""
    model, clip, vae = demo
    names = "rece,words,latent-inversion,img2img,stacking,token-search"
    few = few_steps(model)
    made = attack(model, None, clip, vae, domain.domain(), "dog", names, 2, config=few, budget=0.02)
    assert made["plain"]["rate"] == made["unerased"]["rate"] == 1
    assert made["plain"]["reach"] == pytest.approx(1, abs=1e-5)
    for name, r in made["attacks"].items():
        assert r["rate"] == 1, name
    variants = made["attacks"]["words"]["variants"]
    assert all(v["rate"] == v["unerased"] for v in variants.values())


def test_learning_on_both_models_differs_in_the_network_alone(demo, lora):
    """Without an erasure, both trainings from the neutral start are one and the same."""
    model, clip, _ = demo
    shown = []
    for erasure in (None, None, lora):
        latents = []
        course = Course(
            "a photo of a cat",
            "a photo of a",
            lambda x, latents=latents: latents.append(x) or 0.0,
            samples=1,
            steps=2,
            every=2,
        )
        learn(model, erasure, clip, course, rows_from(course.prompt, course.neutral), few_steps(model))
        shown.append(latents)
    assert all(torch.equal(a, b) for a, b in zip(shown[0], shown[1]))
    assert not torch.equal(shown[0][-1], shown[2][-1])


@pytest.mark.parametrize("name", loader.MODELS)
def test_gradients_pass_through_the_text_towers(engine, name):
    """Against finite differences of one number of a token's vector, in every tower."""
    _, clip, _ = loader.load(name)
    tables, tokens = embeddings(clip), clip.tokenize("a photo of a cat")
    assert set(tables) == set(tokens)
    for tower, table in tables.items():
        vector = table[7].clone()

        def read(v, tower=tower):
            chunk = [(v, *t[1:]) if at == 4 else t for at, t in enumerate(tokens[tower][0])]
            found = encode(clip, {**tokens, tower: [chunk]})
            pooled = 0 if found.pooled is None else found.pooled.sin().sum()
            return found.rows.sin().sum() + pooled

        with differentiable(clip):
            trained = vector.clone().requires_grad_()
            read(trained).backward()
            step = torch.zeros_like(vector)
            step[3] = 1e-2
            with torch.no_grad():
                slope = (read(vector + step) - read(vector - step)) / 2e-2
        assert trained.grad[3].item() == pytest.approx(slope.item(), rel=0.05, abs=2e-3)


@pytest.mark.parametrize("names", ["token-inversion,token-search,conditioning"])
def test_two_towers(engine, names):
    model, clip, vae = loader.load("demo-flux")
    keep = domain.keep_list([Concept("cat")])
    made = erase(model, clip, [Concept("cat")], keep, ClosedFormConfig(contexts=domain.CONTEXTS)).lora
    few = few_steps(model)
    found = attack(model, made, clip, vae, domain.domain(), "cat", names, 1, config=few, budget=0.02)[
        "attacks"
    ]
    assert "no negative prompt" in found["conditioning"]["note"]
    assert found["token-inversion"]["trained"] == "input vector of one token"
    for one in found["token-search"]["found"]:
        assert set(one["tokens"]) == {"l", "t5xxl"}


def test_a_progress_that_raises_cancels(demo, lora):
    model, clip, vae = demo

    def stop(phase, done, total):
        if phase.startswith("revival, erased"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack(
            model,
            lora,
            clip,
            vae,
            domain.domain(),
            "cat",
            "revival",
            1,
            progress=stop,
            config=few_steps(model),
        )
    assert not any("lora" in name for name, _ in model.model.named_modules())


def test_bad_input_is_refused(demo, lora):
    model, clip, vae = demo
    with pytest.raises(ConceptError, match="does not know 'unicorn'"):
        attack(model, lora, clip, vae, domain.domain(), "unicorn", "rece")
    with pytest.raises(TraceError, match="no attack 'tea'"):
        attack(model, lora, clip, vae, domain.domain(), "cat", "tea")
    with pytest.raises(TraceError, match="budget is 0"):
        attack(model, lora, clip, vae, domain.domain(), "cat", "rece", budget=0)
    with pytest.raises(TraceError, match="samples is 0"):
        attack(model, lora, clip, vae, domain.domain(), "cat", "rece", samples=0)


def test_a_style_is_attacked_too(demo):
    model, clip, vae = demo
    made = cases.Case(model, None, clip, vae, domain.domain(), "google style", 3)
    assert made.prompts[1] == "a photo of a automobile, google style"
    assert made.neutral[1] == "a photo of a automobile" and "google style" not in made.others


def test_command_line(demo, lora, tmp_path, capsys):
    file, out = str(lora.save(tmp_path / "cat.safetensors")), tmp_path / "found.json"
    words = ["evaluate", "--model", "demo-sd", "--lora", file, "--erase", "cat", "--samples", "2"]
    assert main([*words, "--attack", "rece,conditioning", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "rece" in printed and "concatenated" in printed and "unerased %" in printed
    assert set(json.loads(out.read_text())["attacked"]["cat"]["attacks"]) == {"rece", "conditioning"}
    for more, message in (
        (["--attack", "tea"], "no attack 'tea'"),
        (["--attack", "rece", "--recover"], "give one of both"),
        (["--attack", "rece", "--budget", "0"], "--budget is 0"),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err
    assert main(["evaluate", "--model", "demo-sd", "--attack", "rece"]) == 2
    assert "--attack attacks one erasure" in capsys.readouterr().err
