"""The points that a finetune learns from: on the sampler's own path, with the predictions that belong to
them.
"""

from __future__ import annotations

import pytest
import torch

from trace_core.backbones import backbone_for
from trace_core.errors import TraceError
from trace_core.finetune.prompts import Prompts
from trace_core.finetune.trajectory import Points, Sampling, TrajectoryBank, schedule, trajectories

KINDS = ("sd1", "sdxl", "flux")
SIZE = 32
STEPS = 3


@pytest.fixture(scope="module")
def loaded(families):
    """``loaded(kind)``: a backbone of each family on its device, made once."""
    held = {}

    def get(kind):
        if kind not in held:
            held[kind] = backbone_for(families[kind].model())
        held[kind].load()
        held[kind].evaluations = 0
        return families[kind], held[kind]

    return get


def bank_of(family, backbone, limit=1 << 30, **options) -> TrajectoryBank:
    prompts = Prompts(backbone, family.clip, backbone.latent_shape(SIZE, SIZE), 3.0)
    sampling = Sampling(**{"steps": STEPS, "batch": 2, **options})
    return TrajectoryBank(backbone, prompts, sampling, prompts.index(""), limit)


def pairs(bank, *texts: str) -> list[tuple[int, int]]:
    return [(bank.prompts.index(t), bank.prompts.index("a photo")) for t in texts]


class Listener:
    """Hears every tick, and which network was asked for."""

    def __init__(self):
        self.ticks, self.states = [], []

    def __call__(self, *tick):
        self.ticks.append(tick)

    def use(self, state):
        self.states.append(state)


def steps_of(bank, texts=("a cat", "a dog"), seed=0):
    numbers = [bank.prompts.index(t) for t in texts]
    return list(
        trajectories(bank.backbone, bank.prompts, numbers, bank.uncond, bank.sampling, seed, lambda: None)
    )


def same(a, b) -> bool:
    return all(torch.equal(x, y) for (*_, x, _), (*_, y, _) in zip(a, b))


# ------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_makes_one_trajectory(loaded, kind):
    bank = bank_of(*loaded(kind))
    first, again, other = (steps_of(bank, seed=seed) for seed in (5, 5, 6))
    assert same(first, again) and [s[:2] for s in first] == [s[:2] for s in again]
    assert not torch.equal(first[0][2], other[0][2])
    assert first[1][1] != other[1][1], "another seed visits other noise levels"


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_belong_to_exactly_what_is_stored(loaded, kind, cfg):
    """Latents are rounded to the bank's type before the network sees them."""
    family, backbone = loaded(kind)
    bank = bank_of(family, backbone, cfg=cfg)
    texts = ("a cat", "a dog")
    *steps, (percent, sigma, last, none) = steps_of(bank, texts)
    assert (percent, sigma, none) == (1.0, 0.0, {}) and torch.isfinite(last).all()
    numbers = [bank.prompts.index(t) for t in texts]
    for _, sigma, x, found in steps:
        assert torch.equal(x.half().float(), x)
        guided = cfg != 1.0
        given = torch.cat([x, x]) if guided else x
        numbers_there = numbers + [bank.uncond] * 2 * guided
        with torch.no_grad():
            out = bank.prompts.batch(numbers_there).predict(given, torch.full((len(given),), sigma))
        assert torch.equal(found["prompt"], out[:2])
        assert set(found) == ({"prompt", "uncond"} if guided else {"prompt"})
        assert not guided or torch.equal(found["uncond"], out[2:])


@pytest.mark.parametrize("kind", KINDS)
def test_path_is_the_one_of_comfyuis_euler(loaded, kind):
    """From the same noise over the same levels."""
    import comfy.sample
    import comfy.samplers

    family, backbone = loaded(kind)
    cfg = 1.0 if kind == "flux" else 3.0
    bank = bank_of(family, backbone, cfg=cfg, dtype=torch.float32)
    ours = steps_of(bank, ("a cat",), seed=7)
    generator = torch.Generator().manual_seed(7)
    torch.rand(1, generator=generator)
    noise = torch.randn(1, *bank.prompts._shape, generator=generator)
    positive, negative = (
        [[r, {**e, "guidance": 3.0}] for r, e in family.conditioning(t)] for t in ("a cat", "")
    )
    sigmas = torch.tensor([s[1] for s in ours])
    sampler = comfy.samplers.sampler_object("euler")
    latents = comfy.sample.sample_custom(
        backbone.patcher,
        noise,
        cfg,
        sampler,
        sigmas,
        positive,
        negative,
        torch.zeros_like(noise),
        disable_pbar=True,
    )
    latents = backbone.patcher.model.process_latent_in(latents)
    assert (ours[-1][2] - latents).norm() < 1e-3 * latents.norm()


