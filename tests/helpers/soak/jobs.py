"""The jobs of a soak, drawn at random from a seed: prompts, what is done to them, how they may end."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from server_prompts import applied, erased, node, picture, tuned

#: How many of 200 jobs are of each sort.
SHARES = {
    "closed form": 40,
    "interrupted": 36,
    "applied": 28,
    "finetune": 24,
    "deleted while pending": 16,
    "generated": 16,
    "saved": 12,
    "fused": 10,
    "bad value": 8,
    "compared": 6,
    "verified": 4,
}
MODELS = ("demo-sd", "demo-sd", "demo-flux")
CONCEPTS = ("cat", "dog", "truck", "pizza", "house", "apple", "ship -> truck", "bird -> dog", "google style")
KEPT = ("", "car\nbutterfly\nbanana", "a red car\na tree")
POLICIES = ("projection", "uce", "mace", "trce", "double", "speed", "oce", "rece")
WARM = 20  #: jobs in which every sort, every closed form and every objective comes at least once
OBJECTIVES = ("trace", "mace", "ant", "trce", "esd", "gem", "aegis")
FROM_CLOSED_FORM = ("trace", "mace", "trce", "esd")  #: objectives that can start from another erasure
NEED_ANCHOR = ("trce",)  #: methods that steer to another concept, which the list must name
PROMPTS = ("a photo of a cat, google style", "a photo of a house, twitter style", "a pizza")
BAD = {
    "anchor": {"erase": erased(erase="cat -> cat")},
    "empty": {"erase": erased(erase="")},
    "keep": {"erase": erased(keep="cat")},
    "width": {"erase": tuned(width=13)},
    "window": {"erase": tuned(window="custom", window_start=0.9, window_end=0.1)},
    "wire": {"erase": applied(("demo", 0))},
}


@dataclass
class Job:
    """One job.

    Attributes:
        kind: its sort, a key of :data:`SHARES`.
        prompt: what is queued.
        ends: how it may end: `success`, `error`, `interrupted`, `deleted` or `refused`.
        moment: for `interrupted`: seconds between its start and the cancel.
        before: for `deleted`: the job that it waits for.
    """

    kind: str
    prompt: dict
    ends: tuple[str, ...] = ("success",)
    moment: float = 0.0
    before: dict = field(default_factory=dict)


class Dealer(Random):
    """Random numbers, and decks: every value is dealt once before any is dealt again.

    Attributes:
        aside: other random numbers and decks, for jobs that may not run to their end.
    """

    def __init__(self, seed):
        super().__init__(seed)
        self.aside = self if isinstance(seed, str) else Dealer(f"aside {seed}")
        self._decks: dict[tuple, list] = {}

    def deal(self, values: tuple):
        deck = self._decks.setdefault(values, [])
        if not deck:
            deck += self.sample(values, len(values))
        return deck.pop()


def drawn(count: int, random: Dealer) -> list[str]:
    """The sorts of ``count`` jobs in random order, each as often as its share, and at least once.

    The first ones hold what is needed at first use of everything, so that memory can be compared from there.
    """
    kinds = [kind for kind, share in SHARES.items() for _ in range(max(1, round(share * count / 200)))]
    while len(kinds) < count:
        kinds.append(random.choice(list(SHARES)))
    while len(kinds) > count:  # the commonest gives way
        kinds.remove(max(SHARES, key=kinds.count))
    first = [*SHARES, *["finetune"] * (len(OBJECTIVES) - 1)]
    first += ["closed form"] * (WARM - len(first))
    if count <= WARM or any(first.count(kind) > kinds.count(kind) for kind in SHARES):
        return random.sample(kinds, count)
    for kind in first:
        kinds.remove(kind)
    return random.sample(first, len(first)) + random.sample(kinds, len(kinds))


def model(random: Dealer, name: str = "") -> dict:
    return {"demo": node("SoakModel", name=name or random.choice(MODELS))}


def closed(random: Dealer, **changes) -> dict:
    """A closed form of a random concept and method."""
    policy = changes.get("policy") or random.deal(POLICIES)
    anchored = [c for c in CONCEPTS if " -> " in c]
    given = dict(
        erase=random.choice(anchored if policy in NEED_ANCHOR else CONCEPTS),
        keep=random.choice(KEPT),
        policy=policy,
        strength=random.choice((0.5, 1.0, 1.0, 1.5)),
        energy=random.choice((0.9, 0.95, 0.97)),
    )
    return erased(**{**given, **changes})


def training(random: Dealer, **changes) -> dict:
    """A short finetune by a random paper's objective."""
    objective = random.deal(OBJECTIVES)
    given = dict(
        objective=objective,
        erase=random.choice(("cat -> dog", "ship -> truck")),
        keep="dog\nhouse" if objective != "trace" else random.choice(KEPT),
        steps=random.choice((1, 2, 3)),
        rank=random.choice((2, 4)),
        seed=random.randrange(2**31),
        preview_every=random.choice((0, 1)),
        checkpointing=random.random() < 0.2 and objective != "mace",  # which reads the attention maps
        saliency=random.choice((0.0, 0.5)) if objective == "ant" else 0.0,
        sampling_steps=4,
        neighbours=0,
    )
    return tuned(**{**given, **changes})


def shot(random: Dealer, source: tuple, tag: str = "") -> dict:
    return picture(source, random.randrange(2**31), tag, random.choice(PROMPTS))


def closed_form(random: Dealer) -> Job:
    prompt = model(random) | {"erase": closed(random)}
    return Job("closed form", prompt | shot(random, ("erase", 0)))


