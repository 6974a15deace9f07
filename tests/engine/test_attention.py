"""Maps read off the networks are the networks' own: with their values they give what the layer's attention
gave.
"""

from __future__ import annotations

import pytest
import torch

from engine_cases import condition_of
from trace_core.backbones import backbone_for
from trace_core.backbones.base import SCOPES
from trace_core.finetune import FinetuneConfig, finetune
from trace_core.finetune.gradients import saved_apart, training_mode
from trace_core.text.concepts import Concept
from trace_core.text.templates import TEMPLATES

SHAPE = {"sd1": (4, 8, 8), "sdxl": (4, 8, 8), "flux": (16, 8, 8)}


@pytest.fixture(autouse=True)
def few_templates(monkeypatch):
    monkeypatch.setitem(TEMPLATES, "object", ("a {}", "the {}"))


pytestmark = pytest.mark.usefixtures("nothing_stays_loaded")


def unet_parts(network):
    return [(m.to_v, m.to_out[0], m.heads) for n, m in network.named_modules() if n.endswith(".attn2")]


@pytest.mark.parametrize("kind", SHAPE)
def test_maps_are_the_networks_own(families, kind):
    family = families[kind]
    backbone = backbone_for(family.model())
    backbone.load()
    given = [condition_of(backbone, family.clip, prompt, SHAPE[kind], 3.0) for prompt in ("a cat", "")]
    x = torch.randn(2, *SHAPE[kind], generator=torch.Generator().manual_seed(5))
    values, outputs, hooks = [], [], []
    if kind == "flux":
        for block in backbone.network.double_blocks:
            heads = block.num_heads

            def value(module, args, out, heads=heads):
                values.append(out.unflatten(-1, (3, heads, -1))[:, :, 2].transpose(1, 2))

            hooks += [
                block.img_attn.qkv.register_forward_hook(value),
                block.txt_attn.qkv.register_forward_hook(value),
            ]
            hooks.append(
                block.img_attn.proj.register_forward_pre_hook(lambda m, args: outputs.append(args[0]))
            )
    else:
        for read, out, heads in unet_parts(backbone.network):

            def value(module, args, out, heads=heads):
                values.append(out.unflatten(-1, (heads, -1)).transpose(1, 2))

            hooks.append(read.register_forward_hook(value))
            hooks.append(out.register_forward_pre_hook(lambda m, args: outputs.append(args[0])))
    found: list = []
    with torch.no_grad(), backbone.attention_maps(found):
        backbone.predict(x, torch.tensor([0.9, 0.4]), {k: torch.cat([g[k] for g in given]) for k in given[0]})
    for hook in hooks:
        hook.remove()
    if kind == "flux":  # the picture's qkv comes before the text's
        values = [torch.cat((values[i + 1], values[i]), dim=2) for i in range(0, len(values), 2)]
    assert len(found) == len(values) == len(outputs) > 0
    for (q, k), v, wanted in zip(found, values, outputs):
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        made = (weights @ v).transpose(1, 2).flatten(2)
        assert (made - wanted).norm() < 1e-5 * wanted.norm()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.network.modules())


@pytest.mark.parametrize("kind", SHAPE)
def test_scopes_name_layers_and_their_rows(families, kind):
    backbone = backbone_for(families[kind].model())
    names = {scope: set(backbone.lora_targets(scope)) for scope in SCOPES}
    assert (
        all(names.values())
        and names["keys"] <= names["text"] >= names["entry"]
        and not names["image"] & names["text"]
    )
    for scope in SCOPES:
        rows = {name: backbone.trained_rows(name, scope) for name in names[scope]}
        if (kind, scope) != ("flux", "keys"):
            assert not any(rows.values())
        else:
            assert all(
                3 * (r.stop - r.start) == 2 * len(backbone.network.get_submodule(n).weight)
                for n, r in rows.items()
            )


OPTIONS = dict(
    steps=3,
    batch=4,
    trajectories=2,
    keep_trajectories=2,
    refresh=2,
    sampling_steps=4,
    rank=2,
    width=64,
    height=64,
    lr=1e-2,
)


