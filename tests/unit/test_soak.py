"""The soak's jobs and figures; ``tests/server/test_soak.py`` runs some."""

from __future__ import annotations

from collections import Counter

import pytest

import soak
from soak import jobs


def made(count: int, seed: int = 0) -> list[jobs.Job]:
    random = jobs.Dealer(seed)
    return [jobs.MAKERS[kind](random) for kind in jobs.drawn(count, random)]


def values(found: list[jobs.Job], name: str) -> set:
    return {node["inputs"][name] for job in found for node in job.prompt.values() if name in node["inputs"]}


def test_jobs_follow_from_the_seed():
    assert made(200) == made(200) != made(200, 1)
    assert Counter(job.kind for job in made(200)) == jobs.SHARES
    assert sum(jobs.SHARES.values()) == 200


@pytest.mark.parametrize("count", [11, 15, 24, 60, 200])
def test_every_sort_comes(count):
    assert {job.kind for job in made(count)} == set(jobs.SHARES)
    assert len(made(count)) == count


@pytest.mark.parametrize("seed", range(5))
def test_first_jobs_use_everything(seed):
    """So that memory after them can be compared with memory at the end."""
    ended = [job for job in made(200, seed)[: jobs.WARM] if job.ends == ("success",)]
    assert values(ended, "objective") == set(jobs.OBJECTIVES)
    assert values(ended, "policy") == set(jobs.POLICIES)
    assert {job.kind for job in made(200, seed)[: jobs.WARM]} == set(jobs.SHARES)


def rest(after: int, mib: int, **counts) -> dict:
    same = {name: 0 for names in soak.LEAKS.values() for name in names}
    return {"after": after, "resident": mib * 2**20, "counts": same | counts, "pictures": ["a", "b"]}


def test_what_is_counted():
    before = rest(0, 90, adapters=0, threads=["a"], hooks=3, weights="x")
    after = rest(200, 103, adapters=2, threads=["a", "b"], hooks=1, weights="y")
    assert soak.changed(before["counts"], after["counts"]) == {
        "adapters": [0, 2],
        "hooks": [3, 1],
        "threads": [["b"], []],
        "weights": ["x", "y"],
    }
    found = soak.leaked([before, after])
    assert found == dict.fromkeys(soak.LEAKS, 0) | {"adapters": 2, "threads": 1, "base weights": 1}


def test_memory_is_compared_with_that_after_the_first_jobs():
    found = soak.memory([rest(0, 50), rest(10, 80), rest(20, 100), rest(30, 120), rest(40, 103)])
    assert found == {
        "first_after": 20,
        "first_mib": 100.0,
        "last_mib": 103.0,
        "most_mib": 120.0,
        "growth_percent": 3.0,
    }


def test_pictures_are_compared_with_the_first():
    rests = [rest(0, 1), rest(1, 1) | {"pictures": ["a", "c"]}]
    assert soak.pictures(rests) == {"drawn": 4, "different": 1}


def test_files_that_an_answer_names():
    answer = {"a": [{"filename": "x.png", "inner": {"filename": "y.png"}}], "b": 3, "filename": None}
    assert soak.filenames(answer) == ["x.png", "y.png"]
