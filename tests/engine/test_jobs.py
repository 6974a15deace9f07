"""Many concepts in several processes give the same file as one process, whatever is killed on the way."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from engine_cases import least_work
from trace_core.cli import jobs, main, training
from trace_core.cli.workers import START, PartMaker, as_event
from trace_core.errors import TraceError
from trace_core.lora import ErasureLora
from trace_core.methods import Eraser

pytestmark = pytest.mark.once

NAMES = (
    "cat",
    "dog",
    "car",
    "tree",
    "house",
    "rocket",
    "apple",
    "pizza",
)


@pytest.fixture(scope="module", autouse=True)
def tiny_work(engine):
    """The command line has no options to make a finetune this small; its processes are told by the first
    one.
    """
    with least_work():
        yield


def command(out: Path, names=NAMES, *more: str, keep=("sun",)) -> list[str]:
    listed = out.parent / "list.txt"
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("\n".join(names))
    kept = [word for k in keep for word in ("--keep", k)]
    return [
        "erase",
        "--model",
        "demo-sd",
        "--erase-file",
        str(listed),
        *kept,
        "--method",
        "esd",
        "--out",
        str(out),
        *more,
    ]


@pytest.fixture(scope="module")
def expected(tiny_work, tmp_path_factory) -> bytes:
    """Of the concepts, in this process."""
    out = tmp_path_factory.mktemp("apart") / "all.safetensors"
    assert main(command(out, NAMES, "--apart")) == 0
    assert len(ErasureLora.load(out).parts()) == len(NAMES)
    return out.read_bytes()


def finished(out: Path) -> dict[str, int]:
    """Names of the finished parts, and when they were written."""
    return {f.name: f.stat().st_mtime_ns for f in Path(f"{out}.parts").glob("[0-9]*.safetensors")}


class Killer(threading.Thread):
    """Kills one of the processes, at random, once so many parts are there."""

    def __init__(self, out: Path, parts: int, victims):
        super().__init__(daemon=True)
        self.out, self.parts, self.victims, self.killed = out, parts, victims, None
        self.start()

    def run(self):
        while len(finished(self.out)) < self.parts:
            time.sleep(0.02)
        self.killed = random.choice(self.victims())
        os.kill(self.killed, signal.SIGKILL)


def workers() -> list[int]:
    return [p.pid for p in psutil.Process().children() if "--multiprocessing-fork" in " ".join(p.cmdline())]


def test_two_workers_of_which_one_is_killed_write_the_same_file(expected, tmp_path, capsys):
    out = tmp_path / "all.safetensors"
    killer = Killer(out, random.randrange(1, 5), workers)
    assert main(command(out, NAMES, "--jobs", "2")) == 0
    assert killer.killed and "killed by signal 9" in capsys.readouterr().err
    assert out.read_bytes() == expected
    assert sorted(f.name for f in tmp_path.iterdir()) == ["all.safetensors", "list.txt"] and not workers()


@pytest.fixture
def ctrl_c():
    """Ctrl-C as at a terminal: a shell makes what it starts with ``&`` ignore it, and Python leaves that
    so.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_one_worker_goes_on_after_the_whole_command_was_killed(expected, ctrl_c, tmp_path, capsys):
    out = tmp_path / "all.safetensors"
    arguments = command(out, NAMES, "--jobs", "1")
    child = os.fork()  # cheaper than a new interpreter; it only starts a worker and waits
    if not child:
        os._exit(main(arguments))
    while len(finished(out)) < 2:
        time.sleep(0.02)
    orphans = psutil.Process(child).children(recursive=True)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not psutil.wait_procs(orphans, timeout=60)[1], "workers live on without the command"
    before = finished(out)
    assert main([*arguments[:-1], "2", "--seed", "1"]) == 2
    assert "another job is in" in (error := capsys.readouterr().err) and "seed was 0 and is 1" in error
    seen: dict[str, int] = {}

    def interrupt():
        while len(finished(out)) < 4:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert main(arguments) == 130
    printed = capsys.readouterr()
    assert f"continuing: {len(before)} of 8 concepts are finished" in printed.out
    seen = finished(out)
    assert f"stopped; {len(seen)} of 8 concepts are in" in printed.err and not workers()
    assert before.items() <= seen.items(), "a finished concept was made again"
    assert main(arguments) == 0
    assert f"continuing: {len(seen)} of 8" in capsys.readouterr().out
    assert out.read_bytes() == expected and not Path(f"{out}.parts").exists()


