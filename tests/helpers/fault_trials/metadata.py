"""Hostile metadata of a LoRA: the file is read and shown, or what is wrong in it is named."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path

from hypothesis import strategies as st

from fault_trials import Fault, LostFile, UnclearError, attempt
from fault_trials.damage import A, noise
from trace_core.cli import main
from trace_core.errors import TraceError
from trace_core.lora.erasure import ErasureLora
from trace_core.lora.fusion.fuse import check_compatible
from trace_core.lora.gating import check_fits
from trace_core.lora.result import Erasure

KEYS = (
    "trace.concepts",
    "trace.parts",
    "trace.window",
    "trace.base",
    "trace.keep",
    "trace.parameters",
    "trace.method",
    "trace.format",
    "trace.ranks",
    "modelspec.title",
    "trace.substitutes",
    "anything",
)
LEAF = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(("cat", "dog", "object", 0.5, 1.0, 2, 3, "float16", 1e308, 10**400, "<b>", "a\nb")),
)
JSON = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(("concepts", "strength", "ranks", "kind", "dtype", "hash")), inner),
    ),
    max_leaves=10,
)
PART = st.fixed_dictionaries(
    {
        "concepts": st.one_of(st.just([["cat", "", 1.0]]), JSON),
        "strength": st.one_of(st.floats(-12, 12), JSON),
        "ranks": st.one_of(st.integers(-1, 5), st.lists(st.integers(0, 4), max_size=2), JSON),
    },
    optional={"kind": LEAF, "dtype": LEAF},
)
TEXT = st.one_of(
    JSON.map(json.dumps),
    st.lists(PART, max_size=3).map(json.dumps),
    st.lists(st.tuples(st.just("cat"), st.just("dog"), LEAF, LEAF, JSON, LEAF), max_size=3).map(json.dumps),
    st.text(max_size=40),
    st.sampled_from(("[" * 5000, "{", '"' + "x" * 20_000 + '"', "NaN", "[NaN]", "-Infinity", "[0, 1e400]")),
)


def hostile(draw) -> None:
    lora = ErasureLora({A: (noise(8, 3), noise(3, 6, seed=1))}, {})
    lora.metadata |= draw(st.dictionaries(st.sampled_from(KEYS), TEXT, min_size=1, max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cat.safetensors"
        path.write_bytes(lora.to_bytes())
        before = path.read_bytes()
        found, _ = attempt(lambda: ErasureLora.load(path), "cat.safetensors")
        shown(path)
        if path.read_bytes() != before or len(list(path.parent.iterdir())) != 1:
            raise LostFile("reading changed the file")
    if found:
        asked(found, ErasureLora({A: (noise(8, 2), noise(2, 6))}, {"trace.concepts": '[["dog", "", 1.0]]'}))


def shown(path: Path) -> None:
    """The command line's ``info`` prints whatever the file says."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(["info", str(path)])
        except Exception as error:
            raise UnclearError("info ended with an error of the program") from error
        if code not in (0, 2) or "Traceback" in err.getvalue():
            raise UnclearError(err.getvalue()[:300])


def asked(lora: ErasureLora, other: ErasureLora) -> None:
    """Everything that another program's metadata may come into."""
    json.dumps(lora.info(), allow_nan=False)
    attempt(lambda: lora.window)
    attempt(lambda: Erasure(lora).concepts)
    attempt(lambda: check_compatible([other, lora], ["dog", "cat"]))
    attempt(lambda: check_fits(object(), lora))
    for work in (lora.parts, lambda: ErasureLora.join(lora, other), lambda: ErasureLora.join(other, lora)):
        attempt(work)
    for work in (lambda: lora.with_strengths({"cat": 0.5}), lambda: lora.without("cat")):
        found, _ = attempt(work, "cat", "file")
        if found:
            found.parts()
            again = ErasureLora.from_bytes(found.to_bytes())
            if again.fingerprint != found.fingerprint:
                raise UnclearError("what is written is read as something else")
    for form in ("kohya", "diffusers"):
        try:
            lora.to_bytes(form=form)
        except TraceError as error:
            if not str(error):
                raise UnclearError("an error without a sentence") from error


FAULTS = (Fault("hostile metadata", 90, hostile),)
