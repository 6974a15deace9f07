"""What training rests on: the network's own prediction, gradients that are slopes, a model that is itself
again.
"""

from __future__ import annotations

import re
from contextlib import contextmanager, nullcontext

import pytest
import torch

from engine_cases import condition_of
from trace_core.backbones import backbone_for
from trace_core.closed_form import erase
from trace_core.errors import LoraError, TraceError
from trace_core.finetune.adapters import attached
from trace_core.finetune.gradients import checkpointed, saved_apart, training_mode
from trace_core.lora import ErasureLora
from trace_core.lora.gating import apply
from trace_core.text.concepts import Concept
from trace_core.text.templates import TEMPLATES

KINDS = ("sd1", "sdxl", "flux")
SCOPES = ("text", "attention", "linear")
SHAPE = {"sd1": (4, 8, 8), "sdxl": (4, 8, 8), "flux": (16, 8, 8)}
NOISE = {"sd1": (3.0, 0.7), "sdxl": (3.0, 0.7), "flux": (0.9, 0.4)}


@pytest.fixture(autouse=True)
def few_templates(monkeypatch):
    monkeypatch.setitem(TEMPLATES, "object", ("a {}",))


pytestmark = pytest.mark.usefixtures("nothing_stays_loaded")


def inputs(family, backbone):
    """Two noisy latents at different noise levels, and the conditions of two prompts."""
    generator = torch.Generator().manual_seed(5)
    sigma = torch.tensor(NOISE[family.kind])
    x = torch.randn(2, *SHAPE[family.kind], generator=generator) * (1 + sigma).view(-1, 1, 1, 1)
    conditions = [
        condition_of(backbone, family.clip, prompt, SHAPE[family.kind], 3.0) for prompt in ("a cat", "")
    ]
    return x, sigma, {k: torch.cat([c[k] for c in conditions]) for k in conditions[0]}


@contextmanager
def training(family, model, scope, checkpointing=False, start=None):
    """The model as the finetune has it: adapters on, both factors off zero."""
    backbone = backbone_for(model)
    with training_mode(backbone.engine):
        backbone.load()
        given = inputs(family, backbone)
        blocks = checkpointed(backbone.network, backbone.blocks()) if checkpointing else nullcontext()
        with attached(backbone, backbone.lora_targets(scope), 2, start, seed=1) as adapters:
            randomise(adapters)
            with blocks, saved_apart(backbone.network):
                yield backbone, adapters, given


def randomise(adapters):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in adapters.parameters():
            p.copy_(0.05 * torch.randn(p.shape, generator=generator))


def error_of(backbone, given) -> torch.Tensor:
    """A squared error, as in training, summed in float64."""
    target = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(9))
    return (backbone.predict(*given) - target).double().square().mean()


def gradient(backbone, adapters, given) -> list[torch.Tensor]:
    return list(torch.autograd.grad(error_of(backbone, given), adapters.parameters()))


@torch.no_grad()
def slope(backbone, adapters, given, direction, step=1e-3) -> float:
    """Central difference along a direction."""
    before, found = adapters.state(), []
    for sign in (1, -1):
        adapters.restore([p + sign * step * d for p, d in zip(before, direction)])
        found.append(error_of(backbone, given).item())
    adapters.restore(before)
    return (found[0] - found[1]) / (2 * step)


