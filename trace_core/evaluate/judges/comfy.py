"""A CLIP of ComfyUI's own objects: CLIP_VISION for the pictures, and a CLIP's text tower for the names.

CLIP_VISION holds the picture side alone. Its partner among text encoders is the tower that was trained with
it: ``clip_l`` for ViT-L, ``clip_h`` (SD 2) for ViT-H, ``clip_g`` (SDXL) for bigG. Its projection must be
there: checkpoints of SD 1.x leave it out, and ComfyUI then has zeros or unset memory in its place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import ConceptError, ModelError
from .zero_shot import ZeroShot

REMEDY = (
    "load the text encoder that was trained with this clip_vision, such as clip_l.safetensors for ViT-L, and "
    "connect it to judge_clip"
)
SMALLEST, LARGEST = 1e-6, 10.0  #: standard deviations between which a projection is a trained one


class ComfyClip(ZeroShot):
    """ComfyUI's CLIP_VISION and CLIP as one judge.

    Args:
        vision: the output of *Load CLIP Vision*.
        clip: a CLIP with the text tower that belongs to it.

    Raises:
        ModelError: if ``vision`` is no CLIP_VISION, or has no row for a whole picture.
        ConceptError: if no text tower of the CLIP fits, or it lacks its projection.
    """

    def __init__(self, vision, clip):
        if not hasattr(vision, "encode_image"):
            raise ModelError(f"{type(vision).__name__} is not a CLIP_VISION; connect Load CLIP Vision")
        self.vision, self.clip = vision, clip
        width = self._width()
        self.tower, self.key = _tower(clip, width)
        self.name = f"CLIP_VISION with {width} numbers"

    def _width(self) -> int:
        rows = self.vision.encode_image(torch.zeros(1, 64, 64, 3))["image_embeds"]
        if rows is None or rows.ndim != 2:
            raise ModelError(
                "this clip_vision (SigLIP or DINO) has no row for a whole picture, so no text can be "
                "compared with it; connect a CLIP ViT-L, ViT-H or bigG"
            )
        return rows.shape[-1]

    @torch.no_grad()
    def image_rows(self, pictures: Tensor) -> Tensor:
        return self.vision.encode_image(pictures)["image_embeds"]

    @torch.no_grad()
    def text_rows(self, texts: Sequence[str]) -> Tensor:
        self.clip.encode_from_tokens(self.clip.tokenize(""))  # puts the tower where it runs
        device = self.clip.patcher.load_device
        self.tower.set_clip_options({"projected_pooled": True, "execution_device": device})
        try:
            rows = [self.tower.encode_token_weights(self.clip.tokenize(text)[self.key])[1] for text in texts]
        finally:
            self.tower.reset_clip_options()
        found = torch.cat(rows).float().cpu()
        if not found.isfinite().all() or (found.norm(dim=-1) == 0).any():
            raise ConceptError(f"the text encoder has no text projection; {REMEDY}")
        return found


def _tower(clip, width: int) -> tuple:
    """The text tower whose projected rows have this width, and its name among the tokens.

    Raises:
        ConceptError: naming the widths that there are.
    """
    stage = getattr(clip, "cond_stage_model", None)
    if stage is None:
        raise ConceptError(f"{type(clip).__name__} is not a CLIP; {REMEDY}")
    widths = []
    for name, tower in stage.named_children():
        projection = getattr(getattr(tower, "transformer", None), "text_projection", None)
        weight = getattr(projection, "weight", None)
        if weight is None:
            continue
        widths.append(weight.shape[0])
        if weight.shape[0] == width:
            spread = weight.float().std().item()
            if not SMALLEST < spread < LARGEST:
                raise ConceptError(
                    "the text encoder has no text projection (checkpoints of SD 1.x leave it out), so its "
                    f"words cannot be compared with pictures; {REMEDY}"
                )
            return tower, name.removeprefix("clip_")
    there = f"gives rows of {' and '.join(map(str, widths))} numbers" if widths else "has no CLIP tower"
    raise ConceptError(f"the text encoder {there}, but the clip_vision has {width}; {REMEDY}")
