"""Many concepts in several processes: who gets what when workers are lost, and whose folder it is. No
process is started.
"""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from trace_core.cli import jobs
from trace_core.cli.folder import Folder, difference
from trace_core.cli.jobs import RETRIES, Display, Foreman
from trace_core.cli.ray_workers import RayPool
from trace_core.cli.workers import START, Setup, throttled
from trace_core.errors import TraceError
from trace_core.lora import ErasureLora
from trace_core.methods import METHODS, Eraser
from trace_core.text.concepts import Concept

CONCEPTS = tuple(Concept(name) for name in ("cat", "van Gogh", "tree", "🐱"))
SETUP = Setup("demo-sd", "trace", CONCEPTS, ("dog",), {"eta": 0.0}, {"steps": 3, "window": (0.2, 1.0)}, 7, 1)


class Worker:
    """A number, what it will say, and ``give``."""


class Pool:
    """Workers that answer at once: ``fate(number, how often it was asked)`` is the event, by default
    ``done``.
    """

    def __init__(self, fate=lambda number, time: None, ready=("ready",)):
        self.fate, self.ready, self.workers, self.asked = fate, ready, [], []

    def hire(self, number):
        worker = Worker()
        worker.number, worker.says = number, [self.ready]
        worker.give = lambda task, start: self._ask(worker, task, start)
        self.workers.append(worker)
        return worker

    def _ask(self, worker, task, start):
        self.asked.append((task, start))
        times = [t for t, _ in self.asked].count(task)
        worker.says += [("step", "train", 1, 2), self.fate(task, times) or ("done", b"%d" % task)]

    def fire(self, worker):
        self.workers.remove(worker)

    def listen(self, timeout):
        return [(w, w.says.pop(0)) for w in self.workers if w.says]


def work(pool, todo=(START, 1, 2, 3, 4), workers=2, **options):
    written = {}
    foreman = Foreman(pool, workers, written.__setitem__, Display(CONCEPTS, 0, workers))
    foreman.run(todo, **options)
    return written, foreman


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_every_concept_is_made_once(workers):
    pool = Pool()
    written, foreman = work(pool, workers=workers)
    assert written == {n: b"%d" % n for n in (0, 1, 2, 3, 4)} and not foreman.lost
    assert sorted(t for t, _ in pool.asked) == [0, 1, 2, 3, 4] and foreman.hired <= workers


def test_what_parts_share_comes_first_and_goes_to_all():
    pool = Pool()
    work(pool, workers=4, shared=True)
    assert pool.asked[0] == (START, None) and all(start == b"0" for _, start in pool.asked[1:])


def test_a_lost_worker_costs_its_concept_only(capsys):
    pool = Pool(lambda number, time: ("lost", "killed by signal 9") if (number, time) == (2, 1) else None)
    written, foreman = work(pool)
    assert len(written) == 5 and not foreman.lost
    assert sorted(t for t, _ in pool.asked) == [0, 1, 2, 2, 3, 4] and foreman.hired == 3
    assert "lost at 'van Gogh' (killed by signal 9)" in capsys.readouterr().err


def test_a_worker_that_is_lost_before_it_begins_is_replaced(capsys):
    pool = Pool(ready=("lost", "killed by signal 9"))
    hire = pool.hire

    def one_bad(number):
        worker, pool.ready = hire(number), ("ready",)
        return worker

    pool.hire = one_bad
    written, foreman = work(pool)
    assert len(written) == 5 and not foreman.lost
    assert "worker 1 was lost (killed by signal 9)" in capsys.readouterr().err


def test_a_concept_that_loses_every_worker_is_named_and_the_rest_is_made():
    pool = Pool(lambda number, time: ("lost", "killed by signal 9") if number == 2 else None)
    written, foreman = work(pool)
    assert set(written) == {0, 1, 3, 4} and [t for t, _ in pool.asked].count(2) == 1 + RETRIES
    assert foreman.lost[0].number == 2 and "4 times (killed by signal 9)" in foreman.lost[0].reason


def test_the_users_error_is_not_tried_again():
    pool = Pool(lambda number, time: ("refused", "the loss is nan") if number == 3 else None)
    written, foreman = work(pool)
    assert set(written) == {0, 1, 2, 4} and [t for t, _ in pool.asked].count(3) == 1
    assert (foreman.lost[0].number, foreman.lost[0].reason) == (3, "the loss is nan")


@pytest.mark.parametrize("case", ["no model", "no memory", "bad concept", "bug"])
def test_what_nothing_can_come_of_ends_it_at_once(case):
    pool, error, message = {
        "no model": (Pool(ready=("refused", "no such file")), TraceError, "no such file"),
        "no memory": (Pool(ready=("lost", "out of memory")), TraceError, "Use fewer --jobs"),
        "bad concept": (
            Pool(lambda n, t: ("refused", "'q' does not fit") if n == START else None),
            TraceError,
            "'q' does not fit",
        ),
        "bug": (
            Pool(lambda n, t: ("failed", "KeyError: 'x'") if n == 2 else None),
            RuntimeError,
            "at 'van Gogh':\nKeyError",
        ),
    }[case]
    with pytest.raises(error, match=message):
        work(pool)


