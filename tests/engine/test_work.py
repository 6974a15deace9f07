"""Work is not lost, and models come in several files: the command line on the real things."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine_cases import LEAST_WORK, least_work
from trace_core.backbones.sampling import SamplerConfig, sample
from trace_core.cli import main, models, training
from trace_core.closed_form import ClosedFormConfig, erase
from trace_core.errors import ConceptError
from trace_core.finetune import FinetuneConfig, finetune
from trace_core.finetune.resume import TrainingState
from trace_core.lora import ErasureLora
from trace_core.lora.fusion import fuse
from trace_core.lora.gating import apply
from trace_core.text.concepts import Concept

TINY = LEAST_WORK | dict(steps=3)


@pytest.fixture(scope="module", autouse=True)
def tiny_work(engine):
    """The command line has no options to make a finetune this small."""
    with least_work(**TINY):
        yield


@pytest.fixture
def limit():
    """``limit(n)``: from now on no file can be longer than n bytes; ``limit()`` ends it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size=before[0]: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def command(out: Path, *more: str, erase: str = "cat") -> list[str]:
    return [
        "erase",
        "--model",
        "demo-sd",
        "--erase",
        erase,
        "--keep",
        "dog",
        "--method",
        "esd",
        "--out",
        str(out),
        *more,
    ]


@pytest.fixture(scope="module")
def expected(tiny_work, tmp_path_factory) -> bytes:
    out = tmp_path_factory.mktemp("expected") / "cat.safetensors"
    assert main(command(out)) == 0
    return out.read_bytes()


# ------------------------------------------------------------------------------------------- full disks


def test_training_goes_on_where_no_state_can_be_written(expected, limit, tmp_path, capsys):
    out, state = tmp_path / "cat.safetensors", tmp_path / "run.safetensors"
    limit(20_000)
    assert main(command(out, "--resume", str(state))) == 2
    limit()
    said = capsys.readouterr().err
    assert (
        said.count(f"warning: cannot write '{state}'") == 1
        and "Training continues, without a state on disk" in said
    )
    assert (
        f"error: cannot write '{out}': " in said
        and "The erasure is lost; make room, and run the same command again" in said
    )
    assert not list(tmp_path.iterdir())


def test_the_last_good_state_stays_and_is_told(expected, limit, tmp_path, capsys, monkeypatch):
    out, state, save = tmp_path / "cat.safetensors", tmp_path / "run.safetensors", TrainingState.save

    def save_and_fill(self, path):
        save(self, path)
        if self.step == 1:
            limit(20_000)

    monkeypatch.setattr(TrainingState, "save", save_and_fill)
    assert main(command(out, "--resume", str(state))) == 2
    limit()
    said = capsys.readouterr().err
    assert f"Training continues, the state of step 1 stays in '{state}'" in said
    assert (
        f"The training state of step 1 is in '{state}'; make room, and run the same command to continue"
        in said
    )
    assert TrainingState.load(state).step == 1 and [f.name for f in tmp_path.iterdir()] == ["run.safetensors"]
    monkeypatch.undo()
    training.options = lambda args, method, options=training.options: options(args, method)
    assert main(command(out, "--resume", str(state))) == 0
    assert "continuing from step 1" in capsys.readouterr().out
    assert out.read_bytes() == expected and not state.exists()


def test_a_result_without_a_state_is_whole(expected, tmp_path, capsys, monkeypatch):
    """Only the state has no room: the result is written, and the report says so."""
    out, write = tmp_path / "cat.safetensors", training.Training._keep

    def keep(self, state):
        self.file = Path("/dev/full/state")
        write(self, state)
        self.file = tmp_path / "run.safetensors"

    monkeypatch.setattr(training.Training, "_keep", keep)
    assert (
        main(command(out, "--resume", str(tmp_path / "run.safetensors"), "--json", str(tmp_path / "r.json")))
        == 0
    )
    report = json.loads((tmp_path / "r.json").read_text())
    assert (
        out.read_bytes() == expected and "the training state could not be written" in report["warnings"][-1]
    )
    assert {"load", "train", "save", "all"} <= set(report["phases"])


# ----------------------------------------------------------------------------------------- Ctrl-C, other runs


def interrupted(monkeypatch, at: int) -> None:
    """Ctrl-C before a training step."""
    call = training.Bar.__call__

    def stop(self, progress):
        call(self, progress)
        if progress.phase == "train" and progress.step == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.Bar, "__call__", stop)


