"""Labelled picture grids: rows of models, columns of prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK, PAPER, MARK, GAP = (32, 33, 36), (255, 255, 255), (196, 43, 28), 6


def to_image(picture: Tensor, scale: int) -> Image.Image:
    """One ComfyUI picture ``[h, w, 3]`` in 0..1 as an image, enlarged ``scale`` times without blur."""
    array = (picture.clamp(0, 1) * 255).round().byte().cpu().numpy().astype(np.uint8)
    image = Image.fromarray(array)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)


def wrap(draw: ImageDraw.ImageDraw, text: str, font, width: int, lines: int = 3) -> list[str]:
    """Break a text into at most ``lines`` lines of ``width``; the rest becomes an ellipsis."""
    out, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if draw.textlength(longer, font=font) <= width or not line:
            line = longer
        else:
            out.append(line)
            line = word
    out.append(line)
    if len(out) > lines:
        out = [*out[: lines - 1], out[lines - 1] + " ..."]
    return out


def grid(
    rows: Sequence[tuple[str, Tensor]],
    columns: Sequence[str],
    title: str = "",
    scale: int = 2,
    marked: Sequence[int] = (),
) -> Image.Image:
    """Draw pictures with labels.

    Args:
        rows: (label, pictures ``[n, h, w, 3]`` in 0..1), all with n pictures.
        columns: n prompts.
        title: heading of the sheet.
        scale: enlargement.
        marked: columns whose prompts name the erased concept; their labels are red.
    """
    font, small = ImageFont.load_default(size=15), ImageFont.load_default(size=12)
    height, width = (int(s) * scale for s in rows[0][1].shape[1:3])
    probe = ImageDraw.Draw(Image.new("RGB", (8, 8)))
    heads = [wrap(probe, text, small, width - GAP) for text in columns]
    left = (
        max(int(probe.textlength(part, font=font)) for label, _ in rows for part in label.split("\n"))
        + 2 * GAP
    )
    top = (28 if title else GAP) + 15 * max(len(h) for h in heads) + GAP
    sheet = Image.new("RGB", (left + len(columns) * (width + GAP), top + len(rows) * (height + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((GAP, 5), title, fill=INK, font=font)
    for c, lines in enumerate(heads):
        x = left + c * (width + GAP)
        for i, line in enumerate(lines):
            y = top - GAP - 15 * (len(lines) - i)
            draw.text((x, y), line, fill=MARK if c in marked else INK, font=small)
    for r, (label, pictures) in enumerate(rows):
        y = top + r * (height + GAP)
        draw.multiline_text((GAP, y + height // 2), label, fill=INK, font=font, anchor="lm")
        for c in range(len(columns)):
            sheet.paste(to_image(pictures[c], scale), (left + c * (width + GAP), y))
    return sheet
