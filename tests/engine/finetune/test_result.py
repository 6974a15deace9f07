"""The finetune's result is what the student was, as a file and on a model."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch

from finetune_cases import KEEP, KINDS, SMALL, TINY, closed_form, run, same_factors
from trace_core.backbones import backbone_for
from trace_core.finetune.trainer import Trainer
from trace_core.lora import ErasureLora
from trace_core.lora.gating import apply


class Student:
    """What the network predicts at the end of training, before the adapters come off."""

    def __enter__(self):
        plain, self.patch = Trainer.train, pytest.MonkeyPatch()
        generator = torch.Generator().manual_seed(2)

        def train(trainer, adapters, *rest):
            plain(trainer, adapters, *rest)
            sigma = torch.tensor([0.9, 0.3])
            x = torch.randn(2, *trainer.shape, generator=generator)
            ((_, condition),) = trainer.prompts.batch([trainer.erase_pairs[0][0], trainer.uncond]).parts
            self.given = x, sigma, condition
            with torch.no_grad():
                for state in ("student", "base"):
                    adapters.use(state)
                    setattr(self, state, trainer.backbone.predict(*self.given))

        self.patch.setattr(Trainer, "train", train)
        return self

    def __exit__(self, *error):
        self.patch.undo()

    @torch.no_grad()
    def of(self, model) -> torch.Tensor:
        backbone = backbone_for(model)
        backbone.load()
        return backbone.predict(*self.given)


@pytest.mark.parametrize("scope", ["text", "linear"])
@pytest.mark.parametrize("kind", KINDS)
def test_result_is_what_the_student_was(families, kind, scope, tmp_path, caplog):
    """As a file in the stock loader and applied by us: the start, the adapter, and nothing else."""
    import comfy.sd
    import comfy.utils

    family, model = families[kind], families[kind].model(**TINY[kind])
    start = closed_form(family, model)
    with Student() as student:
        result = run(family, model, replace(SMALL, scope=scope, lr=0.03), start=start)
    assert set(result.lora.modules) == set(start.modules) | set(result.adapter.modules)
    for module, (up, down) in result.lora.modules.items():
        parts = [lora.delta(module) for lora in (start, result.adapter) if module in lora.modules]
        assert up.dtype == down.dtype == torch.float16
        assert (result.lora.delta(module) - sum(parts)).norm() < 1e-6 * sum(parts).norm()
    wanted, effect = student.student, (student.student - student.base).norm()
    assert effect > 0.02 * wanted.norm(), "an edit that small would show nothing"
    path = result.lora.save(tmp_path / "cat.safetensors")
    with caplog.at_level(logging.DEBUG):
        stock, _ = comfy.sd.load_lora_for_models(
            model, None, comfy.utils.load_torch_file(str(path), safe_load=True), 1.0, 0.0
        )
    assert [r.getMessage() for r in caplog.records if "not loaded" in r.getMessage().lower()] == []
    assert set(stock.patches) == {m + ".weight" for m in result.lora.modules}
    for edited in (apply(model, result.lora), stock, apply(model, ErasureLora.load(path))):
        assert (student.of(edited) - wanted).norm() < 1e-3 * wanted.norm() + 0.01 * effect


def test_without_a_start_the_result_is_the_adapter(families):
    result = run(families["sd1"], families["sd1"].model(**TINY["sd1"]))
    assert same_factors(result.lora, result.adapter) and result.lora.rank == SMALL.rank


def test_file_says_how_it_was_made(families):
    family, model = families["flux"], families["flux"].model(**TINY["flux"])
    result = run(family, model, replace(SMALL, seed=3, window="auto"), start=closed_form(family, model))
    info = result.lora.info()
    assert info["trace.concepts"] == [["cat", "dog", 1.0]] and info["trace.keep"] == KEEP
    assert info["trace.base"] == {"kind": "flux", "hash": backbone_for(model).model_hash()}
    assert result.lora.window == (0.0, 1.0), "the window is where it was trained; it is applied everywhere"
    report = json.loads(json.dumps(result.report))
    assert report["method"] == "trace" and report["window"] == list(result.report["parameters"]["window"])
    assert 0 <= report["window"][0] < report["window"][1] == 1.0


def test_training_teaches(families):
    """The concept's prediction moves towards its anchor's, the one that is kept stays where it was."""
    family, model = families["flux"], families["flux"].model(**TINY["flux"])
    config = replace(
        SMALL, steps=40, batch=16, trajectories=4, refresh=40, eta=0.0, window=(0.0, 1.0), scope="linear"
    )
    losses = run(family, model, config).report["losses"]
    early, late = (sum(row["erase"] for row in part) for part in (losses[:5], losses[-5:]))
    assert late < 0.5 * early
    assert losses[-1]["keep"] < losses[0]["erase"]
