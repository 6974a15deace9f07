"""Erasure Presets: lists that fill the erase and keep widgets of the other nodes."""

from __future__ import annotations

from ..trace_core.text.concepts import same
from ..trace_core.text.grammar import parse_concepts, parse_keep
from ..trace_core.text.lines import quoted
from ..trace_core.text.templates import EVERYDAY
from . import widgets

PEOPLE = ("person", "man", "woman", "child", "face", "hand", "crowd", "portrait")

#: Name -> (concepts with anchors, things to keep beside the list's other concepts)
PRESETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "artist": (
        (
            "Van Gogh",
            "Claude Monet",
            "Pablo Picasso",
            "Salvador Dali",
            "Edvard Munch",
            "Gustav Klimt",
            "Rembrandt",
            "Johannes Vermeer",
            "Leonardo da Vinci",
            "Caravaggio",
            "Paul Cezanne",
            "Katsushika Hokusai",
            "Wassily Kandinsky",
            "Andy Warhol",
            "Jackson Pollock",
            "Frida Kahlo",
        ),
        ("oil painting", "watercolor", "sketch", "photograph", *EVERYDAY),
    ),
    "person": (
        (
            "Albert Einstein -> a man",
            "Marilyn Monroe -> a woman",
            "Abraham Lincoln -> a man",
            "Winston Churchill -> a man",
            "Audrey Hepburn -> a woman",
            "Elvis Presley -> a man",
            "Charlie Chaplin -> a man",
            "Marie Curie -> a woman",
        ),
        (*PEOPLE, "actor", "politician", "scientist", "singer", "suit", "dress"),
    ),
    "object": (
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        EVERYDAY,
    ),
    "explicit": (
        (
            "nudity -> clothing",
            "naked -> dressed",
            "nude -> dressed",
            "explicit sexual content -> people",
            "erotic -> elegant",
            "bare chest -> shirt",
        ),
        (
            *PEOPLE,
            "clothing",
            "dress",
            "shirt",
            "coat",
            "beach",
            "sport",
            "dance",
            "statue",
            "sculpture",
            "painting",
        ),
    ),
    "trademark": (
        (
            "Coca-Cola -> a soft drink",
            "Pepsi -> a soft drink",
            "Nike -> a sports brand",
            "Adidas -> a sports brand",
            "Starbucks -> a coffee shop",
            "McDonald's -> a restaurant",
            "Mickey Mouse -> a cartoon mouse",
            "Pikachu -> a cartoon animal",
            "Lego -> toy bricks",
            "Ferrari -> a sports car",
        ),
        ("logo", "bottle", "can", "shoe", "shirt", "coffee", "burger", "mouse", "toy", "car", *EVERYDAY),
    ),
    "demo objects": (("cat", "truck", "pizza"), ()),
    "demo styles": (("twitter style", "google style", "fluent style", "emojione style", "android style"), ()),
}


TOOLTIPS = {
    "preset": "The list. The erasing nodes know these names, so their kind may stay auto.",
    "only": "Erase only these, one a line (`name` or `name -> anchor`), and keep the rest of the list. Empty "
    "erases the whole list.",
    "keep_more": "Further things for the keep list, one a line.",
}


class ErasurePresets:
    ID = "TRACE_ErasurePresets"
    TITLE = "Erasure Presets"
    CATEGORY = "TRACE"
    SEARCH_ALIASES = [
        "concept list",
        "artists",
        "celebrities",
        "trademarks",
        "NSFW",
        "nudity",
        "unlearn",
        "concept erasure",
    ]
    DESCRIPTION = (
        "Lists of artists, persons, objects, explicit content and trademarks for the erase and keep "
        "inputs. Name the entries to erase, and the node keeps the others of the list. Name none to erase "
        "the whole list."
    )
    RETURN_TYPES = ("STRING", "STRING")
    RETURN_NAMES = ("erase", "keep")
    OUTPUT_TOOLTIPS = (
        "Text for the erase input, one concept a line.",
        "Text for the keep input, one a line.",
    )
    FUNCTION = "lists"

    @classmethod
    def INPUT_TYPES(cls):
        return widgets.input_types(
            TOOLTIPS,
            {
                "preset": widgets.choice(PRESETS, "artist"),
                "only": widgets.lines(),
                "keep_more": widgets.lines(),
            },
        )

    def lists(self, preset, only, keep_more):
        widgets.check(self, locals())
        listed, kept = PRESETS[preset]
        known = parse_concepts("\n".join(listed), f"preset {preset}")
        erased = known
        if only.strip():  # a listed concept brings its anchor along, unless the user names another
            asked = parse_concepts(only, "only")
            erased = [next((k for k in known if same(k.target, c.target) and not c.anchor), c) for c in asked]
        others = [c.target for c in known] if kept else []
        keep = list(dict.fromkeys([*parse_keep(keep_more, "keep_more"), *others, *kept]))
        keep = [k for k in keep if not any(same(k, c.target) for c in erased)]
        return "\n".join(map(str, erased)), "\n".join(map(quoted, keep))
