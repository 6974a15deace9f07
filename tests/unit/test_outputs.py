"""No file is lost: an output is never an input, by whatever name; what cannot be written leaves what was
there.
"""

from __future__ import annotations

import os
import resource
import tempfile

import pytest
import torch

from trace_core.cli import main, outputs
from trace_core.cli.folder import Folder
from trace_core.cli.main import parser
from trace_core.cli.workers import START, Setup
from trace_core.errors import LoraError, TraceError
from trace_core.finetune.resume import TrainingState
from trace_core.lora import ErasureLora
from trace_core.lora.files import write_whole
from trace_core.text.concepts import Concept

LORA = ErasureLora(
    {"diffusion_model.a": (torch.ones(200, 40).half(), torch.ones(40, 300).half())},
    {"trace.concepts": '[["cat", "", 1.0]]'},
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a file of each sort that a command reads."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "base.safetensors",
        "clip.safetensors",
        "vae.safetensors",
        "cat.safetensors",
        "list.txt",
        "keep.txt",
        "run.safetensors",
    ):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.safetensors").symlink_to("base.safetensors")
    os.link(tmp_path / "base.safetensors", tmp_path / "hard.safetensors")
    (tmp_path / "linked").symlink_to("folder")
    return tmp_path


@pytest.fixture
def full_disk():
    """No file can be longer than 20,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


ERASE = (
    "erase --model base.safetensors --clip clip.safetensors --vae vae.safetensors --erase-file list.txt "
    "--keep-file keep.txt"
)
INPUT = {
    "the model": f"{ERASE} --out base.safetensors",
    "the model by another spelling": f"{ERASE} --out folder/../base.safetensors",
    "the model through a link": f"{ERASE} --out link.safetensors",
    "the model by a hard link": f"{ERASE} --out hard.safetensors",
    "a link as the model": "erase --model link.safetensors --erase cat --out base.safetensors",
    "the report over the model": f"{ERASE} --out x.safetensors --json base.safetensors",
    "a text encoder": f"{ERASE} --out clip.safetensors",
    "a VAE": f"{ERASE} --out vae.safetensors",
    "the list": f"{ERASE} --out x.safetensors --json list.txt",
    "the keep list": f"{ERASE} --out x.safetensors --json keep.txt",
    "the state over the model": f"{ERASE} --out x.safetensors --method esd --resume base.safetensors",
    "a LoRA": "generate --model base.safetensors --lora cat.safetensors --prompt x --out cat.safetensors",
    "a LoRA by the report": "evaluate --model demo-sd --lora cat.safetensors --json cat.safetensors",
    "what is fused": "fuse run.safetensors cat.safetensors --out cat.safetensors",
    "what is shown": "info cat.safetensors --json cat.safetensors",
    "what is exported": "export cat.safetensors --format kohya --out cat.safetensors",
    "the pack's own weights": "erase --model demo-sd --erase cat --out "
                              f"{outputs.__file__.replace('cli/outputs.py', 'demo/assets/demo-sd.safetensors')}",  # noqa: E501
}  # fmt: skip


@pytest.mark.parametrize("overwrite", ["", " --overwrite"])
@pytest.mark.parametrize("name", INPUT)
def test_an_output_is_never_an_input(here, name, overwrite, capsys, monkeypatch):
    monkeypatch.setattr("trace_core.cli.commands.load", lambda *_: pytest.fail("work began"))
    before = {f.name: f.read_bytes() for f in here.iterdir() if f.is_file()}
    assert main((INPUT[name] + overwrite).split()) == 2
    assert "which this command reads; choose another name for --" in capsys.readouterr().err
    assert {f.name: f.read_bytes() for f in here.iterdir() if f.is_file()} == before


TWICE = {
    "the state": "erase --model demo-sd --erase cat --method esd --resume new.safetensors --out "
    "new.safetensors",
    "the report": "erase --model demo-sd --erase cat --out new.safetensors --json new.safetensors",
    "by another spelling": "erase --model demo-sd --erase cat --out folder/new.safetensors --json "
    "linked/new.safetensors",
    "a picture": "generate --model demo-sd --prompt cat --out new.png --json ./new.png",
    "the demo's": "demo --out folder --json folder/report.json",
}


@pytest.mark.parametrize("name", TWICE)
def test_no_two_outputs_are_one_file(here, name, capsys):
    assert main(TWICE[name].split()) == 2
    assert "are one file; give each a name of its own" in capsys.readouterr().err


PLACES = {
    "a file that is there": ("erase --model demo-sd --erase cat --out cat.safetensors", "exists already; "
                                                                                        "choose another "
                                                                                        "name, or add "
                                                                                        "--overwrite"),
    "a picture": ("generate --model demo-sd --prompt x --out list.txt", "exists already"),
    "a report": ("info base.safetensors --json list.txt", "exists already"),
    "a link to one": ("erase --model demo-sd --erase cat --out link.safetensors", "exists already"),
    "a folder": ("erase --model demo-sd --erase cat --out folder", "--out 'folder' is a folder"),
    "below a file": ("erase --model demo-sd --erase cat --out list.txt/x.safetensors", "cannot write"),
    "one in the other": ("erase --model demo-sd --erase cat --out x.safetensors --json "
                         "x.safetensors/y.json", "one would be a folder of the other"),
    "in a job's folder": ("erase --model demo-sd --erase cat --jobs 2 --out x.safetensors --json "
                          "x.safetensors.parts/y.json", "where --jobs keeps"),
    "a list in a job's folder": ("erase --model demo-sd --erase-file x.safetensors.parts/l --jobs 2 --out "
                                 "x.safetensors", "where --jobs keeps"),
    "the demo's": ("demo --out here", "exists already"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_nothing_is_written_over_unless_it_is_asked_for(here, name, capsys):
    (here / "here").mkdir()
    (here / "here" / "report.json").write_text("mine")
    line, message = PLACES[name]
    assert main(line.split()) == 2
    assert message in capsys.readouterr().err


ALLOWED = (
    "erase --model base.safetensors --erase cat --out cat.safetensors --overwrite",
    "erase --model base.safetensors --erase cat --method esd --out x.safetensors --resume run.safetensors",
    "erase --model base.safetensors --erase cat --out folder/new/x.safetensors --json x.json",
    "info cat.safetensors --json /dev/stdout",
    "info cat.safetensors --json /dev/null",
)


@pytest.mark.parametrize("line", ALLOWED)
def test_what_may_be_written(here, line):
    """What the process has open is no file to lose, wherever it leads."""
    outputs.check(parser().parse_args(line.split()))


@pytest.mark.parametrize("what", ["file", "function"])
def test_a_link_stays_and_its_target_is_written(here, what):
    data = b"new" if what == "file" else lambda path: path.write_bytes(b"new")
    (here / "dangling").symlink_to("folder/later")
    for name, target in (("link.safetensors", "base.safetensors"), ("dangling", "folder/later")):
        write_whole(here / name, data)
        assert (here / name).is_symlink() and (here / target).read_bytes() == b"new"
    assert (here / "hard.safetensors").read_bytes() == b"base.safetensors", (
        "the other name of the old file keeps it"
    )
    assert not list(here.rglob(".trace*"))


def test_a_failed_write_leaves_what_was_there(here, full_disk):
    state = TrainingState(
        [torch.ones(100, 100)], [torch.ones(100, 100)], [torch.ones(100, 100)], 3, (0.0, 1.0), [], "{}"
    )
    for write in (lambda: LORA.save("cat.safetensors"), lambda: state.save("cat.safetensors")):
        with pytest.raises(
            LoraError, match="cannot write 'cat.safetensors': .*make room there, or choose another folder"
        ):
            write()
        assert (here / "cat.safetensors").read_bytes() == b"cat.safetensors"
    assert not list(here.rglob(".trace*"))


def test_what_took_work_is_kept_elsewhere(here, monkeypatch, capsys):
    """The disk of --out is full, the one for temporary files is not."""
    real = outputs.write_whole
    monkeypatch.setattr(
        outputs, "write_whole", lambda path, data, **_: real(path, data) if "trace-" in str(path) else fail()
    )

    def fail():
        raise OSError(28, "No space left on device")

    with pytest.raises(LoraError, match="cannot write 'x.png': No space left on device; make room") as error:
        outputs.keep(b"picture", "x.png", "the picture")
    kept = str(error.value).split("the picture is in '")[1].split("'")[0]
    assert kept.startswith(tempfile.gettempdir()) and open(kept, "rb").read() == b"picture"


def test_what_can_be_kept_nowhere_is_told(here, full_disk):
    before = set(os.listdir(tempfile.gettempdir()))
    with pytest.raises(LoraError, match="There is no room in .* either. The state is in 'run'"):
        outputs.keep(bytes(30_000), "x.png", "the picture", "The state is in 'run'")
    assert not [f for f in set(os.listdir(tempfile.gettempdir())) - before if f.startswith("trace-")]


def test_a_job_keeps_in_memory_what_the_disk_does_not_take(here, monkeypatch):
    setup = Setup("demo-sd", "esd", (Concept("cat"), Concept("dog")), (), {}, {}, 0, 1)
    folder, small = (
        Folder(here / "x.safetensors", setup),
        ErasureLora({"diffusion_model.a": (torch.ones(2, 1), torch.ones(1, 2))}),
    )
    folder.open()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        assert "make room there" in folder.write(1, LORA.to_bytes())
        assert folder.write(START, small.to_bytes()) and folder.files[START].exists() is False
        assert folder.read(1).fingerprint == LORA.fingerprint and not folder.files[1].exists()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert folder.write(2, small.to_bytes()) == "", "there is room again"
    assert not folder.unwritten and ErasureLora.load(folder.files[1]).fingerprint == LORA.fingerprint


def test_a_report_that_cannot_be_written_says_where_the_result_is(here, full_disk):
    with pytest.raises(
        TraceError, match="cannot write --json 'x.json': .*; the result itself is in 'cat.safetensors'"
    ):
        outputs.write_json("x.json", " " * 30_000, "cat.safetensors")
