"""The node pack as ComfyUI imports it: from its folder, under a module name of its own; no ComfyUI is
needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
import types
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NAME = "/somewhere/trace-0_x_1_x_pack"  # ComfyUI's name for custom_nodes/trace-0.1.pack
IDS = {
    "TRACE_ClosedFormProjection", "TRACE_LateStageFinetune", "TRACE_ApplyErasureLora",
    "TRACE_SaveErasureLora",
    "TRACE_CompareErasure", "TRACE_ErasurePresets", "TRACE_LoadDemoModel", "TRACE_FuseErasureLoras",
    "TRACE_VerifyErasure",
}  # fmt: skip


@pytest.fixture(scope="module")
def pack():
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    new = (
        getattr(sys.modules["nodes"], "__file__", None) or "" if "nodes" in set(sys.modules) - before else ""
    )
    assert not new.startswith(str(ROOT / "nodes")), "it would hide ComfyUI's nodes.py"
    yield module
    for name in [m for m in sys.modules if m == NAME or m.startswith(NAME + ".")]:
        del sys.modules[name]


@pytest.fixture
def part(pack):
    return lambda name: importlib.import_module(f"{NAME}.{name}")


@pytest.fixture
def hosted(part, monkeypatch):
    """What INPUT_TYPES asks ComfyUI for."""
    host = part("nodes.host")
    monkeypatch.setattr(host, "lora_names", lambda: ["a.safetensors"])
    monkeypatch.setattr(host, "sampler_names", lambda: ["euler"])
    monkeypatch.setattr(host, "scheduler_names", lambda: ["simple"])
    return host


def test_mappings(pack):
    assert set(pack.NODE_CLASS_MAPPINGS) == set(pack.NODE_DISPLAY_NAME_MAPPINGS) == IDS
    assert (ROOT / pack.WEB_DIRECTORY).is_dir()


@pytest.mark.parametrize("name", sorted(IDS))
def test_every_node_explains_itself(pack, hosted, name):
    node = pack.NODE_CLASS_MAPPINGS[name]
    assert node.CATEGORY == "TRACE"
    assert len(node.DESCRIPTION) > 40
    assert (
        len(node.OUTPUT_TOOLTIPS)
        == len(node.RETURN_TYPES)
        == len(getattr(node, "RETURN_NAMES", node.RETURN_TYPES))
    )
    assert all(node.OUTPUT_TOOLTIPS)
    assert callable(getattr(node, node.FUNCTION))
    groups = node.INPUT_TYPES()
    tooltips = vars(sys.modules[node.__module__])["TOOLTIPS"]
    assert set(tooltips) == {entry for inputs in groups.values() for entry in inputs}
    assert set(groups) <= {"required", "optional"}, "a hidden input would join the cache's key"
    for inputs in groups.values():
        for entry, (kind, options) in inputs.items():
            assert len(options["tooltip"]) > 15, entry
            if isinstance(kind, list):
                assert options["default"] in kind
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= options["default"] <= options["max"]


@pytest.mark.parametrize("name", sorted(IDS))
def test_every_input_is_a_parameter(pack, hosted, name):
    node = pack.NODE_CLASS_MAPPINGS[name]
    code = getattr(node, node.FUNCTION).__code__
    inputs = [entry for group in node.INPUT_TYPES().values() for entry in group]
    assert set(inputs) == set(code.co_varnames[1 : code.co_argcount])


@pytest.mark.parametrize("name", sorted(IDS))
def test_every_node_has_a_help_page(name):
    text = (ROOT / "web" / "docs" / f"{name}.md").read_text()
    assert text.startswith("# ")
    assert len(text) > 300


def test_metadata_survive_the_wire(part):
    wire, lora = part("nodes.wire"), part("trace_core.lora.erasure")
    shared = torch.ones(2, 3)
    erasure = lora.ErasureLora.from_factors(
        {f"diffusion_model.{m}": (torch.ones(4, 2), shared) for m in "ab"}
    )
    erasure.metadata["trace.method"] = '"x"'
    state = wire.LoraState(erasure)
    assert isinstance(state, dict)
    assert len({t.data_ptr() for t in state.values()}) == len(state), (
        "safetensors refuses tensors that share memory"
    )
    back = wire.erasure_of(state)
    assert back.metadata == erasure.metadata
    assert back.fingerprint == erasure.fingerprint
    assert wire.erasure_of(dict(state)).metadata == {}


def test_an_empty_wire_is_refused(part):
    with pytest.raises(part("trace_core.errors").LoraError, match="empty"):
        part("nodes.wire").erasure_of({})


@pytest.mark.parametrize("losses", [[], [1.0], [2.0, 2.0], [0.0], [1.0, 0.5]])
def test_the_stock_graph_can_draw_the_losses(part, losses):
    history = [{"step": i, "erase": v, "keep": 0.0} for i, v in enumerate(losses)]
    values = part("nodes.wire").loss_map(history, {"erase": 2.0})["loss"]
    assert max(values) > min(values)
    assert values[: len(losses)] == [2 * v for v in losses]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("erased-%concepts%", "erased-cat+Van-Gogh"),
        ("a/b/%method%.safetensors", "a/b/trace"),
        ("a\\b", "a/b"),
        ("%year%", "%year%"),
    ],
)
def test_file_names(pack, name, wanted):
    save = pack.NODE_CLASS_MAPPINGS["TRACE_SaveErasureLora"]
    assert save.pattern(name, ["cat", "Van Gogh/../.."[:8]], "trace") == wanted


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../a",
        "a/../../b",
        "/a",
        "a//b",
        "C:\\a",
        "C:a",
        "a/",
        "..",
        ".",
        "a\0",
        "a:b",
        "x" * 300,
        "\\\\h\\s",
    ],
)
def test_file_names_stay_inside(pack, part, name):
    with pytest.raises(part("trace_core.errors").LoraError):
        pack.NODE_CLASS_MAPPINGS["TRACE_SaveErasureLora"].pattern(name, [], "trace")


def test_a_concept_cannot_lead_out(pack):
    save = pack.NODE_CLASS_MAPPINGS["TRACE_SaveErasureLora"]
    assert "/" not in save.pattern("%concepts%", ["../../etc/passwd", "a/b"], "..")


def test_a_saved_file_never_takes_the_place_of_another(part, tmp_path, monkeypatch):
    """Not even where ComfyUI's count misses a file, as one whose name ends otherwise, or a link to
    nowhere.
    """
    folders = types.ModuleType("folder_paths")
    folders.get_save_image_path = lambda pattern, folder: (str(tmp_path), pattern, 1, "", "")
    monkeypatch.setitem(sys.modules, "folder_paths", folders)
    (tmp_path / "cat_00001_.safetensors").write_text("mine")
    (tmp_path / "cat_00002_.safetensors").symlink_to("nowhere")
    assert (
        part("nodes.host").numbered_path(tmp_path, "cat", ".safetensors")
        == tmp_path / "cat_00003_.safetensors"
    )


@pytest.mark.parametrize(
    "preset", ["artist", "person", "object", "explicit", "trademark", "demo objects", "demo styles"]
)
def test_presets_parse(pack, part, preset):
    node, concepts = pack.NODE_CLASS_MAPPINGS["TRACE_ErasurePresets"](), part("trace_core.text.grammar")
    erase, keep = node.lists(preset, "", "a blue house")
    erased = concepts.parse_concepts(erase)
    kept = concepts.parse_keep(keep)
    part("trace_core.text.concepts").check_disjoint(erased, kept)
    assert "a blue house" in kept
    one, rest = node.lists(preset, erased[0].target, "")
    assert concepts.parse_concepts(one) == erased[:1]
    assert not preset.startswith(("artist", "object")) or erased[1].target in concepts.parse_keep(rest)


def test_trained_twice_is_refused(part):
    finetune, lora, errors = (
        part("nodes.finetune"),
        part("trace_core.lora.erasure"),
        part("trace_core.errors"),
    )
    erasure = lora.ErasureLora.from_factors({"diffusion_model.a": (torch.ones(4, 2), torch.ones(2, 3))})
    record = {part("trace_core.lora.gating").RECORD: ({"fingerprint": erasure.fingerprint},)}
    model = type("Model", (), {"model_options": record})()
    with pytest.raises(errors.LoraError, match="loader's"):
        finetune.refuse_doubled(model, erasure)
    finetune.refuse_doubled(model, None)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a <img src=http://x/y> b", r"a \<img src=http://x/y> b"),
        (r"a \<b>", r"a \\\<b>"),  # a backslash of its own must not free the sign behind it
        ("![x](http://x/y) [a][b]", r"![x\](http://x/y) [a\][b]"),
        ("cat | dog -> bird @ 0.5", "cat | dog -> bird @ 0.5"),
        (r"C:\cats", r"C:\cats"),
    ],
)
def test_names_in_reports_are_text(part, name, written):
    report = part("nodes.reports").escaped(lambda told: f"# Erased: {told}")
    assert report(name) == f"# Erased: {written}"


def test_reports_escape_what_they_name(part):
    """Also a name that came from a file, and one in a warning."""
    reports = part("nodes.reports")
    judged = [{"concept": "<b>x</b>", "before": 1, "after": 0, "pictures": 1}]
    drift = {"samples": 1, "latent_mse": 0.1, "psnr": 20.0}
    text = reports.compare([{"name": "<i>", "drift": drift}], judged, "settings")
    assert "<" not in text.replace(r"\<", "")
    assert all(
        hasattr(getattr(reports, kind), "__wrapped__")
        for kind in ("closed_form", "finetune", "fusion", "compare")
    )


def test_advanced_inputs_are_real_ones(pack, hosted):
    for node in pack.NODE_CLASS_MAPPINGS.values():
        named = set(getattr(node, "ADVANCED", ()))
        inputs = {name: spec for group in node.INPUT_TYPES().values() for name, spec in group.items()}
        assert {name for name, spec in inputs.items() if spec[1].get("advanced")} == named


def test_english_is_what_the_nodes_say(pack, hosted):
    """Written by ``make workflows``."""
    said = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text())
    assert set(said) == IDS
    for name, node in pack.NODE_CLASS_MAPPINGS.items():
        inputs = {
            entry: given[1]["tooltip"]
            for group in node.INPUT_TYPES().values()
            for entry, given in group.items()
        }
        assert {entry: v["tooltip"] for entry, v in said[name]["inputs"].items()} == inputs
        assert [v["tooltip"] for v in said[name]["outputs"].values()] == list(node.OUTPUT_TOOLTIPS)
        assert (said[name]["display_name"], said[name]["description"]) == (node.TITLE, node.DESCRIPTION)


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_translations_are_complete(language):
    english, said = (
        json.loads((ROOT / "locales" / lang / "nodeDefs.json").read_text()) for lang in ("en", language)
    )
    assert set(said) == set(english)
    for name, node in english.items():
        for part in ("inputs", "outputs"):
            assert list(said[name][part]) == list(node[part])
            assert all(
                v["tooltip"] and v["tooltip"] != node[part][k]["tooltip"] for k, v in said[name][part].items()
            )
        # an output that is called as its type is takes the page's word for the type
        assert all(v["name"] for v in said[name]["inputs"].values())
        assert all(
            v.get("name") or node["outputs"][k]["name"].isupper() for k, v in said[name]["outputs"].items()
        )
        assert said[name]["display_name"] != node["display_name"]


def test_help_pages_explain_every_choice(part):
    """Of the inputs whose tooltip does not list the choices."""
    page = (ROOT / "web" / "docs" / "TRACE_LateStageFinetune.md").read_text()
    scopes, objectives = (
        part("trace_core.backbones.base").SCOPES,
        part("trace_core.finetune.objectives").OBJECTIVES,
    )
    for choice in (*scopes, *objectives):
        assert f"`{choice}`" in page


def test_help_pages_have_no_dead_pictures():
    for page in (ROOT / "web" / "docs").rglob("*.md"):
        found = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())
        assert found, page.name
        for target in found:
            assert (page.parent / target).is_file(), f"{page.name}: {target}"


def test_a_hardened_erasure_says_what_it_holds_and_costs(part):
    lora = part("trace_core.lora").ErasureLora.from_factors({"a": (torch.ones(4, 2), torch.ones(2, 3))})
    price = {"directions": 3, "share": 0.85, "keep_change": {"plain": 0.05, "robust": 0.21}, "seconds": 1.25}
    report = {
        "concepts": [{"target": "cat", "anchor": ""}],
        "solver": "projection",
        "parameters": {"strength": 1.0, "robust": 2},
        "method": "projection",
        "model": "SDXL",
        "certificates": {"context": 0.87, "pooled": 0.9},
        "layers": {"a": {"residual": 1.4, "keep_change": 0.2}},  # of one layer, which says nothing here
        "solved": {"context": {"rank": 4, "robust": price}},
        "keep": [],
        "warnings": [],
    }
    text = part("nodes.reports").closed_form(report, lora)
    assert "No text row brings back 87 % of what tells the concept" in text and "lost at least" not in text
    assert "| context | 3, 85 % | 5.00 % → 21.00 % | 1.2 s |" in text


def test_side_effects_stand_in_the_report(part):
    """Short, and what is in no prompt of the text encoder's length is left out."""
    lora = part("trace_core.lora").ErasureLora.from_factors(
        {"diffusion_model.a": (torch.ones(4, 2), torch.ones(2, 3))}
    )
    words = {"gogh": -0.7, "van": 0.43, "boat": 0.9}
    report = {
        "concepts": [{"target": "Van Gogh", "anchor": ""}],
        "solver": "projection",
        "parameters": {"strength": 1.0},
        "method": "trace",
        "model": "SDXL",
        "certificates": {"context": 0.25},
        "layers": {"a": {"residual": 0.1, "keep_change": 0.2}},
        "keep": ["boat"],
        "contrast": {"Van Gogh": ["van"]},
        "warnings": ["look out"],
        "side_effects": {"Van Gogh": {"short": 0.1, "long": None, "weighted": 0.26, "words": words}},
    }
    reports = part("nodes.reports")
    text = reports.closed_form(report, lora)
    assert text.index("look out") < text.index("## Side effects") < text.index("## Limits")
    assert (
        "| Van Gogh in a short prompt | 10 % |" in text
        and "| Van Gogh in (Van Gogh:1.3) | 26 % |" in text
        and "20 words" not in text
    )
    assert "| 'van', a thing by itself and kept as one | 43 % |" in text and "| 'boat', kept | 90 % |" in text
    assert "| 'gogh', shares tokens with Van Gogh | 0 % |" in text
    assert "## Side effects" not in reports.closed_form({**report, "side_effects": {}}, lora)


@pytest.mark.parametrize("state", ["cancelled", "failed", "done", "running"])
def test_previews_that_nothing_names_are_removed(part, monkeypatch, tmp_path, state):
    """A run that was cancelled or failed has no output. Its previews go when its last event is forgotten."""
    live = part("nodes.live")
    monkeypatch.setattr(part("nodes.host"), "temp_directory", lambda: tmp_path)
    monkeypatch.setattr(live, "_last_events", OrderedDict())
    event = {"node": "7", "state": state, "previews": []}
    for by_another_run in (True, False):
        picture = live.save_temporary(Image.new("RGB", (8, 8)))
        live.remember(event | {"previews": [picture]})
        assert (tmp_path / "trace" / picture["filename"]).exists(), "a panel shows it"
        others = ["7"] if by_another_run else range(8, 8 + live.REMEMBERED_NODES)
        for node in others:
            live.remember({"node": node, "state": "running", "previews": []})
        kept = state in ("done", "running")
        assert (tmp_path / "trace" / picture["filename"]).exists() == kept
    picture_is_gone = event | {"state": "failed", "previews": [picture]}
    live.remove_previews(picture_is_gone)  # nothing is raised
