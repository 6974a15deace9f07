"""ErasureLora: low-rank factors with metadata, as safetensors that the stock LoRA loader reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..backbones.numerics import is_finite
from ..errors import LoraError
from ..text.kinds import KINDS
from . import formats
from .files import canonical, own_memory, read_tensors, why, write_whole
from .metadata import VERIFICATION, finite_number, joined_metadata, parsed, title_of
from .parts import (
    DTYPES,
    Part,
    check_named,
    check_strengths,
    erase_the_same,
    listed,
    parts_entry,
    read_concepts,
    read_part,
    with_offset,
)

MAX_FILE = 4 << 30  #: bytes; an erasure is megabytes
MAX_PARTS = 10_000
#: Factor of ``up`` for strength 0: too small to change a weight in any precision, but reversible
SILENT = 2.0**-100


@dataclass
class ErasureLora:
    """``{module: (up [out, r], down [r, in])}`` in float16, scale 1 (alpha = rank), and string metadata."""

    modules: dict[str, tuple[Tensor, Tensor]]
    metadata: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_factors(
        cls, factors: dict[str, tuple[Tensor, Tensor]], dtype: torch.dtype = torch.float16
    ) -> ErasureLora:
        """Round factors to the precision of the file, so that the applied edit equals the saved one.

        Raises:
            LoraError: if a factor exceeds the range of ``dtype``.
        """
        modules = {
            m: (up.to(dtype).contiguous(), down.to(dtype).contiguous()) for m, (up, down) in factors.items()
        }
        for module, pair in modules.items():
            if not all(is_finite(f) for f in pair):
                raise LoraError(
                    f"the edit of {module} is too large for {dtype}; lower the strength or raise alpha"
                )
        return cls(modules)

    @property
    def rank(self) -> int:
        return max((down.shape[0] for _, down in self.modules.values()), default=0)

    @property
    def fingerprint(self) -> str:
        """Hash of the edit: sha256 over names, shapes, types and values, without metadata, 16 hex digits."""
        digest = hashlib.sha256()
        for module in sorted(self.modules):
            for factor in self.modules[module]:
                digest.update(f"{module} {factor.dtype} {tuple(factor.shape)}\n".encode())
                digest.update(factor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def window(self) -> tuple[float, float]:
        """The file's window as fractions of the sampling schedule; (0, 1) if it has none.

        Raises:
            LoraError: if the file's entry is not a window.
        """
        found = self.info().get("trace.window", [0.0, 1.0])
        pair = isinstance(found, list) and len(found) == 2 and all(isinstance(x, Real) for x in found)
        if not pair or not 0 <= found[0] < found[1] <= 1:
            raise LoraError(
                f"the trace.window of this file is {str(found)[:40]}, not a window; give start and end"
            )
        return float(found[0]), float(found[1])

    @classmethod
    def join(cls, first: ErasureLora, second: ErasureLora) -> ErasureLora:
        """Join two erasures of one base exactly, by concatenation along the rank, so that the edits add up.

        The metadata are those of the first, completed by the second; concepts and keep lists are merged. The
        parts of both remain parts. Two edits of the same concepts, such as a closed form and the finetune
        that started from it, become one part.

        Raises:
            LoraError: if the bases, the windows or the shapes of a shared module differ.
        """
        bases = [lora.info().get("trace.base") for lora in (first, second)]
        if None not in bases and bases[0] != bases[1]:
            raise LoraError(
                f"these erasures have different bases, {bases[0]} and {bases[1]}; make both on one base"
            )
        if first.window != second.window:
            windows = f"{first.window} and {second.window}"
            raise LoraError(f"these erasures have the windows {windows}; apply them one by one")
        modules = {**first.modules, **second.modules}
        for module in first.modules.keys() & second.modules.keys():
            (up, down), (other_up, other_down) = first.modules[module], second.modules[module]
            if (up.shape[0], down.shape[1]) != (other_up.shape[0], other_down.shape[1]):
                raise LoraError(
                    f"{module} is {up.shape[0]} x {down.shape[1]} in one erasure and {other_up.shape[0]} x "
                    f"{other_down.shape[1]} in the other; they are of different architectures"
                )
            modules[module] = (
                torch.cat([up, other_up.to(up.device)], 1),
                torch.cat([down, other_down.to(down.device)], 0),
            )
        joined = cls(modules, joined_metadata(first, second))
        mine, theirs = first.parts(), second.parts()
        one = len(mine) == len(theirs) == 1 and erase_the_same(mine[0], theirs[0])
        if not one and any(part.concepts for part in (*mine, *theirs)):
            ranks = {m: down.shape[0] for m, (_, down) in first.modules.items()}
            moved = [
                replace(p, slices={m: with_offset(s, ranks.get(m, 0)) for m, s in p.slices.items()})
                for p in theirs
            ]
            joined._set_parts([*mine, *moved])
        return joined

    # ------------------------------------------------------------------------------------------- parts

    def parts(self) -> list[Part]:
        """The edits in this file, in the order of their ranks; one part if the file does not list any.

        Raises:
            LoraError: if ``trace.parts`` is not in the form of :func:`~trace_core.lora.parts.parts_entry`, or
                does not fit the layers.
        """
        text = self.metadata.get("trace.parts")
        if text is None:
            whole = {m: slice(0, down.shape[0]) for m, (_, down) in self.modules.items()}
            return [
                Part(
                    tuple(read_concepts(parsed(self.metadata.get("trace.concepts")))),
                    whole,
                    kind=self._kind(),
                )
            ]
        entries = parsed(text)
        if not isinstance(entries, list) or not 0 < len(entries) <= MAX_PARTS:
            raise LoraError("the trace.parts of this file is not a list of parts; make the file again")
        parts, used = [], dict.fromkeys(sorted(self.modules), 0)
        for number, entry in enumerate(entries, start=1):
            part, counts = read_part(entry, f"part {number} of this file", len(used))
            slices = {}
            for module, count in zip(used, counts):
                if count:
                    slices[module] = slice(used[module], used[module] + count)
                used[module] += count
            parts.append(replace(part, slices=slices))
        wrong = next((m for m, count in used.items() if count != self.modules[m][1].shape[0]), None)
        if wrong:
            raise LoraError(
                f"the parts of this file have {used[wrong]} ranks of {wrong}, but the file has "
                f"{self.modules[wrong][1].shape[0]}; other software changed it: make it again"
            )
        return parts

    def _kind(self) -> str:
        parameters = parsed(self.metadata.get("trace.parameters"))
        kind = parameters.get("kind") if isinstance(parameters, dict) else None
        return kind if kind in KINDS else "auto"

    def _set_parts(self, parts: Sequence[Part]) -> None:
        """Write the parts of the modules, in order, and their concepts to the metadata."""
        entries = [parts_entry(part, sorted(self.modules)) for part in parts]
        listed = parsed(self.metadata.get("trace.concepts"))
        # the file's list may contain more details than a part
        known = {c[0]: c for c in listed if read_concepts([c])} if isinstance(listed, list) else {}
        concepts = {json.dumps(c): known.get(c[0], c) for entry in entries for c in entry["concepts"]}
        self.metadata["trace.concepts"] = json.dumps(list(concepts.values()), ensure_ascii=False)
        self.metadata["modelspec.title"] = title_of([c[0] for c in concepts.values()])
        self.metadata.pop("trace.parts", None)
        self.metadata.pop(VERIFICATION, None)
        if len(entries) > 1 or entries[0]["strength"] != 1.0:
            self.metadata["trace.parts"] = json.dumps(entries, ensure_ascii=False)

    def without(self, *targets: str) -> ErasureLora:
        """The same file without the parts that erase ``targets``. The other parts stay bit-identical.

        Raises:
            LoraError: naming the erased concepts, if a target is not among them, shares a part with a concept
                that is not named, or no part would be left.
        """
        parts = self.parts()
        check_named(parts, targets, "removed")
        left = [part for part in parts if not (part.concepts and all(part.names(targets)))]
        if not left:
            raise LoraError(
                f"without {listed(targets)} no concept is left in this file; do not apply it at all"
            )
        modules = {}
        for module, (up, down) in self.modules.items():
            ranks = [
                i for p in left if module in p.slices for i in range(*p.slices[module].indices(down.shape[0]))
            ]
            if ranks:
                modules[module] = up[:, ranks].contiguous(), down[ranks].contiguous()
        out = ErasureLora(modules, dict(self.metadata))
        out._set_parts(left)
        return out

    def with_strengths(self, strengths: Mapping[str, float]) -> ErasureLora:
        """The same file with changed strengths of some parts: 1 as made, 0 none, below 0 the opposite.

        Strengths are absolute: setting 0.5 twice gives 0.5, and 1 restores the original part. The restored
            part is
        bit-identical if its factors are in 16 bits, because ``up`` is scaled in float32, whose rounding does
        not show in 16 bits. Strength 0 is stored as 2^-100, which can be undone and changes no weight.

        Args:
            strengths: ``{target: strength}``. All concepts of a part must be named, with the same strength.

        Raises:
            LoraError: as :meth:`without`, or if a strength is not a number from -10 to 10.
        """
        parts, out = self.parts(), ErasureLora(dict(self.modules), dict(self.metadata))
        wanted = check_strengths(parts, strengths)
        for module, (up, down) in self.modules.items():
            here = [(p.slices[module], p.strength, s) for p, s in zip(parts, wanted) if module in p.slices]
            if all(old == new for _, old, new in here):
                continue
            scaled, made_in = up.to(torch.float32, copy=True), self._dtype_of(module, parts)
            for ranks, old, new in here:
                if old != new:
                    as_made = (scaled[:, ranks] / (old or SILENT)).to(made_in)
                    scaled[:, ranks] = as_made.float() * (new or SILENT)
            out.modules[module] = scaled.to(made_in) if all(new == 1.0 for *_, new in here) else scaled, down
        names = {dtype: name for name, dtype in DTYPES.items()}
        dtypes = [
            names.get(self._dtype_of(next(iter(p.slices), None), parts), "") if s != 1.0 else ""
            for p, s in zip(parts, wanted)
        ]
        out._set_parts([replace(p, strength=s, dtype=d) for p, s, d in zip(parts, wanted, dtypes)])
        return out

    def _dtype_of(self, module: str | None, parts: Sequence[Part]) -> torch.dtype | None:
        """Precision of a module's ``up`` before the strength of any of its parts was changed."""
        changed_dtype = next((p.dtype for p in parts if p.dtype and module in p.slices), "")
        return DTYPES[changed_dtype] if changed_dtype else self.modules[module][0].dtype if module else None

    def delta(self, module: str) -> Tensor:
        """dW of one module, ``[out, in]`` float32."""
        up, down = self.modules[module]
        return up.float() @ down.float()

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors as saved in the file, in the stock loader's key form."""
        out = {}
        for module, (up, down) in self.modules.items():
            out[f"{module}.lora_up.weight"] = up
            out[f"{module}.lora_down.weight"] = down
            out[f"{module}.alpha"] = torch.tensor(float(down.shape[0]))
        return out

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None
    ) -> ErasureLora:
        """Read a LoRA of linear layers with ComfyUI's, kohya's, diffusers' or PEFT's keys.

        float8 becomes float16.

        Raises:
            LoraError: naming the first key that is unknown, missing, of a wrong shape, or not finite.
        """
        metadata = dict(metadata or {})
        modules = formats.read(state, metadata)
        metadata.pop(formats.RANKS, None)
        return cls(modules, metadata)

    def to_bytes(self, extra: dict[str, str] | None = None, form: str = "comfyui") -> bytes:
        """The safetensors file in a key form of :data:`~trace_core.lora.formats.FORMATS`.

        Equal contents give equal bytes.

        Raises:
            LoraError: if there is nothing to save, or the form has no name for a layer.
        """
        if not self.modules:
            raise LoraError("the erasure changes nothing (strength 0?); there is nothing to save")
        state, metadata = formats.write(self, form)
        return canonical(save(own_memory(state), {**metadata, **(extra or {}), "format": "pt"}))

    def save(
        self,
        path: str | Path,
        extra: dict[str, str] | None = None,
        form: str = "comfyui",
        replace: bool = True,
    ) -> Path:
        """Write a safetensors file completely, or leave the existing file unchanged.

        Args:
            replace: False refuses a file that exists.

        Raises:
            FileExistsError: if ``replace`` is False and the file exists.
            LoraError: if the path cannot be written, naming it.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise LoraError(f"'{path.name}' must end in .safetensors")
        data = self.to_bytes(extra, form)
        try:
            return write_whole(path, data, replace=replace)
        except FileExistsError:
            raise  # asked for by ``replace``
        except OSError as error:
            raise LoraError(f"cannot write '{path}': {why(error)}") from error

    @classmethod
    def load(cls, path: str | Path) -> ErasureLora:
        """Read a file written by :meth:`save`, or any LoRA that :meth:`from_state_dict` supports.

        Raises:
            LoraError: if it is missing, truncated, unsafe, or not an erasure LoRA.
        """
        path = Path(path)
        try:
            size = path.stat().st_size
            if size > MAX_FILE:
                raise LoraError(
                    f"'{path.name}' is {size / 2**30:.1f} GB, too large for an erasure LoRA; choose another "
                    "file"
                )
            state, metadata = read_tensors(path)
        except OSError as error:
            raise LoraError(
                f"cannot read '{path}': {error.strerror or error}; choose a file that can be read"
            ) from error
        except (SafetensorError, ValueError, MemoryError) as error:
            if isinstance(error, LoraError):
                raise
            raise LoraError(
                f"'{path.name}' is damaged or not a safetensors file ({error}); download it again"
            ) from error
        if not state:
            raise LoraError(
                f"'{path.name}' contains no layers; it is not an erasure LoRA, so choose another file"
            )
        try:
            return cls.from_state_dict(state, metadata)
        except LoraError as error:
            raise LoraError(f"'{path.name}': {error}") from error

    @classmethod
    def from_bytes(cls, data: bytes) -> ErasureLora:
        """Read the bytes that :meth:`to_bytes` gives."""
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return cls.from_state_dict(load(data), header.get("__metadata__"))

    def info(self) -> dict:
        """Metadata with parsed entries, and the size of the edit.

        Entries that are not valid JSON stay strings.
        """
        out = {}
        for key, value in self.metadata.items():
            try:
                out[key] = (
                    json.loads(value, parse_constant=finite_number, parse_float=finite_number)
                    if key.startswith("trace.")
                    else value
                )
            except (ValueError, RecursionError):
                out[key] = value
        out["modules"] = len(self.modules)
        out["rank"] = self.rank
        return out
