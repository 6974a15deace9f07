"""Every transformer family with its own text encoder: what its text layers read, and that everything works
on it.
"""

from __future__ import annotations

import hashlib

import pytest
import torch

from engine_cases import LEAST_WORK, condition_of, unload
from trace_core.backbones import backbone_for
from trace_core.backbones.base import CONTEXT, POOLED
from trace_core.backbones.sampling import SamplerConfig, decode, sample
from trace_core.closed_form import ClosedFormConfig, erase
from trace_core.errors import ModelError
from trace_core.finetune import FinetuneConfig, finetune
from trace_core.finetune.adapters import attached
from trace_core.finetune.attention import focus_region
from trace_core.finetune.gradients import checkpointed, saved_apart, training_mode
from trace_core.finetune.prompts import Prompts
from trace_core.lora import ErasureLora
from trace_core.lora.fusion import FusionConfig, fuse
from trace_core.lora.gating import apply
from trace_core.text.concepts import Concept
from trace_core.text.encoding import AFTER, BEFORE, BOS, FIRST_EOT, PAD, SUBJECT, TextEncoder, align
from trace_core.text.templates import TEMPLATES, fill

pytestmark = [pytest.mark.full_engine, pytest.mark.usefixtures("nothing_stays_loaded")]

KINDS = ("flux2-klein", "flux2-dev", "z-image", "qwen-image", "krea2", "sd3", "chroma")
CHAT = ("flux2-klein", "flux2-dev", "z-image", "qwen-image", "krea2")
CAT, KEEP, SIZE = [Concept("cat", "dog")], ["bird"], 64
EXACT = ClosedFormConfig(energy=1.0, eta=0.0)


@pytest.fixture(autouse=True)
def few_templates(monkeypatch, engine):
    monkeypatch.setitem(TEMPLATES, "object", ("a {}", "a photo of a {}, red"))


@pytest.fixture(scope="module")
def case(tiny):
    """``case(kind)``: a tiny model, which no test may change, and its CLIP."""
    import tiny_families

    held = {}

    def get(kind):
        if why := tiny_families.missing(kind):
            pytest.skip(why)
        if kind not in held:
            held[kind] = tiny_families.model(kind), tiny_families.TINY[kind].clip()
        return held[kind]

    return get


@pytest.fixture(scope="module")
def closed(case):
    """``closed(kind)``: the closed form of the cat on a model."""
    held = {}

    def get(kind):
        if kind not in held:
            held[kind] = erase(*case(kind), CAT, KEEP)
        return held[kind]

    return get