def test_ctrl_c_says_where_the_state_is(expected, tmp_path, capsys, monkeypatch):
    out, state = tmp_path / "cat.safetensors", tmp_path / "run.safetensors"
    interrupted(monkeypatch, 2)
    assert main(command(out, "--resume", str(state))) == 130
    assert (
        f"stopped; the training state of step 2 is in '{state}'; run the same command to continue from there"
        in capsys.readouterr().err
    )
    assert main(command(tmp_path / "other.safetensors")) == 130
    assert (
        "stopped; nothing was written. With --resume FILE a training saves its state"
        in capsys.readouterr().err
    )
    monkeypatch.undo()
    training.options = lambda args, method, options=training.options: options(args, method)
    monkeypatch.setattr(
        "trace_core.cli.commands.open_model", lambda *_, **__: pytest.fail("the model was loaded")
    )
    assert main(command(out, "--resume", str(state), erase="ship")) == 2
    said = capsys.readouterr().err
    assert said == (
        "error: cannot resume: the training state was made for 'cat', but this run erases 'ship'; give "
        "the same concepts, or another "
        "--resume file\n"
    )
    monkeypatch.undo()
    assert main(command(out, "--resume", str(state))) == 0
    assert out.read_bytes() == expected and not state.exists()


# ------------------------------------------------------------------------------------------- text encoders


@pytest.mark.parametrize("entry", ["closed form", "finetune", "fusion"])
def test_a_clip_that_does_not_belong_is_refused_everywhere(families, entry):
    model, concepts = families["sd1"].model(), [Concept("cat")]
    other = families["flux"].clip
    lora = erase(model, families["sd1"].clip, concepts, ["dog"], ClosedFormConfig()).lora
    run = {
        "closed form": lambda clip: erase(model, clip, concepts, ["dog"]),
        "finetune": lambda clip: finetune(model, clip, concepts, ["dog"], FinetuneConfig(**TINY)),
        "fusion": lambda clip: fuse(model, clip, [lora, lora]),
    }[entry]
    with pytest.raises(
        ConceptError, match="no CLIP is connected, or its loader found none in the file; connect the CLIP"
    ):
        run(None)
    with pytest.raises(
        ConceptError,
        match=r"the text encoder gives rows of \d+ numbers, but the model reads \d+; connect the CLIP that "
        r"belongs",
    ):
        run(other)


def test_patches_on_fp8_weights_are_sampled_outside_inference_mode(families, tiny):
    """As on the command line: ComfyUI's server samples in inference mode, where its rounding has no
    gradient to think of.
    """
    import comfy.supported_models

    def model(dtype):
        config = comfy.supported_models.SD15(
            tiny.unet_config(context_dim=families["sd1"].options.get("context_dim", 256))
        )
        config.unet_config["num_heads"] = 2
        config.set_inference_dtype(dtype, torch.float32)
        made = config.get_model({}, device=torch.device("cpu"))
        tiny.initialise(made.diffusion_model, 0)
        return tiny.ModelPatcher(made, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))

    kept = model(torch.float8_e4m3fn)
    module = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k"
    rows, columns = kept.model.get_submodule(module).weight.shape
    lora = ErasureLora.from_factors({module: (torch.randn(rows, 2), torch.randn(2, columns))})
    assert not torch.is_inference_mode_enabled()
    options = SamplerConfig.for_model(kept, steps=2, width=64, height=64)
    erased, base = (
        sample(m, families["sd1"].clip, ["a cat"], [0], options) for m in (apply(kept, lora), kept)
    )
    assert torch.isfinite(erased).all() and not torch.equal(erased, base)


# ------------------------------------------------------------------------------------------- models in files


@pytest.fixture(scope="module")
def files(tiny, engine, tmp_path_factory) -> Path:
    """A checkpoint of SD1.5, and its parts as files of their own."""
    if not engine.full:
        pytest.skip("needs a ComfyUI checkout: the tokenizer's files")
    folder, state = tmp_path_factory.mktemp("files"), tiny.sd15_checkpoint_state_dict()
    part = lambda prefix: {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}  # noqa: E731
    save_file(state, folder / "full.safetensors")
    save_file(part("model.diffusion_model."), folder / "unet.safetensors")
    save_file(part("cond_stage_model.transformer."), folder / "clip_l.safetensors")
    save_file(part("first_stage_model."), folder / "vae.safetensors")
    save_file(
        {k: v for k, v in state.items() if not k.startswith("cond_stage_model.")},
        folder / "noclip.safetensors",
    )
    return folder


