"""A soak: ``python benchmarks/soak.py --jobs 200 --engine PATH`` runs many jobs of the pack's nodes in one
server of ComfyUI, on the demo models, and counts what they leave behind.

``tests/helpers/soak`` has the jobs and what is counted. Results of another ComfyUI stay in the file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

import trace_core
from trace_core import engine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "soak.json"
LOG = 40  #: lines of the server's log that are shown if it ends


def harness():
    """The module that starts ComfyUI for the tests."""
    spec = importlib.util.spec_from_file_location("soak_harness", ROOT / "tests" / "server" / "harness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tell(entry: dict) -> None:
    import soak

    if "job" in entry:
        print(*(entry[name] for name in ("job", "kind", "end", "seconds")), sep="\t", end="\t")
        print(f"{entry['resident'] / 2**20:.0f} MiB", flush=True)
        return
    tell.first = getattr(tell, "first", entry["counts"])
    found = soak.changed(tell.first, entry["counts"])
    print(f"rest after {entry['after']}: {entry['resident'] / 2**20:.0f} MiB, changed: {found}", flush=True)


def measured(running) -> dict:
    """What a run found, for the file of results."""
    import soak

    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    info = ("objects", "tensors", "tensor bytes", "native threads", "heap in use", "heap kept")
    return {
        "ends": Counter(f"{entry['kind']}: {entry['end']}" for entry in running.log),
        "unexpected": running.unexpected,
        "leaked": soak.leaked(running.rests),
        "memory": soak.memory(running.rests),
        "pictures": soak.pictures(running.rests),
        "seconds": round(sum(entry["seconds"] for entry in running.log)),
        "cpu_seconds": round(spent.ru_utime + spent.ru_stime),
        "resident_mib_after_each_job": [round(entry["resident"] / 2**20) for entry in running.log],
        "rests": [
            {"after": r["after"], "resident_mib": round(r["resident"] / 2**20, 1)}
            | {name: r["counts"][name] for name in info if name in r["counts"]}
            for r in running.rests
        ],
    }


def setting(args: argparse.Namespace) -> dict:
    import soak
    from soak import jobs

    return {
        "jobs": args.jobs,
        "seed": args.seed,
        "rest_every": args.every,
        "models": sorted(set(jobs.MODELS)),
        "picture": 64,
        "training_picture": 32,
        "trace_core": trace_core.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": 1,
        "freed_by": "POST /free with unload_models and free_memory",
        "variables": soak.GIVE_BACK if args.give_back else {},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--engine", type=Path, help="a ComfyUI checkout; without it the one that is found")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other jobs")
    parser.add_argument("--every", type=int, default=10, help="jobs between two counts")
    parser.add_argument("--give-back", action="store_true", help="tell the C library to keep no freed memory")
    parser.add_argument("--dry", action="store_true", help="write no results")
    args = parser.parse_args()
    sys.path[:] = [
        str(ROOT / "tests" / "helpers"),
        *(p for p in sys.path if Path(p or ".").resolve() != ROOT),
    ]
    import soak

    if args.engine:
        os.environ["COMFYUI_PATH"] = str(args.engine)
    found = engine.find()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        variables = soak.install(base) | (soak.GIVE_BACK if args.give_back else {})
        with harness().Server(found.path, base, variables=variables) as server:
            running = soak.Soak(server, args.jobs, args.seed, args.every)
            try:
                running.run(tell)
            except Exception:
                print("\n".join(server.log.read_text().splitlines()[-LOG:]), file=sys.stderr)
                raise
    result = {"setting": setting(args), **measured(running)}
    print(json.dumps({k: v for k, v in result.items() if k not in ("rests", "setting")}, indent=1))
    if args.dry:
        return 0
    data = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    data["command"] = "python benchmarks/soak.py"
    kind = found.version + (", freed memory given back" if args.give_back else "")
    data.setdefault("engines", {})[kind] = result
    RESULTS.write_text(json.dumps(data, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