@pytest.mark.parametrize("offset", [0.0, 0.4])
@pytest.mark.parametrize("kind", KINDS)
def test_schedule_begins_with_the_models_largest_level(loaded, kind, offset):
    backbone = loaded(kind)[1]
    percents, sigmas = schedule(backbone, 4, offset)
    assert percents == pytest.approx([0.0, *((i + offset) / 4 for i in range(4))])
    assert sigmas == [backbone.sigma_at(p) for p in percents]
    assert sigmas == sorted(sigmas, reverse=True) and sigmas[-1] > 0


# ------------------------------------------------------------------------------------- the bank


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_base_predictions_are_by_products_of_sampling(loaded, kind, cfg):
    """Nothing is evaluated twice: with guidance the bank of the base model costs no teacher at all."""
    family, backbone = loaded(kind)
    bank, heard = bank_of(family, backbone, cfg=cfg), Listener()
    backbone.evaluations = 0
    bank.sample(
        "keep", pairs(bank, "a cat", "a dog", "a car"), ["concept", "uncond"], 0, heard.use, "base", heard
    )
    points = 3 * (STEPS + 1)
    assert backbone.evaluations == 2 * points
    teacher = [t for t in heard.ticks if t[0] == "teacher on keep"]
    assert bool(teacher) == (cfg == 1.0), "without guidance the unconditional prediction is made afterwards"
    assert len(bank.points["keep"]) == points and heard.states[0] == "base" and heard.states[-1] == "student"


def test_a_students_points_get_the_teachers_predictions(loaded):
    family, backbone = loaded("sd1")
    bank, heard = bank_of(family, backbone), Listener()
    backbone.evaluations = 0
    needed = ["concept", "neutral", "start"]
    bank.sample("erase", pairs(bank, "a cat", "a dog", "a car"), needed, 0, heard.use, "student", heard)
    points = 3 * (STEPS + 1)
    assert backbone.evaluations == (2 + len(needed)) * points
    assert heard.states == ["student", "base", "base", "start", "student"]
    assert set(bank.points["erase"].predictions) == set(needed)
    phases = {phase: [t for t in heard.ticks if t[0] == phase] for phase, *_ in heard.ticks}
    for ticks in phases.values():
        assert [t[1] for t in ticks] == list(range(len(ticks))) and {t[2] for t in ticks} == {len(ticks)}


@pytest.mark.parametrize("student", ["base", "student"])
@pytest.mark.parametrize("kind", KINDS)
def test_stored_predictions_are_those_of_their_points(loaded, kind, student):
    """Every one, evaluated again alone."""
    family, backbone = loaded(kind)
    bank, heard = bank_of(family, backbone), Listener()
    bank.sample(
        "erase", pairs(bank, "a cat", "a dog"), ["concept", "neutral", "uncond"], 0, heard.use, student, heard
    )
    points = bank.points["erase"]
    assert points.prompt.tolist() == [bank.prompts.index(t) for t in ("a cat", "a dog")] * (STEPS + 1)
    for name, prompt in (
        ("concept", points.prompt),
        ("neutral", points.neutral),
        ("uncond", [bank.uncond] * len(points)),
    ):
        for i in range(len(points)):
            with torch.no_grad():
                out = bank.prompts.batch([prompt[i]]).predict(
                    points.x[i : i + 1].float(), points.sigma[i : i + 1]
                )
            stored = points.predictions[name][i : i + 1].float()
            assert (stored - out).norm() < 1e-3 * out.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_bound_is_kept_before_anything_is_sampled(loaded, kind):
    family, backbone = loaded(kind)
    bank, heard = bank_of(family, backbone), Listener()
    four = pairs(bank, "a cat", "a dog", "a car", "a bird")
    size = bank.expected_bytes(4, 2)
    bank.limit = size - 1
    with pytest.raises(
        TraceError, match="4 trajectories take 0 MB, more than the bank's 0 MB; use fewer trajectories"
    ):
        bank.sample("keep", four, ["concept", "uncond"], 0, heard.use, "base", heard)
    assert (backbone.evaluations, heard.ticks, heard.states, bank.points) == (0, [], [], {})
    bank.limit = size
    bank.sample("keep", four, ["concept", "uncond"], 0, heard.use, "base", heard)
    points = bank.points["keep"]
    assert points.x.nbytes + sum(p.nbytes for p in points.predictions.values()) == size
    assert size < bank.nbytes < 1.2 * size + 100 * len(points), "the rest is numbers per point"


def test_roles_share_the_bound_and_a_role_takes_its_own_place(loaded):
    family, backbone = loaded("sd1")
    bank, heard = bank_of(family, backbone), Listener()
    some = pairs(bank, "a cat", "a dog")
    bank.sample("keep", some, ["concept"], 0, heard.use, "base", heard)
    keep = bank.points["keep"]
    bank.limit = bank.nbytes + bank.expected_bytes(2, 1)
    for seed in range(3):
        bank.sample("erase", some, ["concept"], seed, heard.use, "base", heard)
    assert bank.points["keep"] is keep
    bank.limit -= 1
    before = bank.points["erase"]
    with pytest.raises(TraceError, match="more than the bank's"):
        bank.sample("erase", some, ["concept"], 9, heard.use, "base", heard)
    assert bank.points["erase"] is before