# ------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_slope_of_the_error(families, kind, scope, checkpointing):
    """In inference mode, as ComfyUI's nodes run, and with weights that were loaded there."""
    family, generator = families[kind], torch.Generator().manual_seed(4)
    with torch.inference_mode():
        model = family.model()
        assert all(p.is_inference() for p in model.model.diffusion_model.parameters())
        with training(family, model, scope, checkpointing) as (backbone, adapters, given):
            gradients, exact, measured = gradient(backbone, adapters, given), [], []
            for _ in range(3):
                direction = [torch.randn(p.shape, generator=generator) for p in gradients]
                exact.append(sum((g * d).sum().item() for g, d in zip(gradients, direction)))
                measured.append(slope(backbone, adapters, given, direction))
    exact, measured = torch.tensor(exact), torch.tensor(measured)
    assert all(g.norm() > 0 for g in gradients), "every factor is reached"
    assert (exact - measured).norm() < 0.01 * measured.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_no_gradient(families, kind):
    found = []
    for checkpointing in (False, True):
        with training(families[kind], families[kind].model(), "linear", checkpointing) as parts:
            found.append(torch.cat([g.flatten() for g in gradient(*parts)]))
    assert (found[0] - found[1]).norm() < 1e-5 * found[0].norm()


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_saves_activations(families, kind):
    """Counted in what autograd keeps, and in every block of the network."""
    kept = []
    for checkpointing in (False, True):
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.nbytes)
            return tensor

        with training(families[kind], families[kind].model(), "text", checkpointing) as (backbone, _, given):
            blocks = [backbone.network.get_submodule(name) for name in backbone.blocks()]
            assert all(("forward" in block.__dict__) == checkpointing for block in blocks) and len(blocks) > 3
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                error_of(backbone, given)
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_trained_adapter_gets_gradients(families, kind):
    family, model = families[kind], families[kind].model()
    start = erase(model, family.clip, [Concept("cat", "dog")], ["bird"]).lora
    with training(family, model, "attention", start=start) as (backbone, adapters, given):
        error_of(backbone, given).backward()
        reached = {id(p) for p in backbone.network.parameters() if p.grad is not None}
        assert reached == {id(p) for p in adapters.parameters()}
        assert {id(p) for p in backbone.network.parameters() if p.requires_grad} == reached
        assert all(p.dtype == torch.float32 for p in adapters.parameters())
    assert all(p.grad is None for p in backbone.network.parameters())


def test_training_mode_holds_inside_inference_mode_only():
    with torch.inference_mode():
        with training_mode():
            assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        with training_mode():
            assert torch.is_grad_enabled()
        assert not torch.is_grad_enabled()


# --------------------------------------------------------------------------------- the states of the adapters


@torch.no_grad()
def predicted(backbone, given) -> torch.Tensor:
    return backbone.predict(*given)


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_the_models_they_name(families, kind):
    """``base`` is the model, ``start`` the model with the erasure as patches, ``student`` neither."""
    family, model = families[kind], families[kind].model()
    start = erase(model, family.clip, [Concept("cat", "dog")], ["bird"]).lora
    seen = {}
    with training(family, model, "text", start=start) as (backbone, adapters, given):
        for state in ("base", "start", "student", "base"):
            adapters.use(state)
            seen.setdefault(state, []).append(predicted(backbone, given))
    assert torch.equal(*seen["base"])
    assert torch.equal(seen["base"][0], predicted(backbone, given)), "the adapters off, and the adapters gone"
    edited = backbone_for(apply(model, start))
    edited.load()
    wanted = predicted(edited, given)
    assert (seen["start"][0] - wanted).norm() < 1e-4 * wanted.norm()
    assert (wanted - seen["base"][0]).norm() > 1e-3 * wanted.norm()
    assert (seen["student"][0] - wanted).norm() > 1e-3 * wanted.norm()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapter_is_the_identity(families, kind, scope):
    backbone = backbone_for(families[kind].model())
    backbone.load()
    given = inputs(families[kind], backbone)
    base = predicted(backbone, given)
    with attached(backbone, backbone.lora_targets(scope), 2):
        assert torch.equal(predicted(backbone, given), base)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inference", [False, True])
def test_network_is_itself_again(tiny, families, kind, inference):
    """Objects, values and flags, also odd ones, and also where an error came in between."""
    with torch.inference_mode(inference):
        model = families[kind].model()
        backbone = backbone_for(model)
        backbone.load()
        network = model.model.diffusion_model
        network.train()
        next(network.children()).eval()
        if not inference:
            list(network.parameters())[3].requires_grad_(False)
        before = tiny.Snapshot(model)
        for error in (None, ZeroDivisionError, KeyboardInterrupt):
            with (
                pytest.raises(error) if error else nullcontext(),
                training(families[kind], model, "linear") as parts,
            ):
                error_of(parts[0], parts[2]).backward()
                assert before.differences(tiny.Snapshot(model))
                if error:
                    raise error
            assert before.differences(tiny.Snapshot(model)) == []


