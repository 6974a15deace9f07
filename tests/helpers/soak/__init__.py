"""A soak: many jobs of the pack's nodes in one server of ComfyUI, and what they leave behind.

Between the jobs the server is asked to free its memory by ``POST /free``, as ComfyUI's own button does. Then
everything is counted that a job could have left, and a plain picture is drawn with a fixed seed.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from pathlib import Path

import requests

from soak import jobs

HERE = Path(__file__).resolve().parent
#: What must be the same after every job: figures of ``probe.count``, by their row of the table.
LEAKS = {
    "adapters": ("adapters", "trained"),
    "hooks": ("hooks", "wrappers"),
    "patches": ("patches", "models", "modules"),
    "threads": ("threads",),
    "open files": ("open files",),
    "temporary files": ("temporary files", "unnamed files"),
    "base weights": ("weights",),
}
#: Variables that tell the GNU C library to give freed memory back at once. By itself it learns from large
#: pieces that were freed to keep more and more.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
TRIES = 3  #: a thread of ComfyUI's own may be at work just then


def install(base: Path) -> dict[str, str]:
    """Put the probe beside the pack; returns what the server's environment needs."""
    folder = base / "custom_nodes" / "soak_probe"
    folder.mkdir(parents=True)
    shutil.copy(HERE / "probe.py", folder / "__init__.py")
    (base / "tmp").mkdir()
    return {"TMPDIR": str(base / "tmp")}


def resident(pid: int) -> int:
    """Bytes of memory that a process has in use."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


class Soak:
    """A run of ``count`` jobs on a running server.

    Attributes:
        log: a dict a job: its sort, how it ended, the seconds, and the server's memory after it.
        rests: a dict a rest: the job before it, the counts and the pictures' hashes.
    """

    def __init__(self, server, count: int, seed: int, every: int):
        self.server, self.count, self.seed, self.every = server, count, seed, every
        self.log: list[dict] = []
        self.rests: list[dict] = []
        self.unexpected: list[str] = []

    def run(self, tell=lambda entry: None) -> None:
        self.rest(0)
        random = jobs.Dealer(self.seed)
        for number, kind in enumerate(jobs.drawn(self.count, random), 1):
            job = jobs.MAKERS[kind](random)
            begin = time.monotonic()
            end, why = self.one(job)
            if end not in job.ends:
                self.unexpected.append(f"job {number}, {kind}: {end} {why}")
            self.log.append(
                {
                    "job": number,
                    "kind": kind,
                    "end": end,
                    "seconds": round(time.monotonic() - begin, 2),
                    "resident": resident(self.server.process.pid),
                }
            )
            tell(self.log[-1])
            if number % self.every == 0 or number == self.count:
                self.rest(number)
                tell(self.rests[-1])

    # -------------------------------------------------------------------------------------- one job

    def one(self, job: jobs.Job) -> tuple[str, str]:
        """Run a job; returns how it ended, and what the server says."""
        if "deleted" in job.ends:
            return self.deleted(job), ""
        try:
            queued = self.server.queue(job.prompt)
        except Exception as error:  # the harness's own Rejected
            return "refused", str(error)[:500]
        if job.kind == "interrupted":
            self.started(queued)
            time.sleep(job.moment)
            self.post("/interrupt", {"prompt_id": queued})
        return ended(self.server.wait(queued))

    def deleted(self, job: jobs.Job) -> str:
        """Queue a job behind another one and delete it while it waits."""
        first = self.server.queue(job.before)
        waiting = self.server.queue(job.prompt)
        self.post("/queue", {"delete": [waiting]})
        self.server.wait(first)
        left = [entry[1] for part in self.server.get("/queue").values() for entry in part]
        return "deleted" if waiting not in [*left, *self.server.get(f"/history/{waiting}")] else "kept"

    def started(self, queued: str) -> None:
        """Wait until a job runs, or is over already."""
        while not self.server.get(f"/history/{queued}"):
            if any(entry[1] == queued for entry in self.server.get("/queue")["queue_running"]):
                return
            time.sleep(0.01)

    def post(self, path: str, body: dict) -> None:
        requests.post(self.server.url + path, json=body, timeout=60).raise_for_status()

    # ---------------------------------------------------------------------------------- between jobs

    def rest(self, number: int, tries: int = TRIES) -> None:
        """Draw the reference, free the memory, and count."""
        drawn = self.reference()
        for _ in range(tries):
            self.free()
            counts = self.counts()
            if not self.rests or not changed(self.rests[0]["counts"], counts):
                break
            time.sleep(0.5)
        memory = resident(self.server.process.pid)
        self.rests.append({"after": number, "pictures": drawn, "counts": counts, "resident": memory})

    def reference(self) -> list[str]:
        """Hashes of the files of a plain picture of each model.

        They are sampled each time, because the last ones left the cache when the memory was freed.

        Raises:
            AssertionError: if they came from the cache.
        """
        entry = self.server.wait(self.server.queue(jobs.reference()))
        cached = dict(entry["status"]["messages"]).get("execution_cached", {}).get("nodes", [])
        if ended(entry)[0] != "success" or any(n.startswith(("sampler", "decode", *IMAGES)) for n in cached):
            raise AssertionError(f"the reference was not drawn: {ended(entry)}, from the cache: {cached}")
        files = [entry["outputs"][name]["images"][0]["filename"] for name in IMAGES]
        return [hashlib.sha256((self.server.base / "temp" / f).read_bytes()).hexdigest() for f in files]

    def free(self) -> None:
        """What the page's button for freeing memory asks for, and wait until it is done.

        ComfyUI does not see what is asked just before it begins to wait, so it is asked again.
        """
        before = self.server.get("/soak/freed")["collections"]
        for _ in range(60):
            self.post("/free", {"unload_models": True, "free_memory": True})
            for _ in range(20):
                now = self.server.get("/soak/freed")
                if not now["waiting"] and now["collections"] > before:
                    return
                time.sleep(0.05)
        raise RuntimeError("the server did not free its memory")

    def counts(self) -> dict:
        """The probe's figures, and the temporary files that neither the history nor a panel names."""
        found = self.server.get("/soak/count")
        named = set(filenames([self.server.get("/history"), self.server.get("/trace/live")]))
        kept = (p for p in (self.server.base / "temp").rglob("*") if p.is_file())
        return found | {"unnamed files": sorted(p.name for p in kept if p.name not in named)}


