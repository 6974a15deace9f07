"""The finetune leaves the model as it was, however a run ends."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from engine_cases import unload
from finetune_cases import KINDS, SMALL, TINY, Listener, Stop, closed_form, equal, run, values
from trace_core.backbones import backbone_for
from trace_core.finetune.trainer import Trainer
from trace_core.lora.gating import apply

ENDINGS = ("success", "cancel", "error", "keyboard", "backward")


class Ending:
    """One way for a run to end, at a random place, and the options of that run."""

    def __init__(self, trial: int):
        self.draw = random.Random(trial)
        self.name = ENDINGS[trial % len(ENDINGS)]
        self.kind = KINDS[trial // len(ENDINGS) % len(KINDS)]
        self.inference, self.start = self.draw.random() < 0.5, self.draw.random() < 0.3
        self.config = replace(
            SMALL,
            steps=2,
            refresh=1,
            trajectories=1,
            scope=self.draw.choice(("text", "attention", "linear")),
            checkpointing=self.draw.random() < 0.5,
            objective=self.draw.choice(("trace", "ant", "esd", "gem", "aegis")),
        )
        self.error = {"success": None, "keyboard": KeyboardInterrupt}.get(self.name, Stop)

    def listener(self) -> Listener:
        return Listener(self.draw.randrange(11) if self.name in ("cancel", "keyboard") else None, self.error)

    def hook(self, network):
        """Fails inside the network, in the random call of a random layer; or where the gradient comes back
        to it.
        """
        layer = self.draw.choice(
            [m for m in network.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
        )
        left = self.draw.randrange(1, 11)

        def fail(module, given, out):
            nonlocal left
            left -= 1
            if left == 0:
                raise Stop

        def fail_backward(module, given, out):
            if out.requires_grad:
                out.register_hook(lambda gradient: fail(None, None, None))

        if self.name == "backward":
            layer, left = network, self.draw.randrange(1, 3)
            return layer.register_forward_hook(fail_backward)
        return layer.register_forward_hook(fail) if self.name == "error" else None


@pytest.mark.parametrize("trial", range(50))
def test_model_is_as_it_was_however_the_run_ends(tiny, families, trial):
    """Bit for bit, object for object, flag for flag; half of the runs are in inference mode, as in
    ComfyUI's nodes.
    """
    ending = Ending(trial)
    family = families[ending.kind]
    with torch.inference_mode(ending.inference):
        model = family.model(**TINY[ending.kind])
        start = closed_form(family, model) if ending.start else None
        backbone_for(model).load()
        before = tiny.Snapshot(model)
        hook = ending.hook(model.model.diffusion_model)
        try:
            run(family, model, ending.config, start=start, report=ending.listener())
            ended = None
        except (Stop, KeyboardInterrupt) as error:
            ended = type(error)
        finally:
            if hook:
                hook.remove()
        assert ended == ending.error
        assert before.differences(tiny.Snapshot(model)) == []


@pytest.mark.parametrize("stop", [None, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_model_with_patches_keeps_them_and_comes_off_whole(tiny, families, kind, stop):
    family = families[kind]
    with torch.inference_mode():
        model = family.model(**TINY[kind])
        original, plain = values(model), family.sample(model, "a cat")
        patched = apply(model, closed_form(family, model))
        edited = family.sample(patched, "a cat")
        backbone_for(patched).load()
        before = tiny.Snapshot(patched)
        try:
            run(family, patched, replace(SMALL, steps=2), report=Listener(stop))
        except Stop:
            pass
        assert before.differences(tiny.Snapshot(patched)) == []
        assert torch.equal(family.sample(patched, "a cat"), edited) and not torch.equal(edited, plain)
        getattr(patched, "detach", unload)()  # older engines have no such call
        assert equal(values(model), original)
        assert torch.equal(family.sample(model, "a cat"), plain)
        assert torch.equal(family.sample(patched, "a cat"), edited)
        unload()
        assert equal(values(model), original)


def test_patches_count_as_part_of_the_model(families):
    """What is kept is the model as it came in, with its patches."""
    family = families["sd1"]
    model = family.model(**TINY["sd1"])
    patched = apply(model, closed_form(family, model))
    seen = {}

    def look(self, *args, plain=Trainer.fill_bank):
        plain(self, *args)
        seen.update(points=self.bank.points["keep"], prompts=self.prompts)
        raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Trainer, "fill_bank", look)
        run(family, patched)
    edited, points = backbone_for(patched), seen["points"]
    edited.load()
    with torch.no_grad():
        out = replace(seen["prompts"].batch(points.prompt), backbone=edited).predict(
            points.x.float(), points.sigma
        )
    assert (points.predictions["concept"].float() - out).norm() < 1e-3 * out.norm()
