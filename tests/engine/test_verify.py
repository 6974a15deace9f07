"""Verify Erasure on real model objects: it tells good from bad, changes nothing, and runs on every family."""

from __future__ import annotations

import importlib
import json

import pytest
import torch

from engine_cases import some_lora, unload
from trace_core.backbones.sampling import SamplerConfig
from trace_core.cli.main import main
from trace_core.demo import domain
from trace_core.errors import ConceptError, LoraError
from trace_core.evaluate.verify import FAIL, PASS, Effort, verify
from trace_core.evaluate.verify.pictures import best_named, evidence
from trace_core.evaluate.verify.scene import Scene
from trace_core.evaluate.verify.thresholds import SHOWN
from trace_core.lora import ErasureLora
from trace_core.lora.metadata import VERIFICATION
from trace_core.text.concepts import Concept
from trace_core.text.grammar import parse_concepts

SMALL = Effort(samples=4, kept=4, kept_samples=1, neighbours=2, levels=4, repeats=1)
LEAST = Effort(samples=1, kept=2, kept_samples=1, neighbours=1, levels=2, repeats=1)


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def found(demo, lora):
    """A verification of a good erasure; the model is as before, bit for bit."""
    model, clip, vae = demo
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    phases = []
    made = verify(
        model,
        clip,
        lora,
        synonyms={"cat": ["kitty"]},
        vae=vae,
        effort=SMALL,
        progress=lambda phase, done, total: phases.append((phase, done, total)),
    )
    unload()
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())
    assert all(0 <= done <= total for _, done, total in phases)
    return made, phases


def test_a_good_erasure_is_not_failed(found):
    made, _ = found
    pictures = next(i for i in made.items if i.name == "concept drawn")
    assert made.status != FAIL and pictures.status == PASS and pictures.figure == 0.0
    assert made.concepts[0].drawn.usable == 4
    assert len(made.concepts[0].drawn.names) == 23 and "Of 24 names" in pictures.sentence
    assert made.weakest["of"] >= 1 and made.leak["concept"] == "cat"
    ways = {w.probe.name: w for w in made.concepts[0].ways}
    assert ways["other case"].known and "synonym 'kitty'" in ways
    assert not ways["misspelling"].known, "the demo model spells unknown words by letters"
    assert made.concepts[0].residuals and made.concepts[0].attacks[0].reach > ways["plain prompt"].reach
    json.dumps(made.to_dict())


def test_the_curve_falls_on_average(found):
    curve = found[0].concepts[0].curve
    assert len(curve.sigma) == SMALL.levels + 1 and curve.sigma == sorted(curve.sigma, reverse=True)
    assert sum(curve.left) < 0.5 * sum(curve.before)


def test_thumbnails_are_of_concepts_and_of_what_stays(found):
    prompts = [prompt for prompt, *_ in found[0].thumbnails]
    assert any("cat" in p for p in prompts) and any("cat" not in p for p in prompts)


def test_another_things_erasure_fails(demo, lora):
    """The file erases cats; that it erases trucks is not true."""
    model, clip, _ = demo
    made = verify(model, clip, lora, [Concept("truck")], effort=LEAST)
    assert made.status == FAIL and made.concepts[0].drawn.drawn == 1.0
    assert made.leak["reach"] > 0.8


def test_the_unerased_model_recognises_its_own_pictures(demo, lora):
    model, clip, _ = demo
    scene = Scene(model, clip, lora, 1.0, SamplerConfig.for_model(model), SMALL, 0, lambda *_: None)
    styles = list(domain.domain().styles)[:4]
    cats, dogs = ([f"a photo of a {name}, {style}" for style in styles] for name in ("cat", "dog"))
    latents = scene.draw(model, cats, "cats")
    assert (evidence(scene, latents, cats, [dogs], lambda: None) > SHOWN).all()
    assert (evidence(scene, latents, dogs, [cats], lambda: None) < SHOWN).all()
    others = [[f"a photo of a {name}, {style}" for style in styles] for name in ("ship", "pizza")]
    assert best_named(scene, latents, cats, [dogs, *others], lambda: None).all()
    assert not best_named(scene, latents, dogs, [cats, *others], lambda: None).any()


@pytest.mark.parametrize("at", [3, 40, 90, 130])
def test_a_cancelled_verification_leaves_the_model(demo, lora, at):
    model, clip, _ = demo
    before, calls = {k: v.clone() for k, v in model.model.state_dict().items()}, []

    def cancel(*event) -> None:
        calls.append(event)
        if len(calls) == at:
            raise Stop

    with pytest.raises(Stop):
        verify(model, clip, lora, effort=SMALL, progress=cancel)
    unload()
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())


def test_a_window_is_kept(demo, lora):
    """An erasure of the last steps alone draws the concept, whatever its weights are."""
    model, clip, _ = demo
    late = ErasureLora(dict(lora.modules), {**lora.metadata, "trace.window": "[0.7, 1.0]"})
    made = verify(model, clip, late, effort=LEAST)
    assert made.status == FAIL and made.concepts[0].drawn.drawn == 1.0
    assert made.concepts[0].ways[0].reach > 0.5