IMAGES = ("image", "image2")


def ended(entry: dict) -> tuple[str, str]:
    """How a job of the history ended, and why."""
    messages = dict(entry["status"]["messages"])
    if "execution_interrupted" in messages:
        return "interrupted", ""
    if "execution_error" in messages:
        return "error", messages["execution_error"]["exception_message"][:500]
    return entry["status"]["status_str"], ""


def filenames(found) -> list[str]:
    """Every ``filename`` in an answer of the server."""
    if isinstance(found, dict):
        own = [found["filename"]] if isinstance(found.get("filename"), str) else []
        return own + [name for value in found.values() for name in filenames(value)]
    return [name for value in found for name in filenames(value)] if isinstance(found, list) else []


def changed(before: dict, after: dict) -> dict[str, list]:
    """The figures of :data:`LEAKS` that differ: what came, and what went."""
    out = {}
    for name in (name for names in LEAKS.values() for name in names):
        if before[name] == after[name]:
            continue
        if isinstance(before[name], list):
            more, less = Counter(after[name]), Counter(before[name])
            out[name] = [sorted((more - less).elements()), sorted((less - more).elements())]
        else:
            out[name] = [before[name], after[name]]
    return out


def leaked(rests: list[dict]) -> dict[str, int]:
    """How many of each sort are there at the end that were not there at the first rest after all models were
    used; fewer are none.
    """
    first, last = rests[0]["counts"], rests[-1]["counts"]
    out = {}
    for row, names in LEAKS.items():
        out[row] = 0
        for name in names:
            if isinstance(first[name], list):
                out[row] += sum((Counter(last[name]) - Counter(first[name])).values())
            elif isinstance(first[name], str):
                out[row] += first[name] != last[name]
            else:
                out[row] += max(0, last[name] - first[name])
    return out


def memory(rests: list[dict]) -> dict:
    """Memory at the end against that after the first :data:`jobs.WARM` jobs, in MiB and in percent: all that
    is resident, and the part that the C library has given out.
    """
    warm = [r for r in rests if r["after"] >= jobs.WARM] or rests[-1:]
    out = {"first_after": warm[0]["after"], **grown("", [r["resident"] for r in warm])}
    if all("heap in use" in r["counts"] for r in warm):
        out |= grown("in_use_", [r["counts"]["heap in use"] for r in warm])
    return out


def grown(name: str, figures: list[int]) -> dict[str, float]:
    first, last = figures[0], figures[-1]
    return {
        f"{name}first_mib": round(first / 2**20, 1),
        f"{name}last_mib": round(last / 2**20, 1),
        f"{name}most_mib": round(max(figures) / 2**20, 1),
        f"{name}growth_percent": round(100 * (last / first - 1), 2),
    }


def pictures(rests: list[dict]) -> dict:
    """How many pictures of the base models were drawn with the same seed, and how many files differ."""
    different = sum(a != b for r in rests for a, b in zip(r["pictures"], rests[0]["pictures"]))
    return {"drawn": sum(len(r["pictures"]) for r in rests), "different": different}
