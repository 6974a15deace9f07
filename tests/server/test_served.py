"""What a running ComfyUI serves of the pack: the node contract, its words, the published files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_node_contract_is_unchanged(info, maker):
    """Ids, inputs, their order and defaults stand in people's workflows: change the snapshot only by
    adding to it.
    """
    assert maker.contract(info) == json.loads((ROOT / "tests" / "server" / "object_info.json").read_text())


#: Words that people type for what a node does; each must find it.
SEARCHED = {
    "TRACE_ClosedFormProjection": {"unlearn", "forget", "remove concept", "concept erasure", "UCE", "MACE"},
    "TRACE_LateStageFinetune": {"unlearn", "forget", "remove concept", "concept erasure", "ESD"},
    "TRACE_FuseErasureLoras": {"MACE", "unlearn"},
    "TRACE_ApplyErasureLora": {"load LoRA", "unlearn"},
    "TRACE_SaveErasureLora": {"save LoRA"},
    "TRACE_CompareErasure": {"before after"},
    "TRACE_ErasurePresets": {"artists", "unlearn"},
    "TRACE_LoadDemoModel": {"example model"},
    "TRACE_VerifyErasure": {"verdict", "model card"},
}
REPORTING = {
    "TRACE_ClosedFormProjection",
    "TRACE_LateStageFinetune",
    "TRACE_FuseErasureLoras",
    "TRACE_ApplyErasureLora",
}


def ours(info: dict) -> dict:
    return {name: spec for name, spec in info.items() if name.startswith("TRACE_")}


def test_nodes_are_found_by_what_people_search_for(info):
    if "search_aliases" not in info["TRACE_LoadDemoModel"]:
        pytest.skip("this ComfyUI has no search aliases")
    for name, spec in ours(info).items():
        assert SEARCHED[name] <= set(spec["search_aliases"]), name
        assert len(set(spec["search_aliases"])) == len(spec["search_aliases"]), name


def test_nodes_with_a_panel_say_so_to_the_cache(info):
    if "has_intermediate_output" not in info["TRACE_LoadDemoModel"]:
        pytest.skip("this ComfyUI sends no output of nodes that come from the cache")
    assert {name for name, spec in ours(info).items() if spec["has_intermediate_output"]} == REPORTING


def test_rarely_used_widgets_are_folded_away(info, harness):
    """And those that everybody needs are not."""
    for name, spec in ours(info).items():
        shown = [
            n
            for n, form, options in harness.inputs_of(spec)
            if harness.is_widget(form, options) and not options.get("advanced")
        ]
        assert len(shown) <= 7, name
        assert {"erase", "keep", "prompts", "strength", "objective", "preset", "kind", "seed"} & {
            n for n, *_ in harness.inputs_of(spec)
        } <= set(shown)


def test_pack_is_served(server, harness):
    templates = server.get("/workflow_templates")[harness.PACK]
    assert sorted(templates) == sorted(p.stem for p in (ROOT / "workflows").glob("*.json"))
    for name in templates:
        assert server.get(f"/api/workflow_templates/{harness.PACK}/{name}.json")["nodes"]
        assert (ROOT / "workflows" / f"{name}.jpg").stat().st_size < 60_000
    import requests

    for page in (ROOT / "web" / "docs").rglob("*.md"):
        url = f"{server.url}/extensions/{harness.PACK}/{page.relative_to(ROOT / 'web').as_posix()}"
        assert requests.get(url, timeout=10).text == page.read_text()


def test_translations_are_served(server):
    words = server.get("/i18n")
    assert words["zh"]["nodeDefs"]["TRACE_LoadDemoModel"]["display_name"] == "加载演示模型"
    assert words["ja"]["nodeDefs"]["TRACE_LoadDemoModel"]["display_name"] == "デモモデルを読み込む"
    assert set(words["en"]["nodeDefs"]) == set(words["zh"]["nodeDefs"])


def test_published_pack_loads_without_errors(server, harness):
    assert harness.PACK in server.log.read_text()
    failed = [line for line in server.log.read_text().splitlines() if "IMPORT FAILED" in line]
    assert not any(harness.PACK in line for line in failed)
