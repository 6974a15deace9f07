"""The pack on ComfyUI's page, in a headless browser."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

NAMES = sorted(p.stem for p in (Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))
SECONDS = float(os.environ.get("TRACE_SECONDS", 60))  #: from template to picture, on two free cores


@pytest.mark.stages("own-classic", "own-new", "newest-classic", "newest-new")
def test_quickstart_in_three_clicks_and_a_minute(play, stage):
    found = play("quickstart")
    assert found["clicks"] <= 3
    assert found["seconds"] <= SECONDS
    assert set(NAMES) <= set(found["listed"])
    assert len(found["shown"]["pairs"]) == 6
    assert found["untidy"] == {"covered": [], "twice": []}
    reports, new = found["reports"], stage[1]
    assert len(reports) == 2
    assert all(bool(report["markdown"]) == new for report in reports)
    if new:
        assert [report["heading"] for report in reports] == [
            "Erased in closed form: cat, kitty",
            "Before and after",
        ]


def test_panels_are_filled_from_the_cache(play):
    assert play("cached")["projected"]["report"].startswith("The median layer lost")


@pytest.mark.stages("own-classic", "own-new", "newest-new")
def test_help_page(play):
    assert play("help")["text"].startswith("Erases concepts from a model in seconds")


@pytest.mark.stages("own-new", "newest-new")
def test_rarely_used_widgets_are_folded(play):
    """Those of a node that came with other values than the defaults are not."""
    found = play("folded")
    assert {"objective", "preset", "seed"} <= set(found["made"])
    assert not {"steps", "rank", "lr", "window", "scope"} & set(found["made"])
    assert {"policy", "energy", "eta", "max_rank"} <= set(found["came"])
    assert {"steps", "rank", "lr", "window", "scope"} <= set(found["unfolded"])


#: Templates that other scenarios queue (`quickstart`, `training`, `applied`), and those that the server tier
#: alone queues: they train as long as `trace-full`, with the same nodes.
ELSEWHERE = ("quickstart", "trace-full", "apply-and-stack", "mace", "ant", "trce")


def test_each_template_loads_and_draws(play):
    facts = play("templates", queued=[name for name in NAMES if name not in ELSEWHERE])["facts"]
    assert sorted(facts) == NAMES
    for name, fact in facts.items():
        assert fact["nodes"] > 3, name
        assert fact["unknown"] == [], name
        if name not in ELSEWHERE:
            assert len(fact["shown"]["pairs"]) >= 4, name
            assert "0 after" in fact["shown"]["report"], name


@pytest.fixture(scope="module")
def trained(play) -> dict:
    return play("training")


@pytest.mark.stages("own-classic", "own-new")
def test_nothing_is_covered_or_shown_twice(trained):
    assert trained["untidy"] == {"covered": [], "twice": []}


@pytest.mark.stages("own-classic", "own-new")
def test_panel_before_a_run(trained):
    assert trained["before"]["state"] is None
    assert trained["before"]["window"] == "auto"


@pytest.mark.stages("own-classic", "own-new")
def test_progress_curves_and_previews(trained):
    running, done = trained["running"], trained["done"]
    assert running["curves"] >= 3
    assert "step" in running["phase"]
    assert 0 < running["bar"] < 1
    assert running["window"] != "auto"
    assert "it/s" in running["speed"] and "left" in running["speed"]
    assert [entry.split()[0] for entry in running["legend"]][:3] == ["erase", "keep", "uncond"]
    assert (done["bar"], done["points"], done["previews"], done["error"]) == (1, 12, 2, None)
    assert len(done["prompts"]) == 2
    assert done["report"].startswith("Trained 12 steps")


@pytest.mark.stages("own-classic", "own-new")
def test_reload_during_the_run(trained):
    """All points and the previews from before the reload are there again, and the run is followed to its
    end.
    """
    assert trained["restored"]["points"] >= trained["running"]["points"]
    assert trained["restored"]["state"] in ("running", "done")
    assert trained["restored"]["curves"] == trained["done"]["curves"]


@pytest.mark.stages("own-classic", "own-new")
def test_reload_after_the_run(trained):
    assert trained["again"]["report"] == trained["done"]["report"]
    assert trained["again"]["previews"] == 2
    assert trained["comparedAgain"]["pairs"] == trained["compared"]["pairs"]


@pytest.mark.stages("own-classic", "own-new")
def test_slider_by_keyboard_and_mouse(trained):
    slid = trained["slid"]
    assert (slid["start"], slid["key"]) == ("50%", "51%")
    assert abs(float(slid["drag"].rstrip("%")) - 25) <= 3
    assert (slid["first"], slid["next"]) == (0, 1)


@pytest.mark.stages("own-classic", "own-new")
def test_report_is_readable(trained):
    report = trained["compared"]
    assert "recognised in" in report["report"]
    assert "**" not in report["reportBody"] and "| ---" not in report["reportBody"]
    assert report["tables"] == 1


def test_cancelled(play):
    found = play("cancelled")
    for shown in (found["shown"], found["again"]):
        assert shown["state"] == "cancelled"
        assert shown["error"] is None
        assert shown["points"] >= 2


def test_failed(play):
    shown = play("failed")["shown"]
    assert shown["state"] == "failed"
    assert shown["error"]


def test_no_text_becomes_html(play):
    found = play("traps")
    assert found["trapped"] is None
    assert found["bold"] == 0
    assert found["caught"] == 2  # the fixture, which wants no error in any scenario, would have seen one
    assert found["compared"]["pairs"][1].startswith("<b>x</b>")
    assert "<b>x</b>" in found["projected"]["reportBody"]
    rendered = found["rendered"]
    assert rendered["images"] == 0
    assert rendered["cells"][1] == "x | y"
    assert all(rendered[key].startswith("<img") for key in ("heading", "code", "verdict", "option"))
    assert rendered["odd"] >= 1


@pytest.fixture(scope="module")
def grouped(play) -> dict:
    return play("subgraph")


@pytest.mark.stages("own-classic", "own-new")
def test_two_finetunes_one_in_a_subgraph(grouped):
    assert grouped["outside"]["points"] == grouped["inside"]["points"] == 3
    assert grouped["outside"]["legend"] != grouped["inside"]["legend"]  # of different seeds
    assert grouped["visible"] == 1


@pytest.mark.stages("own-classic", "own-new")
def test_state_follows_into_a_subgraph(grouped):
    """Of nodes that had run before they were moved, also after a reload."""
    before = grouped["outside"]
    for shown in (grouped["moved"], grouped["again"]):
        assert [shown[fact] for fact in ("points", "legend", "report")] == [
            before[fact] for fact in ("points", "legend", "report")
        ]
    assert grouped["movedProjection"]["report"]


@pytest.mark.stages("own-classic", "own-new")
def test_metadata_on_apply(play):
    shown = play("applied")["shown"]
    for text in ("cat, kitty", "projection", "sd1", "the whole sampling"):
        assert text in shown["metadata"]


def test_removed_node_takes_its_panel_along(play):
    assert play("removed")["left"] == 0


def test_names_in_another_language(play):
    found = play("translated")
    said = json.loads((Path(__file__).resolve().parents[2] / "locales" / "zh" / "nodeDefs.json").read_text())[
        "TRACE_LateStageFinetune"
    ]
    assert found["title"] == said["display_name"]
    names = [entry["name"] for entry in said["inputs"].values()]
    assert set(names) <= {*found["widgets"], *found["inputs"]}
    assert found["outputs"] == [entry["name"] for entry in said["outputs"].values()]
