"""The pack's workflow templates, one function each; ``GRAPHS`` names them all."""

from __future__ import annotations

from workflow_graph import CATS, SWAP, Graph, compare
from workflow_papers import ant, mace, trce

from trace_core.methods import METHODS


def quickstart(g: Graph) -> None:
    g.column("1  Model")
    g.note(
        "# Erase a concept in seconds\n\nPress **Run**. The projection takes *cat* out of the model in one "
        "closed-form solve, and "
        "Compare draws the same prompts before and after. Nothing is trained, and the base model stays as "
        "it is."
    )
    model, _ = g.node("TRACE_LoadDemoModel")
    g.note(SWAP)
    g.column("2  Erase")
    erased, _ = g.node("TRACE_ClosedFormProjection", model=(model, 0), clip=(model, 1), erase="cat\nkitty")
    g.node("PreviewAny", "Report", source=(erased, 2))
    g.column("3  Before and after")
    compare(g, model, (erased, 0), CATS, "cat\nkitty")


def trace_full(g: Graph) -> None:
    g.column("1  Model")
    g.note(
        "# Both stages of TRACE\n\nThe projection removes what the text rows carry (with a lower energy, as "
        "the finetune follows). The "
        "finetune starts from its LoRA, trains the late part of the sampling, and joins both into one LoRA. "
        "Connect the loader's model to both: the projection's LoRA goes over the **lora** wire.\n\n"
        "*fast* shows it at work in a minute or two; take *balanced* for a result to keep."
    )
    model, _ = g.node("TRACE_LoadDemoModel")
    g.note(
        SWAP
        + "\nThe finetune trains on 512 pixels unless width and height say otherwise; checkpointing saves "
        "memory."
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
    compare(g, model, (second, 0), CATS, "cat\nkitty")


def flux(g: Graph) -> None:
    g.column("1  Model")
    g.note(
        "# Erase from FLUX\n\nFLUX reads text in two ways: T5's rows and CLIP's pooled vector. The "
        "projection edits both. "
        "The demo model is a small transformer of FLUX's class with its guidance embedding."
    )
    model, _ = g.node("TRACE_LoadDemoModel", name="demo-flux")
    g.note(
        "## Your own FLUX\n\nPut *Load Diffusion Model* (fp16, bf16 or fp8), *DualCLIPLoader* (type flux) "
        "and *Load VAE* in the "
        "place of *Load Demo Model*. Compare takes cfg 1, guidance 3 and 1024 pixels by itself. For SD 1.5 "
        "or SDXL take "
        "*Load Checkpoint*."
    )
    g.column("2  Erase")
    erased, _ = g.node("TRACE_ClosedFormProjection", model=(model, 0), clip=(model, 1), erase="dog")
    g.node("TRACE_SaveErasureLora", lora=(erased, 1), name="flux/erased-%concepts%")
    g.node("PreviewAny", "Report", source=(erased, 2))
    g.column("3  Before and after")
    prompts = CATS.replace("kitty", "cat").replace("cat", "DOG").replace("dog", "cat").replace("DOG", "dog")
    compare(g, model, (erased, 0), prompts, "dog")


def style(g: Graph) -> None:
    g.column("1  Model")
    g.note(
        "# Erase a style\n\nThe objects stay, the hand that draws them goes. A text with *style* in it is "
        "introduced by the "
        "prompts of a style; for an artist's name set **kind** to style."
    )
    model, _ = g.node("TRACE_LoadDemoModel")
    g.note(
        SWAP
        + "\nFor an artist write the name alone, such as `Van Gogh`, set **kind** to style, and name other "
        "artists in keep "
        "(*Erasure Presets* has a list)."
    )
    g.column("2  Erase")
    erased, _ = g.node(
        "TRACE_ClosedFormProjection", model=(model, 0), clip=(model, 1), erase="twitter style", kind="style"
    )
    g.node("PreviewAny", "Report", source=(erased, 2))
    g.column("3  Before and after")
    compare(
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
        "# Several concepts at once\n\nOne list, one solve, one file. *Erasure Presets* fills the erase and "
        "keep inputs of all the "
        "nodes behind it; write into **only** to erase a part of a list and keep the rest."
    )
    lists, _ = g.node("TRACE_ErasurePresets", preset="demo objects")
    model, _ = g.node("TRACE_LoadDemoModel")
    g.note(SWAP + "\nTake the artist, person, object, explicit or trademark list, and set **kind** to match.")
    g.column("2  Erase")
    erased, _ = g.node(
        "TRACE_ClosedFormProjection", model=(model, 0), clip=(model, 1), erase=(lists, 0), keep=(lists, 1)
    )
    g.node("TRACE_SaveErasureLora", lora=(erased, 1), name="erased-%concepts%")
    g.node("PreviewAny", "Report", source=(erased, 2))
    g.column("3  Before and after")
    compare(
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
        "# Two things together\n\nA dog in Google's style goes; dogs in other styles stay, and Google's "
        "style on everything else. A + joins "
        "the two, and the picture asked for gives way to the same one in another style, the first of "
        "**keep** (`-> twitter style` behind it "
        "names one).\n\nThe same way an attribute goes from one thing alone: `glasses from scientist`."
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
    compare(
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
        "LoRA* for each: every one has "
        "its own strength and its own window of the sampling. The first reads its file back from the disk, "
        "by the name that comes "
        "from *Save*; the second takes its LoRA from the wire."
    )
    model, _ = g.node("TRACE_LoadDemoModel")
    cat, _ = g.node("TRACE_ClosedFormProjection", model=(model, 0), clip=(model, 1), erase="cat\nkitty")
    truck, _ = g.node("TRACE_ClosedFormProjection", model=(model, 0), clip=(model, 1), erase="truck")
    g.column("2  Save")
    file, _ = g.node("TRACE_SaveErasureLora", lora=(cat, 1), name="stack/erased-%concepts%")
    g.node("TRACE_SaveErasureLora", lora=(truck, 1), name="stack/erased-%concepts%")
    g.note(
        "## A file of your own, or one that somebody shared\n\nAfter the first run both files are in "
        "`output/loras`; a shared one goes "
        "into `models/loras`. Press **R**, choose it in **lora_file** of *Apply Erasure LoRA*, and take "
        "that node's **file_name** or "
        "**lora** wire off.\n\n" + SWAP
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
        "Outside a window every step is the base model's to the last bit. What a picture shows is decided "
        "early, its detail late."
    )
    g.column("4  Before and after")
    compare(
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
        "# Many erasures in one file\n\nThree erasures, each made alone, fused in closed form: on the "
        "prompts of each the result does "
        "what that one does, without what the others would add there. Several LoRA loaders in a row would "
        "add them up, and "
        "everything else would change with every one."
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
        "Connect the model as the loader gives it, not one that an erasure is on already. Files go into "
        "**files**, one a line. Write "
        "`cat = 0.5` into **strengths** for half of one concept.\n\n" + SWAP
    )
    g.column("3  What came out")
    g.node("TRACE_SaveErasureLora", lora=(fused, 1), name="fused-%concepts%")
    g.node("PreviewAny", "Report", source=(fused, 2))
    g.column("4  Before and after")
    compare(
        g,
        model,
        (fused, 0),
        "a photo of a cat, google style\na photo of a truck, fluent style\na photo of a pizza, twitter "
        "style\n"
        "a photo of a dog, google style\na photo of a ship, fluent style\na photo of an apple, twitter style",
        "cat\ntruck\npizza",
    )


def merge_into_checkpoint(g: Graph) -> None:
    g.column("1  Model")
    g.note(
        "# A checkpoint without the concept\n\nThe core node *Save Checkpoint* writes the patches into the "
        "weights: the file needs "
        "no LoRA, and none can be left out. It lands in `output/checkpoints`."
    )
    model, _ = g.node("TRACE_LoadDemoModel")
    g.note(
        SWAP
        + "\nOnly the whole sampling can be merged, not a window. The demo checkpoint itself is too small "
        "for *Load Checkpoint*, "
        "which knows the real sizes alone; one made of SD 1.5, SDXL or FLUX loads there. For the diffusion "
        "model alone take "
        "*ModelSave*."
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
    compare(g, model, (erased, 0), CATS, "cat\nkitty")


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
