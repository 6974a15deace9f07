"""Write ``workflows/*.json``, their thumbnails, ``object_info.json`` and ``locales/en``: ``make_workflows.py
[--texts] [NAME ...]``.

The graphs are written down here, in ``GRAPHS``; where nodes stand, their sizes and the order of their widgets
follow from what a real server says of its nodes. Every workflow is run, and its thumbnail is the grid that it
draws; with ``--texts`` none is. What is written is the same with every ComfyUI that the pack supports.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

from trace_core.methods import METHODS

HERE = Path(__file__).resolve().parent
WORKFLOWS = HERE.parents[1] / "workflows"
LOCALE = HERE.parents[1] / "locales" / "en" / "nodeDefs.json"
HELP = HERE.parents[1] / "web" / "docs" / "images"
GAP, WIDTH, ROW, TEXT = 50, 360, 24, 110
THUMBNAIL = (480, 320)


def _harness():
    spec = importlib.util.spec_from_file_location("workflow_harness", HERE / "harness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


#: Pixels of a node for what it will show: pictures, or a whole report.
SHOWS = {"TRACE_CompareErasure": 230, "LossGraphNode": 230, "PreviewAny": 580}
#: Pixels that the page adds below a node once it has run, in the design that adds more. A report may be
#: longer than its node: it is the last of its column.
PANELS = {
    "TRACE_LateStageFinetune": 490,
    "TRACE_FuseErasureLoras": 40,
    "TRACE_ApplyErasureLora": 40,
    "TRACE_SaveErasureLora": 40,
    "PreviewAny": 130,
}


class Graph:
    """A workflow in the page's own format, a column of nodes at a time."""

    def __init__(self, info: dict, harness):
        self.info, self.harness = info, harness
        self.nodes, self.links, self.groups = [], [], []
        self._x, self._y, self._members, self._title = 0, 0, [], ""

    def column(self, title: str) -> None:
        """Begin a column; its nodes are framed by a group with this title."""
        self._close()
        self._title, self._members, self._y = title, [], 0

    def note(self, text: str) -> None:
        lines = sum(1 + len(line) // 48 for line in text.splitlines())
        self._place(
            "MarkdownNote",
            {"inputs": [], "outputs": [], "widgets_values": [text]},
            40 + 19 * lines,
            color="#432",
        )

    def node(self, kind: str, title: str = "", /, **given) -> tuple[int, int]:
        """Add a node. A value that is ``(node, slot)`` is a wire, any other a widget's; returns ``(node,
        0)``.
        """
        spec, number = self.info[kind], len(self.nodes) + 1
        inputs, values, height, unfolded = [], [], 2 * ROW, self._unfolded(spec, given)
        for name, form, options in self.harness.inputs_of(spec):
            value, widget = given.pop(name, None), self.harness.is_widget(form, options)
            kind_of = "COMBO" if isinstance(form, list) else form
            if isinstance(value, tuple) or not widget:
                slot = {
                    "name": name,
                    "type": kind_of,
                    "link": self._link(value, number, len(inputs), kind_of),
                }
                inputs.append(slot | ({"widget": {"name": name}} if widget else {}))
                height += 0 if widget else ROW
                value = None
            if widget:
                values.append(self._default(form, options) if value is None else value)
                height += TEXT if options.get("multiline") else ROW
                if self.harness.has_control(name, form, options):
                    values.append("fixed")
                    height += ROW
        if given:
            raise ValueError(f"{kind} has no input {', '.join(given)}")
        # What versions of ComfyUI add to a stock node is left to the page, so that a template is the same of
        # all of them
        outputs = [
            {"name": n, "type": t, "links": [], "slot_index": i}
            for i, (t, n) in enumerate(zip(spec["output"], spec["output_name"]))
            if kind.startswith("TRACE_")
        ]
        height += SHOWS[kind] if kind in SHOWS else ROW * max(0, len(outputs) - len(inputs))
        parts = {"inputs": inputs, "outputs": outputs, "widgets_values": values}
        self._place(kind, parts | ({"showAdvanced": True} if unfolded else {}), height, title=title)
        return number, 0

    def _unfolded(self, spec: dict, given: dict) -> bool:
        """Whether a value is given to a widget that the page folds away: it is shown then."""
        return any(
            name in given and options.get("advanced") for name, _, options in self.harness.inputs_of(spec)
        )

    @staticmethod
    def _default(form, options: dict):
        return options.get("default", form[0] if isinstance(form, list) and form else "")

    def _link(self, source, target: int, slot: int, kind: str) -> int | None:
        if source is None:
            return None
        number = len(self.links) + 1
        self.links.append([number, source[0], source[1], target, slot, kind])
        self.nodes[source[0] - 1]["outputs"][source[1]]["links"].append(number)
        return number

    def _place(self, kind: str, parts: dict, height: int, title: str = "", color: str = "") -> None:
        number = len(self.nodes) + 1
        node = {
            "id": number,
            "type": kind,
            "pos": [self._x, self._y],
            "size": [WIDTH, height],
            "flags": {},
            "order": number - 1,
            "mode": 0,
            "properties": {"Node name for S&R": kind},
            **parts,
        }
        node |= {"title": title} if title else {}
        node |= {"color": color, "bgcolor": "#653"} if color else {}
        self.nodes.append(node)
        self._members.append(node)
        self._y += height + PANELS.get(kind, 0) + GAP

    def _close(self) -> None:
        if not self._members:
            return
        bottom = max(n["pos"][1] + n["size"][1] + PANELS.get(n["type"], 0) for n in self._members)
        self.groups.append(
            {
                "id": len(self.groups) + 1,
                "title": self._title,
                "bounding": [self._x - 20, -80, WIDTH + 40, bottom + 100],
                "color": "#3f789e",
                "font_size": 24,
                "flags": {},
            }
        )
        self._x += WIDTH + 80

    def workflow(self) -> dict:
        self._close()
        return {
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": {},
            "version": 0.4,
        }


# ------------------------------------------------------------------------------------------- the workflows

SWAP = """## Your own model

Put **Load Checkpoint** in the place of *Load Demo Model*, and connect its MODEL, CLIP and VAE where the \
demo's were.

- **SD 1.5, SD 2, SDXL**: Nothing else to set. Compare takes 20 steps, cfg 7 and 512 or 1024 pixels.
- **FLUX**: Use *Load Diffusion Model*, *DualCLIPLoader* (type flux) and *Load VAE* instead. Compare takes \
cfg 1.

Then write your own concept, prompts with the concept, and prompts with what must stay. An empty **keep** \
keeps a hundred everyday things.
"""

CATS = """a photo of a cat, google style
a photo of a cat, twitter style
a photo of a kitty, android style
a photo of a dog, google style
a photo of a house, fluent style
a photo of a pizza, twitter style"""


def quickstart(g: Graph) -> None:
    g.column("1  Model")
    g.note(
        "# Erase a concept in seconds\n\nPress **Run**. The projection takes *cat* out of the model in one "
        "closed-form solve. Compare draws the same prompts before and after. Nothing is trained, and the "
        "base model does not change."
    )
    model, _ = g.node("TRACE_LoadDemoModel")
    g.note(SWAP)
    g.column("2  Erase")
    erased, _ = g.node("TRACE_ClosedFormProjection", model=(model, 0), clip=(model, 1), erase="cat\nkitty")
    g.node("PreviewAny", "Report", source=(erased, 2))
    g.column("3  Before and after")
    _compare(g, model, (erased, 0), CATS, "cat\nkitty")


def trace_full(g: Graph) -> None:
    g.column("1  Model")
    g.note(
        "# Both stages of TRACE\n\nThe projection removes what the text rows carry. Its energy is lower "
        "here, because the finetune follows. The finetune starts from the projection's LoRA, trains the "
        "late part of the sampling, and joins both into one LoRA. Connect the loader's model to both "
        "nodes. The projection's LoRA goes over the **lora** wire.\n\n*fast* shows the training at work in "
        "a minute or two. Take *balanced* for a result to keep."
    )
    model, _ = g.node("TRACE_LoadDemoModel")
    g.note(
        SWAP
        + "\nThe finetune trains on 512 pixels, unless you set width and height. Checkpointing saves memory."
    )
    g.column("2  Closed form")
    first, _ = g.node(
        "TRACE_ClosedFormProjection",
        model=(model, 0),
        clip=(model, 1),
        erase="cat",
        **METHODS["trace"].closed_form,
    )
    g.column("3  Late-stage finetune")
    second, _ = g.node(
        "TRACE_LateStageFinetune",
        model=(model, 0),
        clip=(model, 1),
        lora=(first, 1),
        erase="cat",
        preset="fast",
        preview_every=20,
    )
    g.column("4  What came out")
    g.node("LossGraphNode", loss=(second, 2), filename_prefix="trace_loss")
    g.node("TRACE_SaveErasureLora", lora=(second, 1), name="erased-%concepts%-%method%", license="CC0-1.0")
    g.node("PreviewAny", "Report", source=(second, 3))
    g.column("5  Before and after")
    _compare(g, model, (second, 0), CATS, "cat\nkitty")


def flux(g: Graph) -> None:
    g.column("1  Model")
    g.note(
        "# Erase from FLUX\n\nFLUX reads text in two ways: T5's rows and CLIP's pooled vector. The "
        "projection edits both. The demo model is a small transformer of FLUX's class, with its guidance "
        "embedding."
    )
    model, _ = g.node("TRACE_LoadDemoModel", name="demo-flux")
    g.note(
        "## Your own FLUX\n\nPut *Load Diffusion Model* (fp16, bf16 or fp8), *DualCLIPLoader* (type flux) "
        "and *Load VAE* in the place of *Load Demo Model*. Compare takes cfg 1, guidance 3 and 1024 "
        "pixels. For SD 1.5 or SDXL use *Load Checkpoint*."
    )
    g.column("2  Erase")
    erased, _ = g.node("TRACE_ClosedFormProjection", model=(model, 0), clip=(model, 1), erase="dog")
    g.node("TRACE_SaveErasureLora", lora=(erased, 1), name="flux/erased-%concepts%")
    g.node("PreviewAny", "Report", source=(erased, 2))
    g.column("3  Before and after")
    prompts = CATS.replace("kitty", "cat").replace("cat", "DOG").replace("dog", "cat").replace("DOG", "dog")
    _compare(g, model, (erased, 0), prompts, "dog")


def style(g: Graph) -> None:
    g.column("1  Model")
    g.note(
        "# Erase a style\n\nThe objects stay, and the style goes. A concept with *style* in its name gets "
        "the prompts of a style. For an artist's name, set **kind** to style."
    )
    model, _ = g.node("TRACE_LoadDemoModel")
    g.note(
        SWAP
        + "\nFor an artist write the name alone, such as `Van Gogh`, and set **kind** to style. Name other "
        "artists in keep. *Erasure Presets* has a list."
    )
    g.column("2  Erase")
    erased, _ = g.node(
        "TRACE_ClosedFormProjection", model=(model, 0), clip=(model, 1), erase="twitter style", kind="style"
    )
    g.node("PreviewAny", "Report", source=(erased, 2))
    g.column("3  Before and after")
    _compare(
        g,
        model,
        (erased, 0),
        "a photo of a cat, twitter style\na photo of a truck, twitter style\na photo of a house, twitter "
        "style\na photo of a cat, google style\na photo of a truck, android style\na photo of a house, "
        "fluent style",
        "twitter style",
    )


def several_concepts(g: Graph) -> None:
    g.column("1  What")
    g.note(
        "# Several concepts at once\n\nOne list, one solve, one file. *Erasure Presets* fills the erase "
        "and keep inputs of all the other nodes. Write names into **only** to erase a part of a list and "
        "keep the rest."
    )
    lists, _ = g.node("TRACE_ErasurePresets", preset="demo objects")
    model, _ = g.node("TRACE_LoadDemoModel")
    g.note(
        SWAP
        + "\nTake the artist, person, object, explicit or trademark list. **kind** may stay auto, because "
        "the nodes know these names."
    )
    g.column("2  Erase")
    erased, _ = g.node(
        "TRACE_ClosedFormProjection", model=(model, 0), clip=(model, 1), erase=(lists, 0), keep=(lists, 1)
    )
    g.node("TRACE_SaveErasureLora", lora=(erased, 1), name="erased-%concepts%")
    g.node("PreviewAny", "Report", source=(erased, 2))
    g.column("3  Before and after")
    _compare(
        g,
        model,
        (erased, 0),
        "a photo of a cat, google style\na photo of a truck, fluent style\na photo of a pizza, twitter "
        "style\n"
        "a photo of a dog, google style\na photo of a ship, fluent style\na photo of an apple, twitter style",
        (lists, 0),
    )


def combined_concepts(g: Graph) -> None:
    g.column("1  Model")
    g.note(
        "# Two things together\n\nA dog in Google's style goes. Dogs in other styles stay, and so do other "
        "things in Google's style. The + joins the two. Another style takes the place of Google's on a "
        "dog: the first one of **keep**. Write `-> twitter style` behind the concept to name one.\n\nAn "
        "attribute can go from one thing alone: `glasses from scientist`."
    )
    model, _ = g.node("TRACE_LoadDemoModel")
    g.note(SWAP)
    g.column("2  Erase")
    erased, _ = g.node(
        "TRACE_ClosedFormProjection",
        model=(model, 0),
        clip=(model, 1),
        erase="dog + google style",
        keep="twitter style\nandroid style\nfluent style\nemojione style\ncat\ntruck\nhouse\nbird",
    )
    g.node("TRACE_SaveErasureLora", lora=(erased, 1), name="erased-%concepts%")
    g.node("PreviewAny", "Report", source=(erased, 2))
    g.column("3  Before and after")
    _compare(
        g,
        model,
        (erased, 0),
        "a photo of a dog, google style\na picture of a dog, google style\na photo of a dog, twitter style\n"
        "a photo of a dog, fluent style\na photo of a cat, google style\na photo of a truck, google style",
        "dog + google style",
    )


def apply_and_stack(g: Graph) -> None:
    g.column("1  Two erasures")
    g.note(
        "# Apply, stack, window\n\nTwo erasures, each saved as a file to share. Chain one *Apply Erasure "
        "LoRA* for each erasure. Each node has its own strength and its own window of the sampling. The "
        "first node reads its file back from the disk, by the name that *Save* gives. The second node "
        "takes its LoRA from the wire."
    )
    model, _ = g.node("TRACE_LoadDemoModel")
    cat, _ = g.node("TRACE_ClosedFormProjection", model=(model, 0), clip=(model, 1), erase="cat\nkitty")
    truck, _ = g.node("TRACE_ClosedFormProjection", model=(model, 0), clip=(model, 1), erase="truck")
    g.column("2  Save")
    file, _ = g.node("TRACE_SaveErasureLora", lora=(cat, 1), name="stack/erased-%concepts%")
    g.node("TRACE_SaveErasureLora", lora=(truck, 1), name="stack/erased-%concepts%")
    g.note(
        "## A file of your own, or a shared one\n\nAfter the first run both files are in `output/loras`. "
        "Put a shared file into `models/loras`. Press **R**, choose the file in **lora_file** of *Apply "
        "Erasure LoRA*, and disconnect the node's **file_name** or **lora** wire.\n\n" + SWAP
    )
    g.column("3  Apply")
    whole, _ = g.node(
        "TRACE_ApplyErasureLora", "From the file, whole sampling", model=(model, 0), file_name=(file, 0)
    )
    both, _ = g.node(
        "TRACE_ApplyErasureLora",
        "From the wire, first 70 %",
        model=(whole, 0),
        lora=(truck, 1),
        end_percent=0.7,
    )
    g.note(
        "Outside its window an erasure changes no step by a bit. The early steps decide what a picture "
        "shows, and the late steps its detail."
    )
    g.column("4  Before and after")
    _compare(
        g,
        model,
        (both, 0),
        "a photo of a cat, google style\na photo of a kitty, twitter style\na photo of a truck, fluent "
        "style\na "
        "photo of a truck, google style\na photo of a dog, google style\na photo of a house, fluent style",
        "cat\nkitty\ntruck",
    )


def fuse(g: Graph) -> None:
    g.column("1  Erasures")
    g.note(
        "# Many erasures in one file\n\nThree erasures, each made alone, are fused in closed form. On a "
        "concept's prompts the result does what that concept's erasure does, and the others add nothing "
        "there. Several LoRA loaders in a row would add the erasures up, and every loader would change "
        "other pictures too."
    )
    model, _ = g.node("TRACE_LoadDemoModel")
    made = [
        g.node("TRACE_ClosedFormProjection", model=(model, 0), clip=(model, 1), erase=c)[0]
        for c in ("cat", "truck", "pizza")
    ]
    g.column("2  Fuse")
    fused, _ = g.node(
        "TRACE_FuseErasureLoras",
        model=(model, 0),
        clip=(model, 1),
        **{f"lora_{i}": (m, 1) for i, m in enumerate(made, 1)},
    )
    g.note(
        "Connect the loader's model, not a model with an erasure on it. Write file names into **files**, "
        "one a line. Write `cat = 0.5` into **strengths** for half of one concept.\n\n" + SWAP
    )
    g.column("3  What came out")
    g.node("TRACE_SaveErasureLora", lora=(fused, 1), name="fused-%concepts%")
    g.node("PreviewAny", "Report", source=(fused, 2))
    g.column("4  Before and after")
    _compare(
        g,
        model,
        (fused, 0),
        "a photo of a cat, google style\na photo of a truck, fluent style\na photo of a pizza, twitter "
        "style\n"
        "a photo of a dog, google style\na photo of a ship, fluent style\na photo of an apple, twitter style",
        "cat\ntruck\npizza",
    )


PUBLISHED = (
    "\n\nThe values are the paper's. On a demo model the learning rate is ten times higher. *fast* shows the "
    "training at work, and *balanced* is for a result to keep. Compare with this pack's own method in the "
    "template *trace-full*."
)


def mace(g: Graph) -> None:
    g.column("1  Model")
    g.note(
        "# MACE: one adapter a concept, fused\n\nEach concept gets MACE's closed form, and then an "
        "adapter. The adapter takes away the attention to the concept's words where the concept is. All "
        "files are fused in closed form." + PUBLISHED
    )
    model, _ = g.node("TRACE_LoadDemoModel")
    g.note(SWAP)
    made = []
    for number, concept in enumerate(("cat", "truck"), start=2):
        g.column(f"{number}  {concept}")
        first, _ = g.node(
            "TRACE_ClosedFormProjection", model=(model, 0), clip=(model, 1), erase=concept, policy="mace"
        )
        second, _ = g.node(
            "TRACE_LateStageFinetune",
            model=(model, 0),
            clip=(model, 1),
            lora=(first, 1),
            erase=concept,
            objective="mace",
            preset="fast",
        )
        made.append(second)
    g.column("4  Fuse")
    fused, _ = g.node(
        "TRACE_FuseErasureLoras",
        model=(model, 0),
        clip=(model, 1),
        **{f"lora_{i}": (m, 1) for i, m in enumerate(made, 1)},
    )
    g.node("TRACE_SaveErasureLora", lora=(fused, 1), name="mace-%concepts%")
    g.node("PreviewAny", "Report", source=(fused, 2))
    g.column("5  Before and after")
    _compare(
        g,
        model,
        (fused, 0),
        "a photo of a cat, google style\na photo of a truck, fluent style\na photo of a pizza, twitter "
        "style\n"
        "a photo of a dog, google style\na photo of a ship, fluent style",
        "cat\ntruck",
    )


def ant(g: Graph) -> None:
    g.column("1  Model")
    g.note(
        "# ANT: reverse the guidance late\n\nThe finetune alone, without a closed form, on whole weight "
        "matrices. A saliency map chooses the weights that matter to the concept on every prompt and seed. "
        "The result is cut to a LoRA at the end. The report says how much the cut loses." + PUBLISHED
    )
    model, _ = g.node("TRACE_LoadDemoModel")
    g.note(SWAP)
    g.column("2  Finetune")
    tuned, _ = g.node(
        "TRACE_LateStageFinetune",
        model=(model, 0),
        clip=(model, 1),
        erase="cat",
        objective="ant",
        saliency=0.5,
        rank=64,
    )
    g.node("TRACE_SaveErasureLora", lora=(tuned, 1), name="ant-%concepts%")
    g.node("PreviewAny", "Report", source=(tuned, 3))
    g.column("3  Before and after")
    _compare(g, model, (tuned, 0), CATS.replace("pizza, twitter", "truck, fluent"), "cat\nkitty")


def trce(g: Graph) -> None:
    g.column("1  Model")
    g.note(
        "# TRCE: both stages\n\nThe closed form maps the end token of the concept's prompts to the end "
        "token of a safe concept. The finetune steers the early sampling nearer to the safe picture than "
        "to the concept's, by a margin. It trains only layers that do not read the text. TRCE needs an "
        "anchor: `cat -> dog`." + PUBLISHED
    )
    model, _ = g.node("TRACE_LoadDemoModel")
    g.note(SWAP)
    g.column("2  Closed form")
    first, _ = g.node(
        "TRACE_ClosedFormProjection", model=(model, 0), clip=(model, 1), erase="cat -> dog", policy="trce"
    )
    g.column("3  Early steering")
    second, _ = g.node(
        "TRACE_LateStageFinetune",
        model=(model, 0),
        clip=(model, 1),
        lora=(first, 1),
        erase="cat -> dog",
        objective="trce",
        preset="fast",
    )
    g.node("TRACE_SaveErasureLora", lora=(second, 1), name="trce-%concepts%")
    g.node("PreviewAny", "Report", source=(second, 3))
    g.column("4  Before and after")
    _compare(g, model, (second, 0), CATS, "cat\nkitty")


def merge_into_checkpoint(g: Graph) -> None:
    g.column("1  Model")
    g.note(
        "# A checkpoint without the concept\n\nThe core node *Save Checkpoint* writes the patches into the "
        "weights. The file needs no LoRA, so no one can leave the LoRA out. The file is saved in "
        "`output/checkpoints`."
    )
    model, _ = g.node("TRACE_LoadDemoModel")
    g.note(
        SWAP
        + "\nAn erasure with a window cannot be merged. *Load Checkpoint* knows the sizes of real models "
        "only, so the merged demo checkpoint does not load there. A merged SD 1.5, SDXL or FLUX checkpoint "
        "does. Use *ModelSave* for the diffusion model alone."
    )
    g.column("2  Erase and merge")
    erased, _ = g.node("TRACE_ClosedFormProjection", model=(model, 0), clip=(model, 1), erase="cat\nkitty")
    g.node(
        "CheckpointSave",
        model=(erased, 0),
        clip=(model, 1),
        vae=(model, 2),
        filename_prefix="checkpoints/without-cat",
    )
    g.column("3  Before and after")
    _compare(g, model, (erased, 0), CATS, "cat\nkitty")


def _compare(g: Graph, model: int, after: tuple[int, int], prompts: str, erase) -> None:
    compared, _ = g.node(
        "TRACE_CompareErasure",
        model_before=(model, 0),
        model_after=after,
        clip=(model, 1),
        vae=(model, 2),
        prompts=prompts,
        erase=erase,
    )
    g.node("PreviewAny", "Figures", source=(compared, 3))


GRAPHS = {
    "quickstart": quickstart,
    "trace-full": trace_full,
    "flux": flux,
    "style": style,
    "several-concepts": several_concepts,
    "combined-concepts": combined_concepts,
    "apply-and-stack": apply_and_stack,
    "fuse": fuse,
    "mace": mace,
    "ant": ant,
    "trce": trce,
    "merge-into-checkpoint": merge_into_checkpoint,
}


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