def part(path, value=1.0):
    ErasureLora.from_factors({"diffusion_model.a": (torch.full((2, 1), value), torch.ones(1, 3))}).save(path)


def test_a_folder_knows_its_job_and_what_is_finished(tmp_path):
    folder = Folder(tmp_path / "all.safetensors", SETUP)
    folder.open()
    assert [f.name for f in folder.files][1:3] == ["01-cat.safetensors", "02-van-gogh.safetensors"]
    part(folder.files[2])
    folder.files[3].write_bytes(b"half a file")
    again = Folder(tmp_path / "all.safetensors", SETUP)
    again.open()
    assert [again.read(n) is not None for n in range(5)] == [False, False, True, False, False]
    again.remove()
    assert not list(tmp_path.iterdir())


OTHERS = {
    "steps": (replace(SETUP, finetune={"steps": 4, "window": (0.2, 1.0)}), "finetune, steps was 3 and is 4"),
    "default": (replace(SETUP, closed_form={}), "closed form, eta was 0.0 and is the default"),
    "method": (replace(SETUP, method="esd"), 'method was "trace" and is "esd"'),
    "anchor": (
        replace(SETUP, concepts=(Concept("cat", "dog"), *CONCEPTS[1:])),
        'concepts, number 1, anchor was "" and is "dog"',
    ),
    "fewer": (replace(SETUP, concepts=CONCEPTS[:3]), "concepts had 4 entries and has 3"),
    "model": (replace(SETUP, model="/there/a.safetensors", size=9), 'model was "demo-sd"'),
    "seed": (replace(SETUP, seed=8), "seed was 7 and is 8"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_job_is_refused_by_name(name, tmp_path):
    other, message = OTHERS[name]
    mine = Folder(tmp_path / "x.safetensors", SETUP)
    mine.open()
    Folder(tmp_path / "x.safetensors", other).open()  # nothing is lost yet
    mine.open()
    part(mine.files[1])
    with pytest.raises(
        TraceError, match="another job is in .*choose another --out, or remove the folder"
    ) as caught:
        Folder(tmp_path / "x.safetensors", other).open()
    assert message in str(caught.value)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    out, strange = tmp_path / "x.safetensors", tmp_path / "x.safetensors.parts"
    strange.mkdir()
    (strange / "diary.txt").write_text("mine")
    with pytest.raises(TraceError, match="contains 'diary.txt' and no job.json"):
        Folder(out, SETUP).open()
    (strange / "job.json").write_text("[")
    part(strange / "01-cat.safetensors")
    with pytest.raises(TraceError, match="cannot read"):
        Folder(out, SETUP).open()
    Folder(out, SETUP).remove()
    assert (strange / "diary.txt").read_text() == "mine"


def test_equal_jobs_have_no_difference():
    assert difference(json.loads('{"a": [1, {"b": null}]}'), {"a": [1, {"b": None}]}) == ""


BAD = {
    "no workers": (dict(ray="auto"), "--ray needs --jobs"),
    "none": (dict(jobs=0), "--jobs is 0"),
    "together": (dict(jobs=2, together=True), "leave one out"),
    "state": (dict(jobs=1, resume="x"), "--resume keeps the state of one training"),
    "apart": (dict(apart=True, resume="x"), "--resume keeps the state of one training"),
}


@pytest.mark.parametrize("name", BAD)
def test_options_that_do_not_go_together(name):
    options, message = BAD[name]
    args = SimpleNamespace(
        **{"jobs": None, "ray": None, "apart": False, "together": False, "resume": None, **options}
    )
    with pytest.raises(TraceError, match=message):
        jobs.check(args, METHODS["trace"], CONCEPTS)


def test_a_method_is_apart_by_default_by_itself_or_by_request():
    args = dict(jobs=None, ray=None, apart=False, together=False, resume="x")
    assert jobs.check(SimpleNamespace(**args), METHODS["trace"], CONCEPTS) is None
    assert jobs.check(SimpleNamespace(**{**args, "together": True}), METHODS["mace"], CONCEPTS) is False
    with pytest.raises(TraceError, match="--resume"):
        jobs.check(SimpleNamespace(**args), METHODS["mace"], CONCEPTS)


def test_ray_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(TraceError, match="pip install ray"):
        RayPool(SETUP, "auto", 2)


def test_a_worker_does_not_speak_all_the_time():
    heard = []
    tell = throttled(lambda *where: heard.append(where))
    for i in range(1000):
        tell(i)
    assert heard[0] == (0,) and len(heard) < 10


def test_one_training_state_is_not_handed_to_several_concepts():
    with pytest.raises(TraceError, match="resume each concept in a run of its own"):
        Eraser("mace").fit(None, None, "cat; dog", checkpoint=print)