@pytest.mark.parametrize("kind", SHAPE)
@pytest.mark.parametrize("objective", ["mace", "trce"])
def test_objectives_train_and_leave_the_model(families, objective, kind):
    family = families[kind]
    model = family.model()
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    result = finetune(
        model, family.clip, [Concept("cat", "dog")], ["house"], FinetuneConfig(objective=objective, **OPTIONS)
    )
    losses = result.report["losses"]
    assert len(losses) == 3 and all(v == v for entry in losses for v in entry.values())
    assert any((up.float() @ down.float()).abs().max() > 0 for up, down in result.lora.modules.values())
    after = model.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_attention_to_the_concept_falls(families):
    family = families["sd1"]
    options = OPTIONS | dict(steps=20, refresh=20, batch=8)
    losses = finetune(
        family.model(), family.clip, [Concept("cat")], ["house"], FinetuneConfig(objective="mace", **options)
    ).report["losses"]
    mean = lambda part: sum(e["attention"] for e in part) / len(part)  # noqa: E731
    assert mean(losses[-5:]) < 0.8 * mean(losses[:5])


def test_a_region_of_the_user_takes_the_place_of_the_models(families):
    family, region = families["sd1"], torch.zeros(1, 64, 64)
    config = FinetuneConfig(objective="mace", **OPTIONS)
    nothing = finetune(family.model(), family.clip, [Concept("cat")], ["house"], config, region=region)
    assert all(entry["attention"] == 0 for entry in nothing.report["losses"])
    region[:, :32] = 1
    some = finetune(family.model(), family.clip, [Concept("cat")], ["house"], config, region=region)
    assert all(entry["attention"] > 0 for entry in some.report["losses"])


@pytest.mark.parametrize("kind", ["sd1", "flux"])
def test_saliency_trains_what_every_map_holds_and_says_what_it_cuts(families, kind):
    family = families[kind]
    config = FinetuneConfig(objective="ant", saliency=0.5, saliency_maps=3, **OPTIONS)
    result = finetune(family.model(), family.clip, [Concept("cat")], ["house"], config)
    assert 0.05 < result.report["trained_share"] < 0.5 and 0 <= result.report["truncation"] < 1
    assert result.adapter.rank == 2


def test_whole_matrices_keep_what_is_not_salient(families):
    """Without the cut to a rank, nothing outside the maps changes."""
    from trace_core.finetune.adapters import attached

    family = families["sd1"]
    backbone = backbone_for(family.model())
    with training_mode(backbone.engine):
        backbone.load()
        given = [condition_of(backbone, family.clip, p, SHAPE["sd1"], 3.0) for p in ("a cat", "")]
        condition = {k: torch.cat([g[k] for g in given]) for k in given[0]}
        x = torch.randn(2, *SHAPE["sd1"], generator=torch.Generator().manual_seed(5))
        with attached(backbone, backbone.lora_targets("text"), 2, dense=True) as adapters:
            optimiser = torch.optim.AdamW(adapters.parameters(), lr=1e-2, weight_decay=0.0)
            masks = [
                torch.rand(p.shape, generator=torch.Generator().manual_seed(i)) > 0.5
                for i, p in enumerate(adapters.parameters())
            ]
            adapters.restrict(masks)
            for _ in range(3):
                optimiser.zero_grad()
                with saved_apart(backbone.network):
                    backbone.predict(x, torch.tensor([3.0, 0.7]), condition).square().mean().backward()
                adapters.mask_gradients()
                optimiser.step()
            assert all(not p[~m].any() and p[m].any() for p, m in zip(adapters.parameters(), masks))
            factors, lost = adapters.factors(10_000)
            assert lost < 1e-12
            for (up, down), p in zip(factors.values(), adapters.parameters()):
                assert (up @ down - p.detach()).norm() < 1e-5 * p.norm()


def test_erase_anything_leaves_the_texts_values(families):
    family = families["flux"]
    result = finetune(
        family.model(),
        family.clip,
        [Concept("cat")],
        ["house"],
        FinetuneConfig(objective="esd", scope="keys", **OPTIONS),
    )
    for up, down in result.adapter.modules.values():
        delta = up.float() @ down.float()
        rows = len(delta) // 3
        assert delta[: 2 * rows].any() and not delta[2 * rows :].any()