def test_an_error_while_sampling_leaves_the_points_that_were(loaded):
    family, backbone = loaded("sd1")
    bank, heard = bank_of(family, backbone), Listener()
    some = pairs(bank, "a cat")
    bank.sample("erase", some, ["concept"], 0, heard.use, "base", heard)
    before = bank.points["erase"]

    def stop(*tick):
        if tick[1] == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        bank.sample("erase", some, ["concept"], 1, heard.use, "base", stop)
    assert bank.points["erase"] is before


@pytest.mark.parametrize("kind", KINDS)
def test_batches_do_not_change_what_is_asked(loaded, kind):
    """Trajectories of a batch that is not full, and prompts in their order."""
    family, backbone = loaded(kind)
    bank, heard = bank_of(family, backbone, batch=2), Listener()
    five = pairs(bank, "a cat", "a dog", "a car", "a bird", "a ship")
    bank.sample("erase", five, ["concept"], 0, heard.use, "base", heard)
    points = bank.points["erase"]
    per_step = [
        points.prompt[points.percent == p].tolist().count(five[4][0]) for p in points.percent.unique()
    ]
    assert sum(per_step) == STEPS + 1
    assert sorted(points.prompt.tolist()) == sorted([p for p, _ in five] * (STEPS + 1))


# ------------------------------------------------------------------------------------- prompts and points


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_encoded_once(loaded, kind, monkeypatch):
    family, backbone = loaded(kind)
    prompts = Prompts(backbone, family.clip, backbone.latent_shape(SIZE, SIZE), 3.0)
    asked = []
    plain = family.clip.encode_from_tokens
    monkeypatch.setattr(family.clip, "encode_from_tokens", lambda *a, **k: asked.append(a) or plain(*a, **k))
    numbers = [prompts.index(t) for t in ("a cat", "", "a cat", "a dog", "")]
    assert numbers == [0, 1, 0, 2, 1] and prompts.texts == ["a cat", "", "a dog"] and len(asked) == 3
    ((_, made),) = prompts.batch(torch.tensor([2, 0, 2])).parts
    assert all(v.shape[0] == 3 and torch.equal(v[0], v[2]) for v in made.values())
    assert any(not torch.equal(v[0], v[1]) for v in made.values())
    assert prompts.nbytes == sum(v.nbytes for v in prompts.batch([0, 1, 2]).parts[0][1].values())


def test_prompts_of_different_lengths_share_a_batch(loaded):
    """Each sample gets the prediction that it has alone, and its own attention maps."""
    family, backbone = loaded("sd1")
    prompts = Prompts(backbone, family.clip, backbone.latent_shape(SIZE, SIZE), 3.0)
    numbers = prompts.indices([("a cat", "cat"), ("cat dog bird " * 30, ""), ("a dog", "dog")])
    numbers, generator = [*numbers, numbers[1]], torch.Generator().manual_seed(0)
    x = torch.randn(4, *prompts._shape, generator=generator)
    sigma, batch, maps = torch.tensor([5.0, 2.0, 0.5, 1.0]), prompts.batch(numbers), []
    with torch.no_grad(), backbone.attention_maps(maps):
        together = batch.predict(x, sigma)
    assert len(batch.parts) == 2
    places = []
    for own, layers in batch.attention(maps, slice(1, 4)):
        places += own
        assert all(len(q) == len(k) == len(own) for q, k in layers)
    assert sorted(places) == [0, 1, 2]
    for at, number in enumerate(numbers):
        with torch.no_grad():
            alone = prompts.batch([number]).predict(x[at : at + 1], sigma[at : at + 1])
        assert torch.allclose(together[at : at + 1], alone, atol=1e-5)


def test_points_join_and_are_chosen_row_by_row():
    def one(start, n):
        rows = torch.arange(start, start + n)
        return Points(
            rows.view(-1, 1, 1, 1).half(),
            rows.float(),
            rows / 10,
            rows,
            rows + 100,
            {"uncond": -rows.view(-1, 1, 1, 1)},
        )

    joined = Points.join([one(0, 3), one(3, 2)])
    chosen = joined[torch.tensor([4, 1, 1])]
    assert len(joined) == 5 and joined.prompt.tolist() == [0, 1, 2, 3, 4]
    assert chosen.neutral.tolist() == [104, 101, 101] and chosen.predictions["uncond"].flatten().tolist() == [
        -4,
        -1,
        -1,
    ]
    assert chosen.nbytes == 3 * (2 + 4 + 4 + 8 + 8 + 8)
