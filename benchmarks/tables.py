"""Write the README's tables from ``benchmarks/results/*.json``: ``python benchmarks/tables.py``
(``--check`` only compares).
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the tests load this file by its path
from table_text import ROOT  # noqa: E402
from tables_attacks import attacks, hardening, recoverability  # noqa: E402
from tables_claims import claims  # noqa: E402
from tables_cost import (  # noqa: E402
    closed_form,
    families,
    finetune,
    gating,
    real_shapes,
    real_shapes_phases,
    verify_shapes,
)
from tables_erasure import (  # noqa: E402
    conditional,
    erasure,
    judge,
    mass,
    methods,
    per_class,
    prompts,
    similar,
    summary,
)
from tables_faults import faults, soak  # noqa: E402
from tables_people import one_more, people, trait  # noqa: E402
from tables_prompts import places  # noqa: E402
from tables_verdicts import verdicts  # noqa: E402

TABLES = {
    table.__name__: table
    for table in (
        summary,
        methods,
        erasure,
        per_class,
        judge,
        closed_form,
        gating,
        conditional,
        attacks,
        hardening,
        recoverability,
        mass,
        claims,
        finetune,
        real_shapes,
        real_shapes_phases,
        verify_shapes,
        families,
        prompts,
        places,
        similar,
        people,
        one_more,
        trait,
        verdicts,
        faults,
        soak,
    )
}


def fill(text: str) -> str:
    """Replace what stands between ``<!-- table NAME -->`` and ``<!-- end -->``."""

    def table(match: re.Match) -> str:
        return f"<!-- table {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->.*?<!-- end -->", table, text, flags=re.S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a page is not what the results say")
    args = parser.parse_args()
    stale = 0
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        old = page.read_text(encoding="utf-8")
        new = fill(old)
        stale += new != old
        if not args.check:
            page.write_text(new, encoding="utf-8")
    return int(bool(stale and args.check))


if __name__ == "__main__":
    sys.exit(main())
