"""What faults do: ``python benchmarks/faults.py`` runs the randomised trials of ``tests/faults`` and counts.

A trial is one case of trouble, drawn at random. It counts a lost file (lost, half written, silently replaced
or left over), a changed base model (or a later run that gives other bytes), and an unclear error (another
exception than the library's, or one that names neither the value nor a remedy). ``--trials`` sets how many,
over all faults. Results of another ComfyUI stay in the file.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch

import trace_core
from trace_core import engine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "faults.json"


def run(total: int, start: int) -> list[dict]:
    """Every fault with its trials, the problems found, and the seconds."""
    import fault_trials

    rows, needing = [], {fault.title for fault in fault_trials.faults(fault_trials.ENGINE)}
    for fault in fault_trials.faults():
        begin = time.perf_counter()
        found = fault_trials.run(fault, fault.trials(total), start, count=True)
        seconds = round(time.perf_counter() - begin, 1)
        rows.append({"fault": fault.title, "engine": fault.title in needing, **found, "seconds": seconds})
        print(*rows[-1].values(), sep="\t", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2400, help="trials, over all faults")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other trials")
    args = parser.parse_args()
    sys.path[:] = [
        str(ROOT / "tests" / "helpers"),
        *(p for p in sys.path if Path(p or ".").resolve() != ROOT),
    ]
    import hypothesis

    torch.set_num_threads(1)
    found = engine.load(cpu=True)
    data = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    data["command"] = "python benchmarks/faults.py"
    data.setdefault("engines", {})[found.version] = {
        "setting": {
            "trials": args.trials,
            "seed": args.seed,
            "trace_core": trace_core.__version__,
            "torch": torch.__version__,
            "hypothesis": hypothesis.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
        },
        "faults": run(args.trials, args.seed),
    }
    RESULTS.write_text(json.dumps(data, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