def test_a_model_in_three_files_is_the_checkpoint(files):
    whole = models.open_model(str(files / "full.safetensors"), vae=True)
    source = models.Source(
        str(files / "unet.safetensors"), (str(files / "clip_l.safetensors"),), str(files / "vae.safetensors")
    )
    parts = models.open_model(source, vae=True)
    same = lambda a, b: all(torch.equal(v, b[k]) for k, v in a.items()) and a.keys() == b.keys()  # noqa: E731
    assert same(whole[0].model.diffusion_model.state_dict(), parts[0].model.diffusion_model.state_dict())
    rows = [clip.encode_from_tokens(clip.tokenize("a cat")) for _, clip, _ in (whole, parts)]
    assert torch.equal(*rows)
    assert same(whole[2].first_stage_model.state_dict(), parts[2].first_stage_model.state_dict())


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32", "fp8_e4m3fn", "fp8_e5m2"])
def test_the_dtype_is_that_of_the_weights(files, dtype, monkeypatch):
    monkeypatch.setattr(models, "_check_clip", lambda *_: None)
    monkeypatch.setattr(models, "_clip", lambda *_: None)
    source = models.Source(str(files / "unet.safetensors"), ("clip_l.safetensors",), dtype=dtype)
    monkeypatch.chdir(files)
    model = models.open_model(source)[0]
    assert model.model.diffusion_model.middle_block[1].transformer_blocks[
        0
    ].attn2.to_k.weight.dtype == getattr(torch, models.DTYPES[dtype])


@pytest.mark.parametrize("ending", ["sft", "SAFETENSORS"])
def test_other_endings_of_a_safetensors_file(files, ending, monkeypatch, tmp_path):
    monkeypatch.chdir(files)
    (tmp_path / f"unet.{ending}").symlink_to(files / "unet.safetensors")
    model = models.open_model(models.Source(str(tmp_path / f"unet.{ending}"), ("clip_l.safetensors",)))[0]
    assert model.model.diffusion_model.middle_block


MISSING = {
    "no text encoder": (["unet.safetensors"],
    "'unet.safetensors' has no text encoder; give its files with --clip"),
    "none in the checkpoint": (["noclip.safetensors"],
    "'noclip.safetensors' has no text encoder; give its files with --clip"),
    "no VAE": (["unet.safetensors", "--clip", "clip_l.safetensors"],
    "'unet.safetensors' has no VAE, which pictures need; give a VAE file with --vae"),
    "no such file": (["unet.safetensors", "--clip", "t5.safetensors"], "'t5.safetensors' is not a file"),
    "no safetensors": (["unet.safetensors", "--clip", "clip.pt"],
    "--clip 'clip.pt' must be a .safetensors or .gguf file; other formats can run code"),
    "a demo model": (["demo-sd", "--clip", "clip_l.safetensors"],
    "--clip needs a model file; demo-sd includes everything"),
    "a demo model's type": (["demo-sd", "--dtype", "fp16"], "--dtype needs a model file"),
    "a VAE as text encoder": (["unet.safetensors", "--clip", "vae.safetensors", "--vae", "vae.safetensors"],
    "--clip 'vae.safetensors' is not a text encoder: it has none"),
    "a text encoder as VAE": (["unet.safetensors", "--clip", "clip_l.safetensors", "--vae",
    "clip_l.safetensors"], "cannot load 'clip_l.safetensors' as a VAE"),
    "a VAE as model": (["vae.safetensors"], "--model 'vae.safetensors' is a VAE, not a model"),
    "a LoRA as model": (["lora.safetensors"],
    "--model 'lora.safetensors' is a LoRA, not a model; a LoRA is given with --lora"),
    "a folder": (["folder"], "--model 'folder' is a folder; name a file in it"),
    "a part": (["unet-00001-of-00003.safetensors"], "is one of 3 parts of a model"),
    "no GGUF loader": (["flux.gguf", "--clip", "clip_l.safetensors", "--vae", "vae.safetensors"],
    "needs the custom nodes ComfyUI-GGUF"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_named(files, name, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(files)
    (files / "flux.gguf").write_bytes(b"GGUF")
    (files / "clip.pt").write_bytes(b"")
    (files / "folder").mkdir(exist_ok=True)
    (files / "unet-00001-of-00003.safetensors").write_bytes(b"")
    save_file({"diffusion_model.a.lora_up.weight": torch.ones(1)}, files / "lora.safetensors")
    monkeypatch.setattr(models, "GGUF_NODES", "nothing.py")
    # another test may have loaded it
    monkeypatch.delitem(sys.modules, f"{models.GGUF_PACK}.nodes", raising=False)
    line, message = MISSING[name]
    assert main(["generate", "--model", *line, "--prompt", "a cat", "--out", str(tmp_path / "x.png")]) == 2
    assert message in capsys.readouterr().err
