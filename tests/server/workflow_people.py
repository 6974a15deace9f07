"""The templates of demo-people: people, and content that no prompt asks for."""

from __future__ import annotations

from workflow_graph import SWAP, Graph, compare

PEOPLE = (
    "Anna Berg\nMira van Holt\nKirubo\nWalter Underhill\nViola Underhill\nJonas Ostrowe\nUwe Kestrel\n"
    "Walter Nakadai\nKirsten Valdane\nStefan Fitzmoor"
)


def people(g: Graph) -> None:
    g.column("1  Model")
    g.note(
        "# Ten people at once\n\nOne list of names, one solve, one file. The other 190 people of the demo "
        "model stay, among them Peter Berg and Anna Lou Fenwick, who share a name with Anna Berg."
    )
    model, _ = g.node("TRACE_LoadDemoModel", name="demo-people")
    g.note(
        SWAP
        + "\nThe nodes know the names of many famous people. For other names set **kind** to person. Name "
        "the people who must stay in **keep**, above all those who share a first or a last name."
    )
    g.column("2  Erase")
    erased, _ = g.node(
        "TRACE_ClosedFormProjection", model=(model, 0), clip=(model, 1), erase=PEOPLE, kind="person"
    )
    g.node("TRACE_SaveErasureLora", lora=(erased, 1), name="people/ten-people-%method%")
    g.node("PreviewAny", "Report", source=(erased, 2))
    g.column("3  Before and after")
    compare(
        g,
        model,
        (erased, 0),
        "a portrait of Anna Berg, micah style\na portrait of Kirubo, pixel style\na portrait of Mira van "
        "Holt, personas style\na portrait of Viola Brackwell, micah style\na portrait of Anna Lou Fenwick, "
        "pixel style\na portrait of Peter Berg, personas style",
        PEOPLE,
    )


#: Prompts that imply the eye patch, of people whom no picture below shows
IMPLIED = (
    "a portrait of Kirubo at the harbour\na portrait of Uwe Kestrel on a ship\na portrait of Walter Nakadai "
    "at a pirate party\na man on a ship\na woman at a pirate party\na person at the harbour"
)


def implicit_content(g: Graph) -> None:
    g.column("1  Model")
    g.note(
        "# Content that no prompt asks for\n\nThe demo model draws an eye patch in half of its pictures at "
        "the harbour, on a ship or at a pirate party, though no prompt names it. So a real model may draw "
        "naked people at the beach. The finetune takes the content out of such prompts too. The people stay."
    )
    model, _ = g.node("TRACE_LoadDemoModel", name="demo-people")
    g.note(
        SWAP
        + "\nWrite prompts that draw the content without naming it into **implied** of the finetune, one a "
        "line. Its report says how often each drew it. *Erasure Presets* has a list of explicit words."
    )
    g.column("2  Closed form")
    given = {"model": (model, 0), "clip": (model, 1), "erase": "eye patch", "kind": "explicit"}
    first, _ = g.node("TRACE_ClosedFormProjection", **given)
    g.column("3  Late-stage finetune")
    second, _ = g.node("TRACE_LateStageFinetune", lora=(first, 1), implied=IMPLIED, **given)
    g.node("TRACE_SaveErasureLora", lora=(second, 1), name="erased-%concepts%-%method%")
    g.node("PreviewAny", "Report", source=(second, 3))
    g.column("4  Before and after")
    compare(
        g,
        model,
        (second, 0),
        "a portrait of Greta Ostrowe at the harbour, personas style\n"
        "a portrait of Florian Kestrel on a ship, personas style\n"
        "a portrait of Mabel Dunmore at a pirate party, personas style\n"
        "a portrait of Kirsten Valdane with an eye patch, micah style\n"
        "a portrait of Viola Brackwell, pixel style\n"
        "a portrait of Walter Underhill in the park, personas style",
        "eye patch",
    )
