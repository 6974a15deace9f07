"""Verify Erasure on real shapes with random weights: ``python benchmarks/verify_shapes.py``.

An SD 1.5 checkpoint, whole, and FLUX of its real width with few blocks. Their pictures are noise, so the
verdict means nothing here: this measures the time, the progress and the cancel. Pictures are small, few, and
have few steps, as two cores need; of FLUX, which reads 256 text tokens a row, fewest. Each case runs in a
process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

import trace_core
from trace_core import engine
from trace_core.backbones import backbone_for
from trace_core.backbones.sampling import SamplerConfig
from trace_core.cli.commands import write_text
from trace_core.closed_form import erase
from trace_core.evaluate.verify import Effort, verify
from trace_core.text.templates import TEMPLATES

sys.path.insert(0, str(Path(__file__).parent))
from real_shapes import CONCEPT, FEW, fingerprint, peak  # noqa: E402
from shape_files import load, write  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "verify_shapes.json"
EFFORTS = {
    "SD1.5 fp16": Effort(samples=4, kept=4, kept_samples=1, neighbours=2, levels=4, repeats=1),
    "FLUX bf16": Effort(samples=2, kept=2, kept_samples=1, neighbours=1, levels=2, repeats=1),
}
NAMES = tuple(EFFORTS)


class Stopped(Exception):
    """As ComfyUI's cancel, raised in the progress."""


class Heard:
    """Counts what the progress says, and may cancel in the middle of a phase."""

    def __init__(self, cancel_in: str | None = None):
        self.calls, self.seconds, self.cancel_in = 0, {}, cancel_in
        self.last, self.longest, self.cancelled = time.perf_counter(), 0.0, 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = time.perf_counter()
        gap, self.last = now - self.last, now
        self.calls += 1
        self.longest = max(self.longest, gap)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + gap
        if self.cancel_in and self.cancel_in in phase and done >= total // 2:
            self.cancelled = now
            raise Stopped


def run_case(name: str, folder: Path, pixels: int, steps: int) -> dict:
    """One verification whole, and one that is cancelled while pictures are drawn."""
    model, clip = load(name, write(name, folder, False), False)
    if name.startswith("FLUX"):  # the text encoder is as wide as the real one
        TEMPLATES.update({kind: prompts[:1] for kind, prompts in TEMPLATES.items()})
    before = fingerprint(model)
    lora = erase(model, clip, [CONCEPT], list(FEW)).lora
    config = SamplerConfig.for_model(model, steps=steps, width=pixels, height=pixels)
    effort, heard, start = EFFORTS[name], Heard(), time.perf_counter()
    found = verify(model, clip, lora, keep=list(FEW), config=config, effort=effort, progress=heard)
    seconds = time.perf_counter() - start
    stopped = Heard(cancel_in="before")
    try:
        verify(model, clip, lora, keep=list(FEW), config=config, effort=effort, progress=stopped)
        raise SystemExit("the verification was not cancelled")
    except Stopped:
        after = time.perf_counter() - stopped.cancelled
    backbone_for(model).load()
    return {
        "effort": asdict(effort),
        "seconds": round(seconds, 1),
        "progress_calls": heard.calls,
        "longest_silence": round(heard.longest, 1),
        "phases": {k: round(v, 1) for k, v in heard.seconds.items()},
        "items": len(found.items),
        "cancel_seconds": round(after, 3),
        "base_identical": before == fingerprint(model),
        "peak": peak(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, help=f"any of: {'; '.join(NAMES)}")
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    found = engine.load(cpu=True)
    if args.case:
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            print(json.dumps(run_case(args.case, Path(folder), args.pixels, args.steps)))
        return
    data = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    here = data.setdefault(found.version, {})
    here["setting"] = {
        "trace_core": trace_core.__version__,
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "pixels": args.pixels,
        "steps": args.steps,
    }
    for name in args.names:
        size = ["--pixels", str(args.pixels), "--steps", str(args.steps)]
        command = [sys.executable, __file__, "--case", name, *size]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        here.setdefault("cases", {})[name] = json.loads(done.stdout.strip().splitlines()[-1])
        print(name, here["cases"][name], flush=True)
        write_text(RESULTS, json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
