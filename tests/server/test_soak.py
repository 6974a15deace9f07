"""Some jobs of every sort in one server, and what they leave behind. ``benchmarks/soak.py`` runs many."""

from __future__ import annotations

import requests

import soak

JOBS = 14


def test_nothing_is_left_behind(start, tmp_path):
    """No adapter, hook, patch, thread, open or temporary file, no changed weight or picture; and the counts
    find each of these where one is left on purpose.
    """
    with start(tmp_path, variables=soak.install(tmp_path)) as server:
        running = soak.Soak(server, JOBS, seed=0, every=8)
        running.run()
        assert not running.unexpected
        assert soak.leaked(running.rests) == dict.fromkeys(soak.LEAKS, 0)
        assert not soak.changed(running.rests[0]["counts"], running.rests[-1]["counts"])
        assert soak.pictures(running.rests) == {"drawn": 6, "different": 0}
        requests.post(server.url + "/soak/plant", timeout=30).raise_for_status()
        running.rest(JOBS + 1, tries=1)
        assert all(soak.leaked(running.rests).values())
        assert soak.pictures(running.rests)["different"] == 1
