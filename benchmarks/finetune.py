"""What the finetune costs: ``python -m trace_core bench finetune --json FILE``, or this file itself.

* ``cost``: model evaluations (forward 1, backward 2) and seconds until a concept is gone, of our loop and of
one that
  samples again at every optimiser step, as ESD (arXiv 2303.07345) and LECO do. Everything else is the same in
  both: objective, eta, batch, learning rate, steps of the schedule, seed, adapters, teacher
* ``memory``: the peak of a training step beside that of inference, see ``training_memory.py``
* ``sizes``: steps per second and memory at the real models' sizes, on CUDA alone
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import torch

import trace_core
from trace_core import engine
from trace_core.backbones.sampling import SamplerConfig, sample
from trace_core.evaluate.metrics import top1
from trace_core.finetune import FinetuneConfig
from trace_core.finetune.trainer import Trainer
from trace_core.finetune.trajectory import REFERENCES, Points, schedule
from trace_core.text.concepts import Concept

sys.path.insert(0, str(Path(__file__).parent))  # the command line loads this file by its path
import training_memory  # noqa: E402

library = importlib.import_module("trace_core.finetune.run")

RESULTS = Path(__file__).parent / "results"
PARTS = ("cost", "memory", "sizes")
CONCEPT = "cat"
#: The preset ``balanced`` as it was when this was measured, on the whole trajectory, without a closed form
#: before it.
SETTING = {
    "objective": "trace",
    "eta": 0.5,
    "window": (0.0, 1.0),
    "steps": 120,
    "batch": 48,
    "lr": 2e-3,
    "trajectories": 24,
    "keep_trajectories": 96,
    "refresh": 30,
    "width": 64,
    "height": 64,
}
TARGET = 0.1  #: share of pictures still recognised; chance is 1/24
#: of a probe; optimiser steps between probes; probes at the target that end a run
PICTURES, EVERY, IN_A_ROW = 30, 4, 2
ESD_STEPS = 50  #: of a trajectory in ESD's released code
LIMIT = 400_000  #: evaluations after which a run is given up


# ---------------------------------------------------------------------------------------------- the two loops


class Reached(Exception):
    """Ends a run."""


@dataclass
class Probe:
    """Pictures of the concept by the student now and then. What that takes is not counted.

    Attributes:
        model, clip, vae: the demo model.
        domain: its judge.
        curve: ``[step, evaluations, Acc_e, wall seconds, CPU seconds]`` of every probe.
        aside: wall and CPU seconds spent in probes.
    """

    model: object
    clip: object
    vae: object
    domain: object
    curve: list[list] = field(default_factory=list)
    aside: list[float] = field(default_factory=lambda: [0.0, 0.0])
    others: float | None = None
    began: tuple[float, float] = field(default_factory=lambda: (time.perf_counter(), time.process_time()))

    def seconds(self) -> list[float]:
        now = time.perf_counter(), time.process_time()
        return [round(n - b - a, 2) for n, b, a in zip(now, self.began, self.aside)]

    def accuracy(self, noun: str, count: int) -> float:
        prompts = self.domain.prompts("object", noun, count)
        latents = sample(self.model, self.clip, prompts, range(count), SamplerConfig())
        right = top1(
            self.domain.judge(self.vae.decode(latents), "object"), list(self.domain.objects).index(noun)
        )
        return round(right, 4)  # 3 of 30 are 0.10000000149 in float32, and must be at the target

    def __call__(self, step: int, evaluations: int) -> None:
        """Raises :class:`Reached` at the target, and where the run is given up."""
        seconds, begin = self.seconds(), (time.perf_counter(), time.process_time())
        with torch.no_grad():
            self.curve.append([step, evaluations, self.accuracy(CONCEPT, PICTURES), *seconds])
            ended = self.reached() is not None or evaluations > LIMIT
            if ended:  # that the erasures compared spoil equally little
                others = [name for name in self.domain.objects if name != CONCEPT]
                self.others = statistics.fmean(self.accuracy(name, 2) for name in others)
        for i, now in enumerate((time.perf_counter(), time.process_time())):
            self.aside[i] += now - begin[i]
        if ended:
            raise Reached

    def reached(self) -> list | None:
        """The first of the probes at the target that ended the run, or None."""
        last = self.curve[-IN_A_ROW:]
        return last[0] if len(last) == IN_A_ROW and all(p[2] <= TARGET for p in last) else None


class Probed(Trainer):
    """Our loop, with the probe in the place of the preview."""

    probe: Probe

    def _maybe_preview(self, adapters) -> None:
        if self.step % EVERY == 0:
            self.probe(self.step, self.backbone.evaluations - self._started_at)


class Resampled(Probed):
    """ESD's loop: fresh trajectories at every step, each up to a random point, and the teacher there.

    The concept's come from the student and the keep prompts' from the base model, as in ours. Every sample of
    a batch has its own random point; ESD has one for all, whose gradient is noisier.
    """

    def fill_bank(self, role, adapters, fresh) -> None:
        self.adapters = adapters
        self.bank.points[role] = torch.empty(0)  # nothing is stored

    def batch(self):
        generator = torch.Generator().manual_seed(self.config.seed * 15485863 + self.step)
        terms = self.terms()
        shares, out, numbers = sum(t.share for t in terms), [], []
        for term in terms:
            count = max(1, round(self.config.batch * term.share / shares))
            pairs = self.erase_pairs if term.role == "erase" else self.keep_pairs
            chosen = [pairs[int(i)] for i in torch.randint(len(pairs), (count,), generator=generator)]
            points = self.sampled(
                chosen, "student" if term.role == "erase" else "base", term.needs, generator
            )
            out.append((term, points))
            numbers += points.prompt.tolist() if term.prompt == "prompt" else [self.uncond] * count
        self.adapters.use("student")
        return out, numbers

    @torch.no_grad()
    def sampled(self, pairs, state: str, needed, generator: torch.Generator) -> Points:
        """A point on a fresh trajectory for each pair of prompts, any step alike, and the teacher's
        predictions.
        """
        steps, cfg, backbone = self.config.sampling_steps, self.config.cfg, self.backbone
        percents, sigmas = schedule(backbone, steps, torch.rand(1, generator=generator).item())
        stops = torch.randint(steps + 1, (len(pairs),), generator=generator).sort(descending=True).values
        noise = torch.randn(len(pairs), *self.shape, generator=generator).to(backbone.device)
        first = torch.tensor(sigmas[0], device=noise.device)
        x = backbone.model_sampling.noise_scaling(first, noise, torch.zeros_like(noise), True)
        prompts = [p for p, _ in pairs]
        self.adapters.use(state)
        for at in range(int(stops[0])):
            n = int((stops > at).sum())  # the others have arrived
            level = torch.full((2 * n,), sigmas[at], device=x.device)
            condition = self.prompts.batch([*prompts[:n], *[self.uncond] * n])
            out = condition.predict(torch.cat([x[:n], x[:n]]), level)
            x0 = backbone.denoised_of(x[:n], level[:n], out[n:] + cfg * (out[:n] - out[n:]))
            x[:n] += (x[:n] - x0) / sigmas[at] * (sigmas[at + 1] - sigmas[at])
        points = Points(x, torch.tensor(sigmas)[stops], torch.tensor(percents)[stops], *torch.tensor(pairs).T)
        self.adapters.use("base")
        for name in needed:
            texts = {"prompt": points.prompt, "neutral": points.neutral, "uncond": [self.uncond] * len(pairs)}
            text = texts[REFERENCES[name][1]]
            points.predictions[name] = self.prompts.batch(text).predict(x, points.sigma.to(x.device))
        return points


LOOPS = {
    "ours: a bank": (Probed, {}),
    "fresh at every step": (Resampled, {}),
    "fresh at every step, as in ESD": (Resampled, {"sampling_steps": ESD_STEPS}),
}


# ------------------------------------------------------------------------------------------------ cost


@contextmanager
def trained_by(trainer: type[Trainer], probe: Probe):
    with patch.object(library, "Trainer", type(trainer.__name__, (trainer,), {"probe": probe})):
        yield


def one_run(name: str, seed: int) -> dict:
    """One loop until the target: what it took, and the curve on the way."""
    from trace_core.demo.domain import CONTEXTS, domain, keep_list
    from trace_core.demo.loader import load

    loop, changes = LOOPS[name]
    model, clip, vae = load("demo-sd")
    concepts, probe = [Concept(CONCEPT)], Probe(model, clip, vae, domain())
    config = FinetuneConfig(**{**SETTING, "contexts": CONTEXTS, "seed": seed, **changes})
    with trained_by(loop, probe):
        try:
            library.finetune(model, clip, concepts, keep_list(concepts), config)
        except Reached:
            pass
    found = probe.reached()
    out = {
        "loop": name,
        "seed": seed,
        "trajectory_steps": config.sampling_steps,
        "reached": found is not None,
        "last": dict(zip(("step", "evaluations", "acc_e", "wall_seconds", "cpu_seconds"), probe.curve[-1])),
        "acc_s": probe.others,
        "curve": probe.curve,
    }
    if found:
        out |= dict(zip(("step", "evaluations", "acc_e", "wall_seconds", "cpu_seconds"), found))
    return out


def cost(seed: int = 0, loops=LOOPS, say=print) -> dict:
    """Every loop once, and each as a multiple of ours."""
    runs = []
    for name in loops:
        r = one_run(name, seed)
        runs.append(r)
        end = f"Acc_e {100 * r['acc_e']:.0f} %" if r["reached"] else "not reached, stopped"
        spent = r if r["reached"] else r["last"]
        say(
            f"{name}: {end} after {spent['evaluations']} evaluations, {spent['cpu_seconds']:.0f} s of CPU "
            "time"
        )
    return {
        "concept": CONCEPT,
        "setting": SETTING,
        "target": TARGET,
        "pictures": PICTURES,
        "probe_every": EVERY,
        "probes_in_a_row": IN_A_ROW,
        "runs": compared(runs),
    }


def compared(runs: list[dict]) -> list[dict]:
    """With ``evaluations_ratio`` and ``cpu_ratio`` to ours; of a run that was given up, a lower bound."""
    mine = runs[0] if runs[0]["reached"] else runs[0]["last"]
    for r in runs:
        spent = r if r["reached"] else r["last"]
        r["evaluations_ratio"] = round(spent["evaluations"] / mine["evaluations"], 2)
        r["cpu_ratio"] = round(spent["cpu_seconds"] / mine["cpu_seconds"], 2)
    return runs


# ------------------------------------------------------------------------------------------------ all of it


def run(parts=PARTS, seed: int = 0, say=print) -> dict:
    """What ``--json`` writes, part by part; ``sizes`` is left out where there is no CUDA."""
    found, out = engine.load(), {}
    for part in parts:
        begin, load = time.perf_counter(), os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        if part == "sizes" and not torch.cuda.is_available():
            say("sizes: no CUDA here, not measured")
            continue
        made = cost(seed, say=say) if part == "cost" else getattr(training_memory, part)(say=say)
        out[part] = {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "engine": found.version,
            "trace_core": trace_core.__version__,
            "threads": torch.get_num_threads(),
            "cpus": os.cpu_count(),
            "load_at_start": load,
            "seconds_in_all": round(time.perf_counter() - begin, 1),
        } | {"results": made}
    return out


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", type=Path, default=RESULTS / "finetune.json", help="parts not measured stay in it"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    before = json.loads(args.json.read_text()) if args.json.exists() else {}
    data = before | run(args.parts, args.seed)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(data, indent=1) + "\n")
    print(f"wrote {args.json}")


if __name__ == "__main__":
    main()