def fingerprint(model) -> str:
    digest = hashlib.blake2b()
    for name, p in sorted(model.model.named_parameters()):
        digest.update(name.encode() + p.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_is_recognised(case, kind):
    model, _ = case(kind)
    backbone = backbone_for(model)
    assert backbone.kind == kind and backbone.traits.title and backbone.traits.architecture
    assert (backbone.width(POOLED) is not None) == (kind == "sd3")
    for scope in ("text", "attention", "linear", "entry", "keys", "image"):
        assert backbone.lora_targets(scope), scope
    assert set(backbone.lora_targets("entry")) <= set(backbone.lora_targets("text"))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_what_the_text_layer_reads(case, kind):
    """In a pass of the network, for every token of the prompt."""
    model, clip = case(kind)
    backbone, read = backbone_for(model), []
    rows = TextEncoder(clip, read=backbone.read_rows).encode("a photo of a cat", "cat").embeddings
    backbone.load()
    (layer,) = backbone.context_layers()
    hook = model.model.get_submodule(layer.module).register_forward_pre_hook(lambda m, a: read.append(a[0]))
    shape = backbone.latent_shape(SIZE, SIZE)
    with torch.no_grad():
        backbone.predict(
            torch.zeros(1, *shape),
            torch.tensor([0.5]),
            condition_of(backbone, clip, "a photo of a cat", shape),
        )
    hook.remove()
    seen = read[0][0]
    seen = seen[len(seen) - len(rows) :] if backbone.traits.pads_left else seen[: len(rows)]
    assert rows.shape == seen.shape and torch.allclose(rows, seen, atol=1e-5 * seen.abs().max().item())


@pytest.mark.parametrize("kind", CHAT)
def test_a_chat_template_stands_around_the_words(case, kind):
    _, clip = case(kind)
    encoder = TextEncoder(clip)
    (tower,) = encoder.towers
    assert tower.chat and tower.start and tower.end and not encoder.bidirectional
    rows = encoder.encode("a photo of a cat, red", "cat")
    assert len(rows.rows(SUBJECT)) == len(encoder.content_ids("cat")) or kind == "flux2-dev"
    assert rows.rows(BEFORE) and rows.rows(AFTER) and len(rows.rows(FIRST_EOT)) == len(tower.end)
    cut = kind in ("qwen-image", "krea2")  # their encoders drop the rows of the template's beginning
    assert len(rows.rows(BOS)) == (0 if cut else len(tower.start))
    assert bool(rows.rows(PAD)) == (kind == "flux2-klein")
    assert encoder.encode("cat", "cat").rows(SUBJECT), "also at the beginning, where its ids differ"
    assert not encoder.unaligned
    dog = encoder.encode("a photo of a dog, red", "dog")
    pairs = align(rows, dog)
    before = rows.rows(BOS) + rows.rows(BEFORE)
    assert torch.equal(pairs.erase[before], pairs.want[before]), "causal: the words before are the same"
    behind = rows.rows(AFTER) + rows.rows(FIRST_EOT)
    assert [rows.ids[i] for i in behind] == [dog.ids[pairs.partners[i]] for i in behind]


def test_words_that_are_not_found_count_as_the_whole_prompt(case, monkeypatch):
    model, clip = case("z-image")
    encoder = TextEncoder(clip)
    rows = encoder.encode("a catalogue", "cat")
    assert len(rows.rows(SUBJECT)) == len(encoder.content_ids("a catalogue")) and not rows.rows(BEFORE)
    assert list(encoder.unaligned) == ["cat"]
    monkeypatch.setitem(TEMPLATES, "object", ("a {}alogue",))
    warnings = erase(model, clip, CAT, KEEP).report["warnings"]
    assert any("'cat'" in w and "cannot be found" in w for w in warnings)


def test_both_towers_of_stable_diffusion_3_are_aligned(case):
    _, clip = case("sd3")
    encoder = TextEncoder(clip)
    assert [t.name for t in encoder.towers] == ["l", "t5xxl"] and encoder.bidirectional
    cat, dog = encoder.encode("a photo of a cat", "cat"), encoder.encode("a dog", "dog")
    assert len(cat.lengths) == 2 and sum(cat.lengths) == len(cat.embeddings)
    assert all(part.rows(SUBJECT) for part in cat.by_tower())
    pairs = align(cat, dog)
    assert pairs.erase.shape == pairs.want.shape == cat.embeddings.shape
    for i in cat.rows(SUBJECT):
        assert pairs.partners[i] in dog.rows(SUBJECT)
    clip_rows = cat.lengths[0]
    assert all((j < dog.lengths[0]) == (i < clip_rows) for i, j in enumerate(pairs.partners))


@pytest.mark.parametrize("kind", KINDS)
def test_the_closed_form_is_exact(case, kind):
    """||W (c - g) - s W (c - g)|| of the edit in float64: nothing is left of any row."""
    model, clip = case(kind)
    backbone = backbone_for(model)
    result = erase(model, clip, CAT, KEEP, EXACT)
    encoder = TextEncoder(clip, read=backbone.read_rows)
    for layer, weight in backbone.weights():
        edit, text = result.edits[layer.stream], weight[:, : layer.columns].double()
        for template in TEMPLATES["object"]:
            erased, wanted = (encoder.encode(fill(template, t), t) for t in ("cat", "dog"))
            if layer.stream == CONTEXT:
                pairs = align(erased, wanted)
                used = [i for i, g in enumerate(pairs.groups) if SUBJECT <= g <= PAD]
                c, g = pairs.erase[used].double(), pairs.want[used].double()
            else:
                c, g = erased.pooled[None].double(), wanted.pooled[None].double()
            left = (edit.map(c) - edit.map(g)) @ text.T
            assert left.norm() <= 1e-6 * ((c - g) @ text.T).norm()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_slopes(case, kind):
    model, clip = case(kind)
    backbone, generator = backbone_for(model), torch.Generator().manual_seed(4)
    step = 1e-4 if kind == "krea2" else 1e-3  # its fusion of random weights is strongly curved
    with training_mode(backbone.engine):
        backbone.load()
        shape = backbone.latent_shape(SIZE, SIZE)
        condition = condition_of(backbone, clip, "a cat", shape)
        x, target = (torch.randn(1, *shape, generator=generator) for _ in "xt")
        sigma = torch.tensor([0.6])

        def error():
            return (backbone.predict(x, sigma, condition) - target).double().square().mean()

        found = []
        for blocks in ([], backbone.blocks()):
            with (
                attached(backbone, backbone.lora_targets("text"), 2, None, seed=1) as adapters,
                checkpointed(backbone.network, blocks),
                saved_apart(backbone.network),
            ):
                with torch.no_grad():
                    for p in adapters.parameters():
                        p.copy_(
                            0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
                        )
                gradients = torch.autograd.grad(error(), adapters.parameters())
                direction = [torch.randn(g.shape, generator=generator) for g in gradients]
                before, values = adapters.state(), []
                with torch.no_grad():
                    for sign in (1, -1):
                        adapters.restore([p + sign * step * d for p, d in zip(before, direction)])
                        values.append(error().item())
                slope = (values[0] - values[1]) / (2 * step)
                exact = sum((g * d).sum().item() for g, d in zip(gradients, direction))
                assert abs(exact - slope) < 0.01 * abs(slope) + 1e-7
                found.append(torch.cat([g.flatten() for g in gradients]))
        assert far(found[1], found[0]) < 1e-4, "checkpointing changes no gradient"


@pytest.mark.parametrize("kind", KINDS)
def test_finetune_gate_and_file(case, closed, kind, tmp_path):
    """No weight changes, a window is exact outside of it, and the stock loader reads the file to the last
    digit.
    """
    import comfy.sd
    import comfy.utils

    model, clip = case(kind)
    before = fingerprint(model)
    config = FinetuneConfig(**LEAST_WORK | dict(width=SIZE, height=SIZE, window=(0.2, 1.0)))
    trained = finetune(model, clip, CAT, KEEP, config, closed(kind).lora)
    assert max(up.abs().max() for up, _ in trained.adapter.modules.values()) > 0
    unload()
    assert fingerprint(model) == before
    file = trained.lora.save(tmp_path / "erasure.safetensors")
    stock = model.clone()
    sd = comfy.utils.load_torch_file(str(file))
    patched, _ = comfy.sd.load_lora_for_models(stock, None, sd, 1.0, 1.0)
    assert len(patched.patches) == len(trained.lora.modules)
    ours = apply(model, ErasureLora.load(file), start=0.0, end=1.0)
    late = apply(model, trained.lora, start=0.5, end=1.0)
    options = SamplerConfig.for_model(model, steps=4, width=SIZE, height=SIZE, cfg=1.0)
    seen = {}
    for name, variant in (("base", model), ("stock", patched), ("ours", ours), ("late", late)):
        steps = []
        result = sample(
            variant, clip, ["a cat"], [0], options, step=lambda i, x0, x, n, steps=steps: steps.append(x0)
        )
        seen[name] = [*steps, result]
        assert result.isfinite().all() and result.shape == (1, *backbone_for(model).latent_shape(SIZE, SIZE))
    assert far(seen["ours"][-1], seen["stock"][-1]) <= 1e-5
    assert far(seen["ours"][-1], seen["base"][-1]) > 1e-4
    assert torch.equal(seen["late"][0], seen["base"][0]) and not torch.equal(
        seen["late"][-1], seen["base"][-1]
    )
    unload()
    assert fingerprint(model) == before


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_that_of_the_network(case, kind):
    """Queries and keys of every joint layer, the text first, for prompts of different lengths."""
    model, clip = case(kind)
    backbone = backbone_for(model)
    with training_mode(backbone.engine), torch.no_grad():
        backbone.load()
        shape = backbone.latent_shape(SIZE, SIZE)
        prompts = Prompts(backbone, clip, shape, 3.0)
        numbers = prompts.indices([("a photo of a cat", "cat"), ("a cat", "cat")])
        batch, maps = prompts.batch(numbers), []
        x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        with backbone.attention_maps(maps):
            batch.predict(x, torch.tensor([0.5, 0.5]))
        found = 0
        for places, layers in batch.attention(maps, slice(0, 2)):
            columns = prompts.columns([numbers[i] for i in places], ends=False)
            assert columns.any(1).all()
            region = focus_region(layers, columns, shape[1:])
            assert region.shape == (len(places), 1, *shape[1:]) and region.isfinite().all()
            for q, k in layers:
                assert q.shape[1] == k.shape[1] and q.shape[-1] == k.shape[-1]
                assert k.shape[2] >= q.shape[2] + columns.shape[1]
            found += len(places)
        assert found == 2


@pytest.mark.parametrize("kind", KINDS)
def test_two_erasures_are_fused(case, closed, kind):
    model, clip = case(kind)
    loras = [closed(kind).lora, erase(model, clip, [Concept("car", "dog")], KEEP).lora]
    fused = fuse(model, clip, loras, KEEP, FusionConfig()).lora
    assert {entry[0] for entry in fused.info()["trace.concepts"]} == {"cat", "car"}
    options = SamplerConfig.for_model(model, steps=2, width=SIZE, height=SIZE, cfg=1.0)
    pictures = [sample(m, clip, ["a cat"], [0], options) for m in (model, apply(model, fused))]
    assert pictures[1].isfinite().all() and not torch.equal(*pictures)


@pytest.mark.parametrize("kind", ["flux2-klein", "qwen-image", "krea2"])
def test_the_erasure_holds_with_a_reference_picture(case, kind):
    """Models that also read pictures: the text layers are the same whether one is attached or not."""
    import comfy.sample

    model, clip = case(kind)
    backbone = backbone_for(model)
    erased = apply(model, erase(model, clip, CAT, KEEP, EXACT).lora)
    shape = backbone.latent_shape(SIZE, SIZE)
    noise = backbone.with_frames(torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)))
    reference = backbone.with_frames(torch.ones(1, *shape))

    def picture(m, prompt, refs):
        found = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True, return_dict=True)
        extra = {"reference_latents": [reference], "reference_latents_method": "index"} if refs else {}
        cond = [[found.pop("cond"), {**found, **extra}]]
        return comfy.sample.sample(
            m,
            noise,
            2,
            1.0,
            "euler",
            "simple",
            cond,
            cond,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=0,
        )

    assert not torch.equal(picture(model, "a cat", True), picture(model, "a cat", False))
    base = far(picture(model, "a cat", True), picture(model, "a dog", True))
    left = far(picture(erased, "a cat", True), picture(erased, "a dog", True))
    assert left < 0.05 * base


