"""Draw the 200 characters of demo-people, once: ``python -m trace_core.demo.recipe.make_people``.

Names are made up. Most people share a first or a last name with somebody.
"""

from __future__ import annotations

import json
import random
from itertools import combinations

from ..people import PEOPLE_FILE, TRAITS

COUNT = 200
PIRATES = 12

SINGLE = """
Zorvan Pellini Quibbet Marroz Ysolda Trevin Oskelle Bramwick Fenjola Dastrel Kirubo Lomaxa Wendalore
Nivara Tolbiac
""".split()
THREE = """
Mira van Holt
Pieter van Holt
Lena de Brauw
Otto de Brauw
Sami al Rashan
Noor al Rashan
Ines da Corva
Rui da Corva
Mary Ann Thistle
John Paul Thistle
Anna Lou Fenwick
Billy Joe Fenwick
Karl von Ebben
Ute von Ebben
Rosa del Prado
""".strip().splitlines()
#: Two people with an accent in their names, and two families that share first names
CHOSEN = ["Zoë Lindqvale", "José Arrecife", "Anna Berg", "Anna Holt", "Peter Berg", "Peter Holt"]
FIRST = """
Adela Bruno Clara Dario Elsa Fabio Greta Hugo Irma Jonas Katya Leo Maren Nils Olga Paolo Rita Stefan
Tilda Uwe Vera Walter Xenia Yuri Zelda Amara Boris Celia Dmitri Edith Felix Gwen Harun Isolde Jamal
Kirsten Luca Mabel Nadir Opal Priya Quentin Rosalind Silas Thora Umberto Viola Winston Yara Zane
Aiko Bastian Corinne Desmond Eloise Florian
""".split()
LAST = """
Abernix Brackwell Corvino Dunmore Eastergaard Farrowby Grimsall Hollander Ivanetz Jespersen Karkoff
Lindqvale Morvane Nakadai Ostrowe Pemberley Quintero Rosvall Santorel Tamberlin Ulvaeng Vandermark
Wexcombe Yamashiro Zabriski Alcantar Bellweather Castellan Drummond Ekholm Fitzmoor Galloway
Hartigan Inglewood Jorvik Kestrel Lombardi Montague Norwood Osterman Pascoe Ravenel Sandoval
Thackeray Underhill Valdane Whitlock Yarrow Zeller Ashdown
""".split()


def names(rng: random.Random) -> list[str]:
    """COUNT different names of one to three words; many share a word."""
    out = [*CHOSEN, *SINGLE, *THREE]
    while len(out) < COUNT:
        name = f"{rng.choice(FIRST)} {rng.choice(LAST)}"
        if name not in out:
            out.append(name)
    return out


def differ(a: dict[str, str], b: dict[str, str]) -> int:
    """In how many traits two people differ as one sees it: without hair there is no hair colour."""
    bald = "no hair" in (a["hair"], b["hair"])
    return sum(a[t] != b[t] for t in TRAITS if not (bald and t == "hair_colour"))


def looks(rng: random.Random) -> list[dict[str, str]]:
    """COUNT combinations of traits, any two at least two apart, and most of them three."""
    found: list[dict[str, str]] = []
    while len(found) < COUNT:
        tries = [{t: rng.choice(values) for t, values in TRAITS.items()} for _ in range(64)]
        far = max(tries, key=lambda new: min((differ(new, old) for old in found), default=9))
        if min((differ(far, old) for old in found), default=9) >= 2:
            found.append(far)
    return found


def noun(traits: dict[str, str], rng: random.Random) -> str:
    if traits["beard"] != "no beard":
        return "man"
    return rng.choice(["woman", "woman", "woman", "man"])


def main() -> None:
    rng = random.Random(7)
    rows = [
        {"name": n} | t | {"noun": noun(t, rng), "pirate": False}
        for n, t in zip(names(rng), looks(rng), strict=True)
    ]
    bare = [r for r in rows if r["glasses"] == "no glasses"]
    for row in rng.sample(bare, PIRATES):
        row["pirate"] = True
    rng.shuffle(rows)
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    PEOPLE_FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    distances = [differ(a, b) for a, b in combinations(rows, 2)]
    print({d: distances.count(d) for d in sorted(set(distances))})


if __name__ == "__main__":
    main()
