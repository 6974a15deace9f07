"""Workflow templates of the published methods, one function each."""

from __future__ import annotations

from workflow_graph import CATS, SWAP, Graph, compare

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
    compare(
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
    compare(g, model, (tuned, 0), CATS.replace("pizza, twitter", "truck, fluent"), "cat\nkitty")


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
    compare(g, model, (second, 0), CATS, "cat\nkitty")
