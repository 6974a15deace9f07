"""What is read from lists, on model objects: anchors that are erased themselves, kinds, and the command
line's own words.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from trace_core.cli import main
from trace_core.closed_form import ClosedFormConfig, erase
from trace_core.finetune import finetune
from trace_core.finetune.options import FinetuneConfig
from trace_core.finetune.trainer import Trainer
from trace_core.lora import ErasureLora
from trace_core.methods import Eraser
from trace_core.text.concepts import Concept
from trace_core.text.grammar import parse_concepts
from trace_core.text.templates import TEMPLATES

KEEP = ["bird", "car"]
ROUND, CHAIN = "cat -> dog; dog -> cat", "cat -> dog; dog -> house"
SMALL = FinetuneConfig(
    objective="esd",
    steps=2,
    batch=4,
    trajectories=2,
    keep_trajectories=2,
    refresh=2,
    sampling_steps=2,
    rank=2,
    width=32,
    height=32,
)
LEVEL = dict(model_channels=32, channel_mult=(1,), num_res_blocks=1, transformer_depth=[1])


@pytest.fixture(autouse=True)
def few_templates(monkeypatch):
    monkeypatch.setitem(TEMPLATES, "object", ("{}", "a photo of a {}", "a {}, red background"))


@pytest.fixture(scope="module")
def sd(families):
    return families["sd1"].model(), families["sd1"].clip


def equal(a: ErasureLora, b: ErasureLora) -> bool:
    return a.modules.keys() == b.modules.keys() and all(
        torch.equal(x, y) for m in a.modules for x, y in zip(a.modules[m], b.modules[m])
    )


@pytest.mark.parametrize("policy", ["projection", "uce", "mace", "trce"])
@pytest.mark.parametrize(("given", "meant"), [(ROUND, "cat; dog"), (CHAIN, "cat -> house; dog -> house")])
def test_the_closed_form_follows_the_arrows(sd, policy, given, meant):
    """Every policy: what is written is what the arrows lead to, and it is said."""
    made, wanted = (
        erase(*sd, parse_concepts(lines), KEEP, ClosedFormConfig(policy=policy)) for lines in (given, meant)
    )
    assert equal(made.lora, wanted.lora)
    assert made.lora.metadata["trace.concepts"] == wanted.lora.metadata["trace.concepts"]
    assert made.report["notes"] and not wanted.report["notes"]
    assert "'dog' is erased as well" in made.report["notes"][0]


def test_the_finetune_follows_the_arrows(families):
    results = []
    for lines in (CHAIN, "cat -> house; dog -> house"):
        model = families["sd1"].model(**LEVEL)
        results.append(finetune(model, families["sd1"].clip, parse_concepts(lines), KEEP, SMALL))
    assert equal(results[0].lora, results[1].lora)
    assert [len(r.report["notes"]) for r in results] == [1, 0]
    assert [c["anchor"] for c in results[0].report["concepts"]] == ["house", "house"]


def test_concepts_that_are_made_apart_see_each_other(sd):
    """Each is made alone, so the list must be looked at before it is taken apart."""
    made, wanted = (
        Eraser("projection", KEEP, per_concept=True).fit(*sd, lines) for lines in (ROUND, "cat; dog")
    )
    assert equal(made.lora, wanted.lora) and len(made.report["notes"]) == 2


def test_a_fusion_says_that_an_anchor_is_erased_by_another_file(sd):
    loras = [erase(*sd, parse_concepts(line), KEEP).lora for line in ("cat -> dog", "dog")]
    from trace_core.lora.fusion import fuse

    warnings = fuse(*sd, loras, KEEP).report["warnings"]
    assert [w for w in warnings if "'cat -> dog': 'dog' is erased as well" in w and "in one list" in w]


def test_each_concept_has_the_prompts_of_its_own_kind(families):
    """Of a list of several kinds; a given one goes before the chosen one."""
    concepts, seen = [Concept("cat"), Concept("Van Gogh"), Concept("bird", kind_given="person")], {}

    class Stop(Exception):
        pass

    def look(self, *args):
        seen.update(trainer=self)
        raise Stop

    for kind, style in (("auto", "a painting of a city in Van Gogh"), ("object", "a photo of a Van Gogh")):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
            patch.setattr(Trainer, "fill_bank", look)
            finetune(
                families["sd1"].model(**LEVEL),
                families["sd1"].clip,
                concepts,
                ["car"],
                replace(SMALL, kind=kind),
            )
        erased = {seen["trainer"].prompts.texts[n] for n, _ in seen["trainer"].erase_pairs}
        assert {"a photo of a cat", style, "bird at a public event"} <= erased


def test_kinds_are_in_report_and_file(sd):
    result = erase(
        *sd, [Concept("Van Gogh"), Concept("cat"), Concept("bird", "car", kind_given="style")], KEEP[1:]
    )
    assert [(k["kind"], k["why"]) for k in result.report["kinds"]] == [
        ("style", "list of artists"),
        ("object", "on no list of names"),
        ("style", "given in the list"),
    ]
    assert result.lora.info()["trace.concepts"] == [
        ["Van Gogh", "", 1.0],
        ["cat", "", 1.0],
        ["bird", "car", 1.0, 1.0, [], "style"],
    ]


def test_the_node_says_it(pack, sd, engine):
    node = pack.NODE_CLASS_MAPPINGS["TRACE_ClosedFormProjection"]()
    text = node.erase(*sd, "1. cat => dog\n2. dog -> house\n3. Van Gogh", "- bird", "trace", 1.0)["result"][2]
    assert "> **Note:** 'cat -> dog': 'dog' is erased as well, so 'cat' is steered to 'house'" in text
    assert "| Van Gogh | style | list of artists |" in text
    with pytest.raises(ValueError, match="erase, line 2: 'a, b' contains a comma"):
        node.erase(*sd, "cat\na, b", "", "trace", 1.0)


# ------------------------------------------------------------------------------------------- the command line


def test_dry_run_reads_the_lists_and_loads_no_model(engine, tmp_path, capsys, monkeypatch):
    from trace_core.cli import commands

    monkeypatch.setattr(commands, "open_model", lambda *_: pytest.fail("a model was loaded"))
    names = tmp_path / "names.csv"
    names.write_text(
        "Name,tag\n"
        + "".join(f"Nobody Known {i},x\n" for i in range(1498))
        + "Claude Monet,x\nTaylor Swift,x\n",
        encoding="utf-8-sig",
    )
    before = sorted(tmp_path.rglob("*"))
    assert (
        main(
            [
                "erase",
                "--model",
                "demo-sd",
                "--erase-file",
                str(names),
                "--erase",
                "cat -> dog",
                "--keep",
                "dog; horse",
                "--dry-run",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert (
        "read 1,501 concepts: 1,499 object (on no list of names), 1 style (list of artists), 1 person (list "
        "of people); 1 with an anchor" in said
    )
    assert "keep: 2 named" in said and "and 1,489 more" in said and "no model was loaded" in said
    assert sorted(tmp_path.rglob("*")) == before
    out = tmp_path / "lists.json"
    assert main(["erase", "--model", "demo-sd", "--erase", "cat", "--dry-run", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert (
        found["counts"] == {"object": 1}
        and found["concepts"][0]["why"] == "on no list of names"
        and found["default_keep"] > 30
    )


def test_out_is_asked_for_without_dry_run(engine, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["erase", "--model", "demo-sd", "--erase", "cat"])
    assert caught.value.code == 2 and "required: --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("cat\n\nbird, fish\n", [], "LIST, line 3: 'bird, fish' contains a comma"),
        (
            "cat\n",
            ["--erase", "dog", "--erase", "Cat"],
            "error: --erase: 'Cat' already stands in --erase-file LIST, line 1",
        ),
        ("cat\n", ["--erase", "a, b"], "error: --erase: 'a, b' contains a comma"),
        ("cat\ndog -> \n", ["--keep", "(dog:1.2)"], "error: --keep: '(dog:1.2)' is a prompt weight"),
        (
            "cat\nCat\nCAT\n",
            [],
            "LIST, line 2: 'Cat' already stands on line 1; --erase-file LIST, line 3: 'CAT' already stands "
            "on line 1",
        ),
        ("\ufeffcat\n", ["--keep", "cat"], "'cat' stands in the erase list and in the keep list"),
    ],
)
def test_errors_name_the_file_and_its_line_or_the_option(engine, tmp_path, capsys, content, options, says):
    file = tmp_path / "list.txt"
    file.write_text(content, encoding="utf-8")
    assert (
        main(
            [
                "erase",
                "--model",
                "demo-sd",
                "--erase-file",
                str(file),
                *options,
                "--out",
                str(tmp_path / "x.safetensors"),
            ]
        )
        == 2
    )
    assert says.replace("LIST", str(file)) in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["list.txt"]


def test_a_run_says_what_it_read(engine, tmp_path, capsys):
    out = tmp_path / "x.safetensors"
    options = ["--erase", "cat -> dog; dog -> cat", "--out", str(out), "--json", str(tmp_path / "x.json")]
    assert main(["erase", "--model", "demo-sd", *options]) == 0
    said = capsys.readouterr().out
    assert said.startswith("read 2 concepts: 2 object (on no list of names)\nkeep: the default list of ")
    assert "note: 'cat -> dog': 'dog' is erased as well, and the arrows form a circle" in said
    assert ErasureLora.load(out).info()["trace.concepts"] == [["cat", "", 1.0], ["dog", "", 1.0]]
    assert len(json.loads((tmp_path / "x.json").read_text())["read"]["notes"]) == 2


def test_two_concepts_that_steer_to_each_other_are_both_gone(engine, tmp_path):
    """In pictures: half of the cats stayed when the rows of the two were to be swapped."""
    from trace_core.backbones.sampling import SamplerConfig, sample
    from trace_core.demo import domain, loader
    from trace_core.lora.gating import apply

    out = tmp_path / "x.safetensors"
    assert (
        main(
            [
                "erase",
                "--model",
                "demo-sd",
                "--erase",
                "cat -> dog",
                "--erase",
                "dog -> cat",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    model, clip, vae = loader.load("demo-sd")
    measured = domain.domain()
    prompts = ["a photo of a cat, google style"] * 16 + ["a photo of a dog, google style"] * 16
    pictures = vae.decode(
        sample(
            apply(model, ErasureLora.load(out)),
            clip,
            prompts,
            list(range(32)),
            SamplerConfig.for_model(model),
        )
    )
    seen = measured.judge(pictures, "object").argmax(-1).tolist()
    names = list(measured.objects)
    assert sum(n in (names.index("cat"), names.index("dog")) for n in seen[:16]) <= 2
    assert sum(n in (names.index("cat"), names.index("dog")) for n in seen[16:]) <= 2
