"""Contrast words: ordinary words inside names, which must survive the erasure of the name.

A name of several words shares tokens with each of its words, and the rows of "a van" lie close to those of
"Van Gogh". Words that mean a thing of their own are kept by separate prompts. Other words of a name, such as
a surname without another meaning, are erased with the name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..text.concepts import Concept, same
from ..text.encoding import SUBJECT, TextEncoder, TextRows
from ..text.templates import EVERYDAY

#: Things that are also first names, surnames, or parts of titles and figures. Written for this pack. The list
#: contains only things, animals, occupations, plants and places. An adjective or colour belongs to the
#: meaning of the name ("red background"), and a medium or style is itself what is erased.
THINGS: frozenset[str] = frozenset(
    """
    angel ant apple archer arrow ash axe badge baker balloon bank banks barber barn barrel basket bat
    bay beach bean bear beard beaver bee beetle bell belt bench berry bike bird bishop blade blanket
    bloom boat bomb bone book boot bottle bow bowl box boy branch bread brick bride bridge brook broom
    brush bucket bug bull bulldog bus bush butcher butter butterfly button cabin cage cake camel camera
    candle candy canyon cap cape captain car card cardinal carpenter carpet carriage cart cash castle
    cat cave chain chair champion chapel cheese cherry chicken child church cliff clock cloud clown
    coach coat cobra cook cookie corn cottage cow cowboy crab crane crow crown cruise cup dancer deer
    desert desk detective devil diamond dish diver dock doctor dog doll dolphin donkey door dove dragon
    dragonfly dress driver drum duck duke eagle egg elephant elf emperor engine fairy falcon farm farmer
    feather fence field finch fire fish fisher fisherman flag flower fly forest fork fountain fox frog
    fruit garden gardener gate ghost giant giraffe girl glass glove goat gold goose grape grass guard
    guitar gun hammer hare harp hat hawk heart hedgehog helmet hen hill holly honey hood horn horse
    hotel house hunter ice iron island ivy jacket jar jelly jet jewel joker judge jungle kettle key king
    kitchen kite kitten knife knight ladder lake lamb lamp lantern laurel leaf lemon leopard library
    lightning lily lion lizard lobster lock lotus machine maid mall man map maple market marsh mask
    mason mast meadow mercury mermaid miller mine mirror monk monkey monster moon moose moss mountain
    mouse mushroom nail needle nest ninja nun nurse nut oak ocean octopus officer oil olive onion orange
    orchid otter owl ox paddle page palace palm pan panda panther parrot peach peacock pear pearl pen
    pencil penguin pepper piano pig pigeon pilot pine pipe pirate planet plate plum pond pony pool
    porter potato potter priest prince princess pumpkin puppy queen rabbit raccoon rain rainbow ram
    ranger rat raven reed ribbon rice ring river rivers road robin robot rock rocket rod roof rooster
    rope rose ruby sail sailor salmon salt sand scarf school sea seal shark sheep shell shepherd shield
    ship shirt shoe shop shore silver singer skull smith snail snake snow snowman soldier spark sparrow
    spear spider spoon spring squirrel stage star statue steel steward stone storm stream street sugar
    suit sun sunflower swan sword table tailor tank taxi teacher temple tent thorn throne thunder tiger
    tomato torch tower town toy tractor train tree trout truck trumpet tulip turkey turner turtle
    umbrella unicorn van vase village vine viking violin wagon walker wall warrior watch water waters
    wave weaver well whale wheat wheel willow window wine wing witch wizard wolf woman wood woods worm
    yacht zebra
    """.split()
) | {entry for entry in EVERYDAY if " " not in entry}


#: Words that introduce a thing or describe the type of picture. "a photo of a cat" is therefore no name of
#: several words.
FRAME = frozenset(
    """
    a an and animal art artwork background by drawing from icon image in of on painting person photo
    photograph picture portrait print sketch style the things with
    """.split()
)


def words_inside(concept: Concept, others: Sequence[str] = ()) -> list[str]:
    """Words of a concept's name that are things of their own.

    Args:
        others: other erased names, which are not kept.

    Returns:
        Lower-case words in order. Empty for a name of one word, and for a combination, whose parts are kept
        by their own prompts.
    """
    words = [w for w in re.findall(r"[^\W\d_]+", concept.target.casefold()) if w not in FRAME]
    if concept.parts or len(words) < 2:
        return []
    return [w for w in dict.fromkeys(words) if w in THINGS and not any(same(w, other) for other in others)]


def contrast_words(concepts: Sequence[Concept]) -> dict[str, list[str]]:
    """Contrast words of concepts, by target. Concepts without such words are left out."""
    targets = [c.target for c in concepts]
    found = {c.target: words_inside(c, targets) for c in concepts}
    return {target: words for target, words in found.items() if words}


def contrast_prompts(
    concepts: Sequence[Concept], templates: Sequence[str], count: int
) -> list[tuple[str, str]]:
    """``count`` templates for each contrast word, with the word. A word of several names appears once."""
    words = dict.fromkeys(w for found in contrast_words(concepts).values() for w in found)
    steps = [i * len(templates) // count for i in range(min(count, len(templates)))]
    return [
        (templates[(number + step) % len(templates)], word)
        for number, word in enumerate(words)
        for step in steps
    ]


def word_weight(words: int, keep: int) -> float:
    """Weight of one of ``words`` contrast words against one entry of a keep list with ``keep`` entries.

    Measured on demo-sd for "Van Gogh", as vans in 12 pictures of a van: 0 at the weight of one entry, 6 at 6,
    11 at 40, 12 at 200. Pictures of "Van Gogh" show no van at any of these weights. Many words
    together weigh at most four times the keep list, so that the list still counts.
    """
    return keep * min(1.0, 4 / max(words, 1))


def shared_rows(encoder: TextEncoder, rows: TextRows, target: str, words: Sequence[str]) -> list[int]:
    """Rows of a prompt's subject that equal rows of kept words and must not be erased.

    A causal tower does not see later words. The row of "van" in "a photo of Van Gogh" is bit-identical to the
    row in "a photo of a van" up to that point. The first words of a name can therefore only be kept or erased
    together with the ordinary words. Later words, the end token and the pads identify the name.
    """
    first = []
    for word in re.findall(r"\S+", target):
        if word.casefold() not in words:
            break
        first.append(word)
    if encoder.bidirectional or not first:
        return []
    ids = encoder.content_ids(" ".join(first))
    at = rows.rows(SUBJECT)
    return at[: len(ids)] if [rows.ids[i] for i in at[: len(ids)]] == ids and len(ids) < len(at) else []
