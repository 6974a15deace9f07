"""People and an unasked-for trait, erased on the command line and measured by the judge."""

from __future__ import annotations

import json

import pytest

from trace_core.cli.main import main


@pytest.fixture(scope="module")
def folder(engine, tmp_path_factory):
    return tmp_path_factory.mktemp("people")


def measured(folder, name: str, concept: str, *more: str) -> dict:
    """Erase from demo-people with the defaults, and evaluate with few pictures."""
    file, out = folder / f"{name}.safetensors", folder / f"{name}.json"
    what = ["--model", "demo-people", "--erase", concept]
    assert main(["erase", *what, "--out", str(file), *more]) == 0
    few = ["--lora", str(file), "--samples", "6", "--others", "1", "--json", str(out)]
    assert main(["evaluate", *what, *few]) == 0
    return json.loads(out.read_text())


def test_one_person_goes_and_those_who_share_a_name_stay(folder, capsys):
    found = measured(folder, "person", "Anna Berg", "--kind", "person")
    assert found["acc_e"] <= 1 / 6
    assert found["acc_s"] >= 0.95
    assert found["sharers"]["acc"] >= 0.9
    assert "people who share a name with an erased one" in capsys.readouterr().out


@pytest.mark.once
def test_what_prompts_only_imply_goes(folder, capsys):
    implied = folder / "implied.txt"
    implied.write_text(
        "a portrait of Kirubo at the harbour\na portrait of Uwe Kestrel on a ship\n"
        "a portrait of Walter Nakadai at a pirate party\na man on a ship\na woman at a pirate party\n"
        "a person at the harbour\n"
    )
    more = ["--kind", "explicit", "--method", "trace", "--implied-file", str(implied)]
    found = measured(folder, "trait", "eye patch", *more)
    for kind in ("named", "implied"):
        assert found["trait"][kind]["before"] > 0.25
        assert found["trait"][kind]["after"] <= 1 / 6
    assert found["acc_s"] >= 0.85
    assert "prompts that imply it: shown in" in capsys.readouterr().out
