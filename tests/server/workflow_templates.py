"""The pack's workflow templates, one function each; ``GRAPHS`` names them all."""

from __future__ import annotations

from workflow_graph import CATS, SWAP, Graph, compare
from workflow_papers import ant, mace, trce
from workflow_people import implicit_content, people

from trace_core.methods import METHODS


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
    compare(g, model, (erased, 0), CATS, "cat\nkitty")


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
    compare(g, model, (second, 0), CATS, "cat\nkitty")


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
    compare(g, model, (erased, 0), prompts, "dog")


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
    compare(g, model, (erased, 0), CATS, "cat\nkitty")


def verify(g: Graph) -> None:
    g.column("1  Model")
    g.note(
        "# A verdict on an erasure\n\nVerify says PASS, WARN or FAIL. It needs no classifier: the unerased "
        "model itself says what the erased model's pictures show. The page goes beside the file, and the "
        "saved file holds the verdict."
    )
    model, _ = g.node("TRACE_LoadDemoModel")
    g.note(
        SWAP + "\nGive *Verify Erasure* the model without the erasure. Name other words for the concept in "
        "**synonyms**. A smaller picture is faster."
    )
    g.column("2  Erase")
    erased, _ = g.node("TRACE_ClosedFormProjection", model=(model, 0), clip=(model, 1), erase="cat\nkitty")
    g.column("3  Verify")
    verified, _ = g.node(
        "TRACE_VerifyErasure",
        model=(model, 0),
        clip=(model, 1),
        lora=(erased, 1),
        vae=(model, 2),
        erase="cat",
        synonyms="kitty",
    )
    g.node("PreviewAny", "Report", source=(verified, 2))
    g.node("TRACE_SaveErasureLora", lora=(verified, 4), name="verified-%concepts%")
    g.column("4  Before and after")
    compare(g, model, (erased, 0), CATS, "cat\nkitty")


GRAPHS = {
    "quickstart": quickstart,
    "trace-full": trace_full,
    "flux": flux,
    "style": style,
    "several-concepts": several_concepts,
    "people": people,
    "implicit-content": implicit_content,
    "combined-concepts": combined_concepts,
    "apply-and-stack": apply_and_stack,
    "fuse": fuse,
    "mace": mace,
    "ant": ant,
    "trce": trce,
    "merge-into-checkpoint": merge_into_checkpoint,
    "verify": verify,
}