@pytest.mark.parametrize("line", ["cat + red background", "dog + google style", "cat + dog"])
def test_a_combination_is_verified(demo, lora, line):
    model, clip, _ = demo
    made = verify(model, clip, lora, parse_concepts(line), effort=LEAST)
    assert made.items and "misspelling" not in {w.probe.name for w in made.concepts[0].ways}


def test_the_same_seed_gives_the_same_figures(demo, lora):
    model, clip, _ = demo
    first, second = (verify(model, clip, lora, effort=LEAST, seed=3).to_dict() for _ in range(2))
    assert first == second


def test_what_is_missing_is_refused(demo, lora):
    model, clip, _ = demo
    nameless = ErasureLora(dict(lora.modules), {})
    with pytest.raises(ConceptError, match="names no concept"):
        verify(model, clip, nameless)
    with pytest.raises(ConceptError, match="'dog' has synonyms"):
        verify(model, clip, lora, synonyms={"dog": ["hound"]})
    other = ErasureLora.from_factors({"diffusion_model.x": (torch.ones(4, 2), torch.ones(2, 3))})
    with pytest.raises(LoraError, match="does not fit"):
        verify(model, clip, other, [Concept("cat")])


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "flux", "flux-schnell"])
def test_it_runs_on_every_family(families, kind):
    family = families[kind]
    _runs(family.model(), family.clip)


NEW = ("flux2-klein", "flux2-dev", "z-image", "qwen-image", "krea2", "sd3", "chroma")


@pytest.mark.parametrize("kind", NEW)
def test_it_runs_on_the_families_of_2026(engine, kind):
    import tiny_families  # imports ComfyUI

    if why := tiny_families.missing(kind):
        pytest.skip(why)
    _runs(tiny_families.model(kind), tiny_families.TINY[kind].clip())


def _runs(model, clip) -> None:
    config = SamplerConfig.for_model(model, width=32, height=32, steps=2)
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    some, cat = some_lora(model), [Concept("cat")]
    made = verify(model, clip, some, cat, ["dog", "house"], config=config, effort=LEAST)
    assert made.items and json.dumps(made.to_dict())
    unload()
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())


# ------------------------------------------------------------------------------------------- command line

QUICK = ["--samples", "1", "--steps", "2", "--kept", "2", "--kept-samples", "1"]


def test_the_command(lora, tmp_path, capsys):
    file = lora.save(tmp_path / "cat.safetensors")
    before = file.read_bytes()
    base = ["verify", "--model", "demo-sd", "--lora", str(file), *QUICK]
    names = {"json": "v.json", "markdown": "v.md", "picture": "v.png", "out": "verified.safetensors"}
    paths = {option: tmp_path / name for option, name in names.items()}
    asked = [word for option, path in paths.items() for word in (f"--{option}", str(path))]
    assert main([*base, "--synonyms", "kitty, feline", *asked]) == 0
    assert "strongest leak" in capsys.readouterr().out
    assert json.loads(paths["json"].read_text())["verdict"] in paths["markdown"].read_text()
    carded = ErasureLora.load(paths["out"])
    assert carded.info()[VERIFICATION]["verdict"] in ("PASS", "WARN", "FAIL")
    assert carded.fingerprint == lora.fingerprint and file.read_bytes() == before
    assert main([*base, *asked]) == 2  # nothing is replaced silently
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--samples", "0"], "--samples is 0"),
        (["--picture", "page.jpg"], "must end in .png"),
        (["--out", "x.pt"], "must end in .safetensors"),
        (["--synonyms", "dog: hound"], "'dog', which is not verified"),
    ],
)
def test_bad_input_is_refused_by_name(lora, tmp_path, capsys, more, message):
    file = lora.save(tmp_path / "cat.safetensors")
    assert main(["verify", "--model", "demo-sd", "--lora", str(file), *more]) == 2
    assert message in capsys.readouterr().err


def test_a_file_is_not_its_own_output(lora, tmp_path, capsys):
    file = lora.save(tmp_path / "cat.safetensors")
    words = ["verify", "--model", "demo-sd", "--lora", str(file), "--out", str(file), "--overwrite"]
    assert main(words) == 2
    assert "is the same file as --lora" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- node


def test_the_node(pack, demo, lora, tmp_path, monkeypatch):
    """In inference mode, as ComfyUI runs nodes."""
    part = lambda name: importlib.import_module(f"{pack.__name__}.{name}")  # noqa: E731
    monkeypatch.setattr(part("nodes.host"), "temp_directory", lambda: tmp_path)
    model, clip, vae = demo
    state = part("nodes.wire").LoraState(lora)
    node = pack.NODE_CLASS_MAPPINGS["TRACE_VerifyErasure"]()
    with torch.inference_mode():
        made = node.verify(model, clip, "none", 1, 2, 0, state, vae, steps=2, kept_samples=1)
    verdict, passed, report, page, out = made["result"]
    assert passed == (verdict == "PASS") and f"**{verdict}.**" in report
    assert made["ui"]["trace_report"] == [report] and len(made["ui"]["images"]) == 1
    assert page.shape[-1] == 3 and page.ndim == 4
    assert json.loads(out.metadata[VERIFICATION])["verdict"] == verdict
    assert VERIFICATION not in state.metadata
    with pytest.raises(part("trace_core.errors").LoraError, match="no LoRA"):
        node.verify(model, clip, "none", 1, 2, 0)