def test_ray_workers_of_which_one_is_killed_write_the_same_file(expected, tmp_path, capsys, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed (pip install ray)")
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # Ray's sockets have no room for a long path
    monkeypatch.setenv("RAY_TMPDIR", folder)
    # by default, 15: beside anything else the test would wait for ever
    monkeypatch.setenv("RAY_worker_niceness", "0")
    out = tmp_path / "all.safetensors"

    def actors() -> list[int]:
        return [
            p.pid
            for p in psutil.Process().children(recursive=True)
            if "ray::RayPartMaker" in " ".join(p.cmdline())
        ]

    killer = Killer(out, random.randrange(1, 5), actors)
    assert main(command(out, NAMES, "--jobs", "2", "--ray", "local")) == 0
    assert killer.killed and "was lost" in capsys.readouterr().err
    assert out.read_bytes() == expected
    shutil.rmtree(folder, ignore_errors=True)


class Inline:
    """A worker that is no process: its events come when somebody listens."""

    number = 1

    def __init__(self, setup):
        self.setup, self.says, self.asked = setup, [], []

    def hire(self, number):
        self.maker = PartMaker(self.setup)
        self.says.append(("ready",))
        return self

    def give(self, number, start):
        self.asked.append(number)
        self.says.append(as_event(lambda: ("done", self.maker.work(number, start, lambda *_: None))))

    def listen(self, timeout):
        says, self.says = self.says, []
        return [(self, event) for event in says]

    def fire(self, worker):
        pass

    def close(self):
        pass


@pytest.fixture
def inline(monkeypatch):
    pools = []
    monkeypatch.setattr(jobs, "pool_for", lambda setup, *_: pools.append(Inline(setup)) or pools[-1])
    return pools


@pytest.mark.parametrize("method", ["mace", "trace", "projection"])
def test_every_method_gives_the_same_file(method, inline, tmp_path, monkeypatch):
    if method == "projection":
        monkeypatch.setattr(training, "options", lambda args, method: {})
    paths = [tmp_path / name / "all.safetensors" for name in ("jobs", "apart")]
    for path, options in zip(paths, (["--jobs", "1"], ["--apart"])):
        assert main([*command(path, ["cat -> dog", "tree"]), "--method", method, *options]) == 0
    assert inline[0].asked == [START, 1, 2]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_concept_alone_is_its_own_file(inline, tmp_path):
    paths = [tmp_path / name / "all.safetensors" for name in ("jobs", "plain")]
    for path, options in zip(paths, (["--jobs", "3"], [])):
        assert main([*command(path, ["cat"]), *options]) == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_concept_that_the_model_cannot_read_is_named_at_once_and_can_be_corrected(inline, tmp_path, capsys):
    out = tmp_path / "all.safetensors"
    assert main(command(out, ["cat", "q z " * 30], "--jobs", "1")) == 2
    assert "does not fit into one prompt" in capsys.readouterr().err
    assert not finished(out) and not out.exists() and inline[0].asked == [START]
    assert main(command(out, ["cat", "tree"], "--jobs", "1")) == 0


def test_a_concept_that_cannot_be_trained_is_named_and_the_others_stay(inline, tmp_path, capsys, monkeypatch):
    whole = Eraser.fit_part

    def part(self, model, clip, concept, *rest, **hooks):
        if concept.target == "dog":
            raise TraceError("the loss is nan at step 1; lower the learning rate")
        return whole(self, model, clip, concept, *rest, **hooks)

    monkeypatch.setattr(Eraser, "fit_part", part)
    out = tmp_path / "all.safetensors"
    assert main(command(out, ["cat", "dog", "tree"], "--jobs", "1")) == 2
    assert "1 of 3 concepts could not be erased. 'dog': the loss is nan" in capsys.readouterr().err
    assert sorted(finished(out)) == ["01-cat.safetensors", "03-tree.safetensors"] and not out.exists()
