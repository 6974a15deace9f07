"""Draw and judge a protocol's pictures, batch by batch, and go on where an earlier run stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ...backbones import backbone_for
from ...backbones.sampling import SamplerConfig, decode, sample
from ...errors import TraceError, enough_memory
from ...lora.files import why, write_whole
from ..grid import to_image
from ..judges import NudeNet, ZeroShot
from ..protocol import Progress
from .asked import Asked
from .journal import Journal

BEFORE, AFTER = "before", "after"  #: sides: the model without and with the erasure


@dataclass
class Run:
    """One protocol on one model.

    Attributes:
        clip, vae: ComfyUI objects of the model.
        asked: what is drawn.
        judge: who looks at it.
        config: how pictures are sampled; ``batch`` of them at once.
        progress: ``progress(phase, done, total)`` in pictures; an exception raised in it cancels.
        names: the classes among which a CLIP chooses.
        template: the CLIP's text for a class, with ``{}`` in its place.
        pictures: a folder for the pictures; None: they are not kept.
    """

    clip: object
    vae: object
    asked: Sequence[Asked]
    judge: ZeroShot | NudeNet
    config: SamplerConfig
    progress: Progress
    names: Sequence[str] = ()
    template: str = "a photo of the {}"
    pictures: Path | None = None

    def side(self, side: str, model, journal: Journal) -> list[dict]:
        """The answers of one side. Batches that the journal has are not drawn again.

        A batch holds the same pictures in every run, so that a resumed run gives the same bits.

        Raises:
            TraceError: if a file cannot be written.
            ModelError: if the model draws no numbers.
        """
        batches = self.batches(model)
        done = 0
        for places, config in batches:
            self.progress(side, done, len(self.asked))
            if not (journal.has(side, places) and self._kept(side, places)):
                pictures = self._draw(model, places, config)
                self._keep(side, places, pictures)
                journal.add(side, places, self._judged(places, pictures))
            done += len(places)
            self.progress(side, done, len(self.asked))
        return journal.of(side, len(self.asked))

    def batches(self, model) -> list[tuple[list[int], SamplerConfig]]:
        """Places of the pictures drawn at once, and how they are sampled."""
        name = "guidance" if backbone_for(model).traits.embeds_guidance else "cfg"
        groups: dict[float | None, list[int]] = {}
        for at, entry in enumerate(self.asked):
            groups.setdefault(entry.guidance, []).append(at)
        found, size = [], self.config.batch
        for guidance, places in groups.items():
            config = self.config if guidance is None else replace(self.config, **{name: guidance})
            found += [(places[i : i + size], config) for i in range(0, len(places), size)]
        return sorted(found, key=lambda batch: batch[0][0])

    @enough_memory("drawing", "take a smaller --size, or close other programs")
    def _draw(self, model, places: Sequence[int], config: SamplerConfig) -> Tensor:
        """Pictures ``[n, h, w, 3]`` in 0..1."""
        prompts = [self.asked[at].prompt for at in places]
        latents = sample(model, self.clip, prompts, [self.asked[at].seed for at in places], config)
        return decode(self.vae, latents)[..., :3].float().cpu()

    def _judged(self, places: Sequence[int], pictures: Tensor) -> list[dict]:
        if isinstance(self.judge, NudeNet):
            return [{"found": found} for found in self.judge.found(pictures)]
        texts = [self.template.format(name) for name in self.names]
        answers = []
        for at, row in zip(places, self.judge.probabilities(pictures, texts)):
            shows = self.asked[at].shows
            own = row[self.names.index(shows)].item() if shows in self.names else 0.0
            answers.append({"seen": self.names[int(row.argmax())], "prob": round(own, 6)})
        return answers

    def _files(self, side: str, places: Sequence[int]) -> list[Path]:
        return [self.pictures / f"{side}-{at:05d}.png" for at in places] if self.pictures else []

    def _kept(self, side: str, places: Sequence[int]) -> bool:
        """Whether no picture that is to be kept is missing."""
        return all(file.is_file() for file in self._files(side, places))

    def _keep(self, side: str, places: Sequence[int], pictures: Tensor) -> None:
        for file, picture in zip(self._files(side, places), pictures):
            try:
                write_whole(file, lambda path: to_image(picture, 1).save(path, "PNG"))  # noqa: B023
            except OSError as error:
                raise TraceError(f"cannot write '{file}': {why(error)}") from error


def settings(
    protocol: str, digest: str, sides: Mapping[str, Mapping], judge, config: SamplerConfig, more: Mapping
) -> dict:
    """What the answers of a run depend on, for its :class:`~trace_core.evaluate.papers.journal.Journal`."""
    return {
        "protocol": protocol,
        "prompts": digest,
        "models": dict(sides),
        "judge": {"name": judge.name, "fingerprint": judge.fingerprint},
        "sampler": vars(config).copy(),
        **more,
    }
