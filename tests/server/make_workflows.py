"""Write ``workflows/*.json``, their thumbnails, ``object_info.json`` and ``locales/en``: ``make_workflows.py
[--texts] [NAME ...]``.

The graphs are written down in ``workflow_templates.py``. Where nodes stand, their sizes and the order of
their widgets follow from what a real server says of its nodes. Every workflow is run, and its thumbnail is
the grid that it draws; with ``--texts`` none is. What is written is the same with every ComfyUI that the pack
supports.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))  # for the graphs beside this file, which the tests load by its path
from workflow_graph import Graph  # noqa: E402
from workflow_templates import GRAPHS  # noqa: E402

WORKFLOWS = HERE.parents[1] / "workflows"
LOCALE = HERE.parents[1] / "locales" / "en" / "nodeDefs.json"
HELP = HERE.parents[1] / "web" / "docs" / "images"
THUMBNAIL = (480, 320)


def _harness():
    spec = importlib.util.spec_from_file_location("workflow_harness", HERE / "harness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


#: Which template's grid stands on which help page.
PICTURES = {
    "quickstart": "TRACE_ClosedFormProjection",
    "trace-full": "TRACE_LateStageFinetune",
    "apply-and-stack": "TRACE_ApplyErasureLora",
    "fuse": "TRACE_FuseErasureLoras",
    "merge-into-checkpoint": "TRACE_SaveErasureLora",
    "style": "TRACE_CompareErasure",
    "several-concepts": "TRACE_ErasurePresets",
    "flux": "TRACE_LoadDemoModel",
}


def build(name: str, info: dict, harness) -> dict:
    """A workflow of ``GRAPHS`` in UI format."""
    graph = Graph(info, harness)
    GRAPHS[name](graph)
    return graph.workflow()


#: What newer versions of ComfyUI say of every node.
NEWER = ("is_input_list", "search_aliases", "has_intermediate_output")


def contract(info: dict) -> dict:
    """What other people's workflows rely on: our nodes' inputs and outputs in order, less what differs by
    machine and version.
    """
    out = {}
    for name in sorted(n for n in info if n.startswith("TRACE_")):
        spec = json.loads(json.dumps(info[name]))
        for group in spec["input"].values():
            for entry, (kind, *_) in group.items():
                if entry in ("lora_file", "sampler_name", "scheduler"):
                    del kind[1:]
        for key in ("python_module", *NEWER):
            spec.pop(key, None)
        out[name] = spec
    return out


def locale(info: dict) -> dict:
    """``nodeDefs.json`` of the language that the nodes are written in."""
    out = {}
    for name, spec in contract(info).items():
        inputs = {
            entry: {"name": entry, "tooltip": given[1]["tooltip"]}
            for group in spec["input"].values()
            for entry, given in group.items()
        }
        outputs = {
            str(i): {"name": n, "tooltip": t}
            for i, (n, t) in enumerate(zip(spec["output_name"], spec["output_tooltips"]))
        }
        out[name] = {
            "display_name": spec["display_name"],
            "description": spec["description"],
            "inputs": inputs,
            "outputs": outputs,
        }
    return out


def main(names: list[str], pictures: bool) -> None:
    from trace_core import engine

    harness = _harness()
    WORKFLOWS.mkdir(exist_ok=True)
    with harness.Server(engine.find().path, Path(tempfile.mkdtemp())) as server:
        info = server.object_info()
        (HERE / "object_info.json").write_text(
            json.dumps(contract(info), indent=1, ensure_ascii=False) + "\n"
        )
        LOCALE.parent.mkdir(parents=True, exist_ok=True)
        LOCALE.write_text(json.dumps(locale(info), indent=1, ensure_ascii=False) + "\n")
        for name in names:
            made = build(name, info, harness)
            (WORKFLOWS / f"{name}.json").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
            if not pictures:
                continue
            outputs = server.run(harness.to_api(made, info), 1800)
            grid = next(o["images"][0] for o in outputs.values() if "trace_pairs" in o)
            sheet = server.picture(grid)
            sheet.thumbnail(THUMBNAIL)
            for file in [
                WORKFLOWS / f"{name}.jpg",
                *([HELP / f"{PICTURES[name]}.jpg"] if name in PICTURES else []),
            ]:
                sheet.save(file, quality=85, optimize=True)
            print(
                name,
                next(o["trace_report"][0] for o in outputs.values() if "trace_pairs" in o).splitlines()[2],
                flush=True,
            )


if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE.parents[1]]
    main([name for name in sys.argv[1:] if name != "--texts"] or list(GRAPHS), "--texts" not in sys.argv)