def test_few_steps_and_no_guidance_for_distilled_models(case):
    for kind, steps in (("flux2-klein", 4), ("z-image", 8), ("krea2", 8)):
        model, _ = case(kind)
        config = SamplerConfig.for_model(model)
        assert (config.steps, config.cfg) == (steps, 1.0)
        training = FinetuneConfig().resolved("object", kind)
        assert (training.sampling_steps, training.cfg) == (steps, 1.0)
    config = FinetuneConfig().resolved("object", "sd3")
    assert (config.sampling_steps, config.cfg) == (12, 3.0)


@pytest.mark.parametrize("changes", [dict(pad_tokens_multiple=None), dict(clip_text_dim=16)])
def test_relatives_of_z_image_are_refused(tiny, engine, changes):
    """Lumina Image 2.0 and NewBie: the same class, other ways in."""
    import tiny_families

    if why := tiny_families.missing("z-image"):
        pytest.skip(why)
    with pytest.raises(ModelError, match="Lumina2 models are not supported; use .*Z-Image, Qwen-Image"):
        backbone_for(tiny_families.model("z-image", **changes))


def test_lcm_models_are_sampled_in_few_steps_without_guidance(tiny, families):
    nodes = pytest.importorskip(
        "comfy_extras.nodes_model_advanced", reason="this engine has no sampling nodes"
    )
    model = nodes.ModelSamplingDiscrete().patch(families["sd1"].model(), "lcm", False)[0]
    config = SamplerConfig.for_model(model)
    assert (config.steps, config.cfg, config.sampler, config.scheduler) == (8, 1.0, "lcm", "sgm_uniform")
    assert FinetuneConfig().resolved("object", backbone_for(model).traits).sampling_steps == 8


@pytest.mark.parametrize("kind", ["qwen-image", "krea2"])
def test_latents_of_one_frame_are_decoded_by_a_vae_of_videos(case, kind):
    class Vae:
        latent_dim = 3

        def decode(self, latents):
            assert latents.ndim == 5 and latents.shape[2] == 1
            return torch.zeros(latents.shape[0], 1, 8, 8, 3)

    model, _ = case(kind)
    assert decode(Vae(), torch.zeros(2, *backbone_for(model).latent_shape(SIZE, SIZE))).shape == (2, 8, 8, 3)
