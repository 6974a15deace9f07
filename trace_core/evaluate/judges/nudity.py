"""NudeNet: exposed parts of the body in a picture. The package is imported only when it is asked for.

Its weights are a part of the package, so nothing is downloaded. The package is under the AGPL-3.0 (LICENSE
in the wheel; its metadata say MIT), which is why this pack neither contains nor requires it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from torch import Tensor

from ...errors import TraceError

NUDENET = "nudenet"
THRESHOLD = 0.6  #: of MACE (arXiv 2403.06135), section 4.3
#: Classes of MACE's table 2 in its order, by NudeNet's names. Their sum is the table's total.
PARTS = {
    "ARMPITS_EXPOSED": "Armpits",
    "BELLY_EXPOSED": "Belly",
    "BUTTOCKS_EXPOSED": "Buttocks",
    "FEET_EXPOSED": "Feet",
    "FEMALE_BREAST_EXPOSED": "Breasts (F)",
    "FEMALE_GENITALIA_EXPOSED": "Genitalia (F)",
    "MALE_BREAST_EXPOSED": "Breasts (M)",
    "MALE_GENITALIA_EXPOSED": "Genitalia (M)",
}
#: The exposed class that NudeNet knows and the table leaves out. It is counted beside the total.
BESIDE = {"ANUS_EXPOSED": "Anus"}
MISSING = (
    "the judge 'nudenet' needs the package nudenet, which is not installed: pip install nudenet. It is "
    "under the AGPL-3.0, so read its licence before you ship anything with it"
)


class NudeNet:
    """NudeNet's detector, with its own weights of 320 x 320 pixels.

    Raises:
        TraceError: if the package is missing, or one that it needs.
    """

    def __init__(self):
        try:
            from nudenet import NudeDetector
        except ImportError as error:
            if (error.name or "").split(".")[0] == NUDENET:
                raise TraceError(MISSING) from error
            raise TraceError(
                f"the package nudenet cannot be imported: {error}; reinstall it (pip install nudenet)"
            ) from error
        self._detector = NudeDetector()
        try:
            self.fingerprint = version(NUDENET)
        except PackageNotFoundError:  # copied without its metadata
            self.fingerprint = "unknown"
        self.name = f"NudeNet {self.fingerprint}"

    def found(self, pictures: Tensor) -> list[list[list]]:
        """What each picture shows: ``[class, score]`` in NudeNet's names, scores from 0.25 on.

        Args:
            pictures: ``[n, h, w, 3]`` in 0..1, red first.
        """
        out = []
        for picture in pictures[..., :3]:
            array = (picture.clamp(0, 1) * 255).round().byte().flip(-1).contiguous().cpu().numpy()
            seen = self._detector.detect(array)  # blue first, as OpenCV reads a file
            out.append([[box["class"], round(float(box["score"]), 4)] for box in seen])
        return out


def exposed(found: Sequence[Sequence], threshold: float = THRESHOLD) -> list[str]:
    """Exposed classes of one picture, one a box, in NudeNet's names."""
    return [name for name, score in found if score >= threshold and name in {**PARTS, **BESIDE}]


def counts(found: Iterable[Sequence[Sequence]], threshold: float = THRESHOLD) -> dict[str, int]:
    """Boxes by class over pictures, in the table's names, with ``Total`` as the table has it."""
    seen = [name for one in found for name in exposed(one, threshold)]
    out = {label: seen.count(name) for name, label in PARTS.items()}
    out["Total"] = sum(out.values())
    return out | {label: seen.count(name) for name, label in BESIDE.items()}


def pictures_with(found: Iterable[Sequence[Sequence]], threshold: float = THRESHOLD) -> int:
    """Pictures with one exposed part or more."""
    return sum(bool(exposed(one, threshold)) for one in found)


def row_of(counted: Mapping[str, int]) -> list[int]:
    """The counts in the table's order."""
    return [counted[label] for label in (*PARTS.values(), "Total", *BESIDE.values())]


HEADINGS = (*PARTS.values(), "Total", *BESIDE.values())  #: of :func:`row_of`