def finetune(random: Dealer) -> Job:
    prompt = model(random, "demo-sd") | {"tune": training(random)}
    trained = prompt["tune"]["inputs"]
    if trained["objective"] in FROM_CLOSED_FORM and random.random() < 0.4:
        prompt["first"] = erased(erase=trained["erase"], energy=0.9)
        trained["lora"] = ["first", 1]
    return Job("finetune", prompt | shot(random, ("tune", 0)))


def interrupted(random: Dealer) -> Job:
    """Mostly a longer training, stopped at a random moment; sometimes another node."""
    maker = random.choice((None, None, None, closed_form, compared))
    job = (maker or finetune)(random.aside)
    if maker is None:
        job.prompt["tune"]["inputs"] |= {"steps": 30, "preview_every": random.choice((0, 1, 3))}
    moment = random.uniform(0, 1 if maker else 3)
    return Job("interrupted", job.prompt, ("interrupted", "success"), moment)


def deleted(random: Dealer) -> Job:
    waiting = finetune(random.aside).prompt
    return Job("deleted while pending", waiting, ("deleted",), before=generated(random).prompt)


def application(random: Dealer) -> Job:
    """Two erasures on one model, one of them in a window, from wires or from a file that the run saves."""
    start = random.choice((0.0, 0.2, 0.5))
    end = random.choice((1.0, 1.0, 0.8))
    prompt = model(random) | {
        "first": closed(random),
        "second": closed(random),
        "on": applied(("demo", 0), lora=("first", 1), strength=random.choice((0.0, 0.5, 1.0, -1.0))),
    }
    source = {"lora": ("second", 1)}
    if random.random() < 0.5:
        prompt["save"] = node("TRACE_SaveErasureLora", lora=("second", 1), name="soak/%concepts%")
        source = {"file_name": ("save", 0)}
    prompt["twice"] = applied(("on", 0), start_percent=start, end_percent=end, **source)
    return Job("applied", prompt | shot(random, ("twice", 0)))


def saved(random: Dealer) -> Job:
    form = random.choice(("comfyui", "kohya", "diffusers"))
    prompt = model(random, "demo-sd") | {
        "erase": closed(random),
        "save": node("TRACE_SaveErasureLora", lora=("erase", 1), name=f"soak/{form}", form=form),
        "named": applied(("demo", 0), file_name=("save", 0)),
    }
    return Job("saved", prompt | shot(random, ("named", 0)))


def fused(random: Dealer) -> Job:
    prompt = model(random) | {
        "one": closed(random, erase="cat", policy="projection"),
        "two": closed(random, erase="truck", policy="uce"),
        "fuse": node(
            "TRACE_FuseErasureLoras",
            model=("demo", 0),
            clip=("demo", 1),
            keep=random.choice(KEPT[:2]),
            mode=random.choice(("fuse", "naive sum")),
            lora_1=("one", 1),
            lora_2=("two", 1),
            strengths=random.choice(("", "cat = 0.5")),
        ),
    }
    return Job("fused", prompt | shot(random, ("fuse", 0)))


def generated(random: Dealer) -> Job:
    return Job("generated", model(random) | shot(random, ("demo", 0)))


def bad(random: Dealer) -> Job:
    """A value that a node refuses, or a file that ComfyUI refuses before anything runs."""
    if random.random() < 0.2:
        prompt = {"erase": applied(("demo", 0), lora_file="gone.safetensors")}
        return Job("bad value", model(random) | prompt | shot(random, ("erase", 0)), ("refused",))
    prompt = model(random) | BAD[random.choice(list(BAD))]
    return Job("bad value", prompt | shot(random, ("erase", 0)), ("error",))


def compared(random: Dealer) -> Job:
    prompt = model(random) | {
        "erase": closed(random),
        "compare": node(
            "TRACE_CompareErasure",
            model_before=("demo", 0),
            model_after=("erase", 0),
            clip=("demo", 1),
            vae=("demo", 2),
            prompts="\n".join(PROMPTS[:2]),
            seed=random.randrange(2**31),
            seeds=1,
            steps=4,
            cfg=-1.0,
        ),
    }
    return Job("compared", prompt)


def verified(random: Dealer) -> Job:
    prompt = model(random, "demo-sd") | {
        "erase": closed(random, erase="cat", policy="projection"),
        "verify": node(
            "TRACE_VerifyErasure",
            model=("demo", 0),
            clip=("demo", 1),
            vae=("demo", 2),
            lora_file="none",
            lora=("erase", 1),
            samples=1,
            kept=1,
            keep="dog",
            kept_samples=1,
            steps=2,
            attacks=False,
            seed=random.randrange(2**31),
        ),
    }
    return Job("verified", prompt)


MAKERS = {
    "closed form": closed_form,
    "interrupted": interrupted,
    "applied": application,
    "finetune": finetune,
    "deleted while pending": deleted,
    "generated": generated,
    "saved": saved,
    "fused": fused,
    "bad value": bad,
    "compared": compared,
    "verified": verified,
}


def reference() -> dict:
    """The same plain picture, with a fixed seed, of both base models."""
    return {
        "demo": node("SoakModel", name="demo-sd"),
        **picture(("demo", 0), seed=11),
        "flux": node("SoakModel", name="demo-flux"),
        **{
            name: {
                **entry,
                "inputs": {
                    k: ["flux", v[1]] if isinstance(v, list) and v[0] == "demo" else v
                    for k, v in entry["inputs"].items()
                },
            }
            for name, entry in picture(("demo", 0), seed=12, tag="2").items()
        },
    }
