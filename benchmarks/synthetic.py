"""Text rows, weights, clock and scale of the speed benchmark: no trained encoder or model is needed to
time the closed form.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

import torch

from trace_core.backbones import Layer
from trace_core.text.encoding import AFTER, BEFORE, BOS, FIRST_EOT, PAD, SUBJECT, TextRows

NORM = 28.0  #: of CLIP-L's rows


class Clock:
    """Seconds of all measurements: of the wall, or of the process where other work shares the cores."""

    now = staticmethod(time.perf_counter)


@contextmanager
def peak_memory():
    """Yields a dict whose ``bytes`` is, afterwards, the largest increase of the process's resident memory
    (Linux).
    """
    statm, found, stop = Path("/proc/self/statm"), {"bytes": None}, threading.Event()
    if not statm.exists():
        yield found
        return
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or memory freed earlier would hide what is used now
    except AttributeError:
        pass
    resident = lambda: int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")  # noqa: E731
    before = resident()
    found["bytes"] = 0

    def watch():
        while not stop.wait(0.005):
            found["bytes"] = max(found["bytes"], resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        stop.set()
        watcher.join()


class SyntheticText:
    """A stand-in for :class:`trace_core.text.encoding.TextEncoder`: words to rows, deterministic, with its
    own clock.

    Args:
        width: d.
        length: rows of a prompt.
        bidirectional: as T5: no start row, and words change the rows before them too.
        pooled: width of the pooled vector, 0 for none.
    """

    HIDDEN = 256

    def __init__(self, width: int, length: int = 77, bidirectional: bool = False, pooled: int = 0):
        self.length, self.bidirectional, self.pooled = length, bidirectional, pooled
        self.seconds = 0.0
        draw = torch.Generator().manual_seed(0)
        decay = torch.arange(1, width + 1) ** -0.4
        self._inner = torch.randn(self.HIDDEN, width, generator=draw) * 2 / self.HIDDEN**0.5
        self._scale = decay[torch.randperm(width, generator=draw)]
        self._position = 0.15 * torch.randn(length, self.HIDDEN, generator=draw)
        self._mean = torch.randn(width, generator=draw) * 0.6 * self._scale.norm() / width**0.5
        self._start = torch.randn(width, generator=draw) * 0.1
        self._start[width // 7], self._start[width // 3] = -28.0, 33.0
        self._words: dict[str, torch.Tensor] = {}
        self._neutral: dict[str, TextRows] = {}

    def encode(self, prompt: str, subject: str = "") -> TextRows:
        if not subject and prompt in self._neutral:  # as the real encoder does; the others come once
            return self._neutral[prompt]
        begin = Clock.now()
        rows = self._encode(prompt.replace(",", " ,").split(), subject.split())
        if not subject:
            self._neutral[prompt] = rows
        self.seconds += Clock.now() - begin
        return rows

    def _word(self, word: str) -> torch.Tensor:
        if word not in self._words:
            draw = torch.Generator().manual_seed(zlib.crc32(word.encode()))
            self._words[word] = torch.randn(self.HIDDEN, generator=draw)
        return self._words[word]

    def _encode(self, words: list[str], subject: list[str]) -> TextRows:
        first = 0 if self.bidirectional else 1
        content = torch.stack([self._word(w) for w in (*words, "<end>")])
        end = first + len(words)
        reader, read = torch.arange(self.length)[:, None], first + torch.arange(len(content))[None]
        mix = (1 + 0.15 * torch.cos(0.31 * reader + 0.7 * read)) / max(1, len(words)) ** 0.5
        mix = mix if self.bidirectional else mix * (read <= reader)  # a causal encoder
        hidden = mix @ content + self._position
        hidden[first : end + 1] += content
        rows = torch.tanh(hidden @ self._inner) * self._scale + self._mean
        rows *= NORM / rows.norm(dim=1, keepdim=True)
        if first:
            rows[0] = self._start
        pooled = rows[end, torch.arange(self.pooled) % rows.shape[1]] if self.pooled else None
        ids = (*[1] * first, *(zlib.crc32(w.encode()) for w in words), *[2] * (self.length - end))
        return TextRows(rows, ids, self._groups(words, subject, first), pooled)

    def _groups(self, words: list[str], subject: list[str], first: int) -> tuple[int, ...]:
        at = next(
            (i for i in range(len(words)) if subject and words[i : i + len(subject)] == subject), len(words)
        )
        inside = [BEFORE] * at + [SUBJECT] * len(subject)
        inside += [AFTER] * (len(words) - len(inside))
        rest = self.length - first - len(words) - 1
        return tuple([BOS] * first + inside + [FIRST_EOT] + [PAD] * rest)


class Matrices:
    """Stands in for a Backbone where the whole model would not fit.

    It has the real number and shapes of its matrices, random; matrices of equal shape share their memory.
    """

    def __init__(self, shapes: list[tuple[str, int, int, int]]):
        self._layers = []
        for stream, count, out, width in shapes:
            weight = torch.randn(out, width, generator=torch.Generator().manual_seed(out)) / width**0.5
            layers = [Layer(f"diffusion_model.{stream}.{out}.{i}", stream, width) for i in range(count)]
            self._layers += [(layer, weight) for layer in layers]

    def weights(self):
        yield from self._layers

    def width(self, stream: str) -> int | None:
        return next((layer.columns for layer, _ in self._layers if layer.stream == stream), None)


def sd15():
    """A ModelPatcher of ComfyUI's UNetModel in SD1.5's shapes, float16; text layers random, all others
    constant.
    """
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD15(
        {
            "use_checkpoint": False,
            "image_size": 32,
            "use_spatial_transformer": True,
            "legacy": False,
            "adm_in_channels": None,
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 320,
            "num_res_blocks": [2, 2, 2, 2],
            "channel_mult": [1, 2, 4, 4],
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_output": [1] * 9 + [0] * 3,
            "transformer_depth_middle": 1,
            "use_linear_in_transformer": False,
            "use_temporal_resblock": False,
            "use_temporal_attention": False,
            "context_dim": 768,
            "num_heads": 8,
        }
    )
    config.set_inference_dtype(torch.float16, None)
    model = config.get_model({}, device=torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.diffusion_model.named_parameters():
            text = ".attn2.to_k" in name or ".attn2.to_v" in name
            parameter.copy_(
                torch.randn(parameter.shape, generator=draw) / 768**0.5
            ) if text else parameter.fill_(0.01)
    size = sum(p.numel() * p.element_size() for p in model.diffusion_model.parameters())
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu), size