@pytest.mark.parametrize(("rank", "message"), [(0, "trains nothing"), (65, "exceeds the narrowest layer")])
def test_impossible_ranks_are_refused(tiny, families, rank, message):
    model = families["flux"].model()
    before, backbone = tiny.Snapshot(model), backbone_for(model)
    with pytest.raises(LoraError, match=message), attached(backbone, backbone.lora_targets("text"), rank):
        pass
    assert before.differences(tiny.Snapshot(model)) == []


@pytest.mark.parametrize(
    "module", ["diffusion_model.nothing", "diffusion_model.double_blocks.0", "diffusion_model.txt_in"]
)
def test_erasure_of_another_model_is_refused_as_a_start(tiny, families, module):
    model = families["flux"].model()
    before, backbone = tiny.Snapshot(model), backbone_for(model)
    start = ErasureLora({module: (torch.ones(8, 1), torch.ones(1, 8))})
    with pytest.raises(LoraError, match="does not fit the model"):
        with attached(backbone, backbone.lora_targets("text"), 2, start):
            pass
    assert before.differences(tiny.Snapshot(model)) == []


READS_TEXT = {
    "sd1": "attn2.to_[kv]$",
    "sdxl": "attn2.to_[kv]$|^label_emb",
    "flux": "txt_attn|^txt_in|^vector_in",
}


@pytest.mark.parametrize("kind", KINDS)
def test_scopes_name_linear_layers_of_the_network(families, kind):
    backbone = backbone_for(families[kind].model())
    text, attention, linear = (set(backbone.lora_targets(scope)) for scope in SCOPES)
    assert linear == {n for n, m in backbone.network.named_modules() if isinstance(m, torch.nn.Linear)}
    assert text and text < linear and attention < linear
    assert all(re.search(READS_TEXT[kind], name) for name in text)
    assert len(attention) > sum("attn" in name for name in text) and all(
        "mlp" not in name for name in attention
    )
    with pytest.raises(TraceError, match="scope 'all' is unknown; use one of text, attention, linear"):
        backbone.lora_targets("all")


# ------------------------------------------------------------------------------------- the raw prediction


def resampled(family, sampling: str):
    """A model whose sampling is of another kind, as ComfyUI's nodes set it."""
    import comfy.model_sampling as kinds

    model = family.model()
    if sampling != "CONST":
        cls = type("Sampling", (kinds.ModelSamplingDiscrete, getattr(kinds, sampling)), {})
        model.add_object_patch("model_sampling", cls(model.model.model_config))
    return model


@pytest.mark.parametrize(
    ("kind", "sampling"),
    [
        ("sd1", "EPS"),
        ("sdxl", "EPS"),
        ("sd1", "V_PREDICTION"),
        ("sdxl", "EDM"),
        ("flux", "CONST"),
        pytest.param("sd1", "X0", marks=pytest.mark.full_engine),
    ],
)
def test_prediction_is_what_the_network_said(families, kind, sampling):
    family = families[kind]
    backbone = backbone_for(resampled(family, sampling))
    backbone.load()
    x, _, condition = inputs(family, backbone)
    said = []
    hook = backbone.network.register_forward_hook(lambda module, given, out: said.append(out))
    for sigma in (0.05, 0.4, 0.95) if kind == "flux" else (0.05, 0.7, 14.0):
        sigma = torch.tensor([sigma, 0.5 * sigma])
        noisy = x * (1 + sigma).view(-1, 1, 1, 1)
        out = predicted(backbone, (noisy, sigma, condition))
        raw = said.pop()
        assert (out - raw).norm() < 1e-4 * raw.norm()
        x0 = backbone.model_sampling.calculate_denoised(sigma, raw, noisy)
        assert (backbone.denoised_of(noisy, sigma, out) - x0).norm() < 1e-4 * x0.norm()
    hook.remove()
    assert backbone.evaluations == 6


@pytest.mark.parametrize("kind", KINDS)
def test_noise_levels_fall_from_the_models_largest(families, kind):
    backbone = backbone_for(families[kind].model())
    levels = [backbone.sigma_at(p) for p in (0.0, 0.2, 0.5, 0.9, 0.999)]
    assert levels[0] == pytest.approx(float(backbone.model_sampling.sigma_max))
    assert levels == sorted(levels, reverse=True) and len(set(levels)) == 5
