"""One page to put beside a LoRA: the verdict, its items, the schedule, and pictures before and after."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ..grid import GAP, INK, MARK, PAPER, to_image, wrap
from . import thresholds as at
from .result import Verification
from .trajectory import Curve

WIDTH, MARGIN, ROW = 1000, 24, 17
COLOURS = {at.PASS: (30, 120, 60), at.WARN: (176, 112, 0), at.FAIL: MARK}
PALE = (205, 207, 211)
PLOT = (452, 190)  #: pixels of a concept's plot
PICTURE = 142  #: pixels of a picture's side at most
MOST_ITEMS, MOST_PLOTS = 16, 4
LINES = (("before", INK, "before"), ("after", MARK, "after"), ("left", (0, 90, 181), "after, along before"))


def page(found: Verification) -> Image.Image:
    """The page as an image of :data:`WIDTH` pixels, as high as it needs to be."""
    parts = [_head(found), _items(found), _plots(found)]
    if found.thumbnails:
        parts.append(_pictures(found.thumbnails))
    parts.append(_foot(found))
    sheet = Image.new("RGB", (WIDTH, sum(p.height for p in parts) + 2 * MARGIN), PAPER)
    y = MARGIN
    for part in parts:
        sheet.paste(part, (0, y))
        y += part.height
    return sheet


def _font(size: int):
    return ImageFont.load_default(size=size)


def _blank(height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (WIDTH, max(1, height)), PAPER)
    return image, ImageDraw.Draw(image)


def _wrapped(text: str, size: int, width: int, lines: int) -> list[str]:
    probe = ImageDraw.Draw(Image.new("RGB", (8, 8)))
    return wrap(probe, text, _font(size), width, lines)


def _head(found: Verification) -> Image.Image:
    names = ", ".join(str(m.concept) for m in found.concepts)
    title = _wrapped(f"Erased: {names}", 22, WIDTH - 2 * MARGIN - 130, 2)
    leak, weak = found.leak, found.weakest
    facts = [
        found.sentence,
        f"Strongest leak: {leak['name']} of '{leak['concept']}', {max(0.0, leak['reach']):.0%} of the old "
        "predictions.",
    ]
    if weak:
        facts.append(
            f"Weakest kept thing: '{weak['name']}', still shown in {weak['still']} of {weak['of']} pictures."
        )
    top = max(27 * len(title), 46) + 8
    image, draw = _blank(top + 20 * len(facts) + 14)
    draw.rounded_rectangle((MARGIN, 0, MARGIN + 110, 44), 8, fill=COLOURS[found.status])
    draw.text((MARGIN + 55, 22), found.status, fill=PAPER, font=_font(24), anchor="mm")
    for i, text in enumerate(title):
        draw.text((MARGIN + 130, 27 * i), text, fill=INK, font=_font(22))
    for i, fact in enumerate(facts):
        text = _wrapped(fact, 15, WIDTH - 2 * MARGIN, 1)[0]
        draw.text((MARGIN, top + 20 * i), text, fill=INK, font=_font(15))
    return image


def _items(found: Verification) -> Image.Image:
    """A row an item: status, what it is, and the sentence."""
    shown = found.items[:MOST_ITEMS]
    texts = [_wrapped(item.sentence, 13, WIDTH - 2 * MARGIN - 250, 3) for item in shown]
    height = sum(max(1, len(t)) * ROW + 9 for t in texts) + 30
    image, draw = _blank(height)
    y = 0
    for item, lines in zip(shown, texts):
        draw.line((MARGIN, y, WIDTH - MARGIN, y), fill=PALE)
        status = item.status if item.decides else f"({item.status})"
        draw.text((MARGIN, y + 4), status, fill=COLOURS[item.status], font=_font(13))
        name = f"{item.side}: {item.name}"
        while draw.textlength(name, font=_font(13)) > 174:
            name = name[:-2] + "…"
        draw.text((MARGIN + 70, y + 4), name, fill=INK, font=_font(13))
        for i, text in enumerate(lines):
            draw.text((MARGIN + 250, y + 4 + ROW * i), text, fill=INK, font=_font(13))
        y += len(lines) * ROW + 9
    draw.line((MARGIN, y, WIDTH - MARGIN, y), fill=PALE)
    left = len(found.items) - len(shown)
    note = "In brackets: does not decide." + (f" {left} more items are in the report." if left else "")
    draw.text((MARGIN, y + 5), note, fill=INK, font=_font(12))
    return image


def _plots(found: Verification) -> Image.Image:
    """The schedule of the first concepts, two a row."""
    shown = found.concepts[:MOST_PLOTS]
    rows = -(-len(shown) // 2)
    image, _ = _blank(rows * (PLOT[1] + 16) + 6)
    for number, measured in enumerate(shown):
        x = MARGIN + (number % 2) * (PLOT[0] + 48)
        image.paste(plot(measured.curve, measured.concept.target), (x, 6 + (number // 2) * (PLOT[1] + 16)))
    return image


def plot(curve: Curve, name: str) -> Image.Image:
    """``||p(c) - p(g)||`` along the schedule, before and after, from the first step on the left."""
    width, height = PLOT
    image = Image.new("RGB", PLOT, PAPER)
    draw = ImageDraw.Draw(image)
    left, right, top, bottom = 46, width - 8, 38, height - 22
    title = _wrapped(f"Prediction for '{name}' less that without it", 13, width, 1)[0]
    draw.text((0, 0), title, fill=INK, font=_font(13))
    high = max([*curve.before, *curve.after, 1e-12])
    low = min([0.0, *curve.left])

    def at_(i: int, value: float) -> tuple[float, float]:
        x = left + (right - left) * (i / max(1, len(curve.before) - 1))
        return x, bottom - (bottom - top) * (value - low) / (high - low)

    zero = at_(0, 0.0)[1]
    draw.line((left, zero, right, zero), fill=PALE)
    draw.line((left, top, left, bottom), fill=PALE)
    draw.text((left - 4, top), f"{high:.3g}", fill=INK, font=_font(11), anchor="rm")
    draw.text((left - 4, zero), "0", fill=INK, font=_font(11), anchor="rm")
    draw.text((left, height - 16), "first step", fill=INK, font=_font(11))
    draw.text((right, height - 16), "last step", fill=INK, font=_font(11), anchor="ra")
    x = left
    for key, colour, label in LINES:
        points = [at_(i, v) for i, v in enumerate(getattr(curve, key))]
        draw.line(points, fill=colour, width=2) if len(points) > 1 else draw.point(points, fill=colour)
        draw.line((x, 26, x + 14, 26), fill=colour, width=2)
        draw.text((x + 18, 20), label, fill=INK, font=_font(11))
        x += 32 + int(draw.textlength(label, font=_font(11)))
    return image


def _pictures(thumbnails: Sequence[tuple]) -> Image.Image:
    """Before above after, a column a prompt."""
    pairs = [[_small(picture) for picture in (before, after)] for _, before, after in thumbnails]
    side = max(p.height for pair in pairs for p in pair)
    columns = min(len(pairs), (WIDTH - 2 * MARGIN - 54) // (PICTURE + GAP))
    labels = [_wrapped(prompt, 11, PICTURE, 3) for prompt, *_ in thumbnails]
    image, draw = _blank(2 * (side + GAP) + 3 * 13 + 20)
    for row, label in enumerate(("before", "after")):
        draw.text((MARGIN, 45 + row * (side + GAP) + side // 2), label, fill=INK, font=_font(13), anchor="lm")
    for column in range(columns):
        x = MARGIN + 54 + column * (PICTURE + GAP)
        for i, text in enumerate(labels[column]):
            draw.text((x, 13 * i), text, fill=INK, font=_font(11))
        for row, picture in enumerate(pairs[column]):
            image.paste(picture, (x, 45 + row * (side + GAP)))
    return image


def _small(picture) -> Image.Image:
    """A picture ``[h, w, 3]`` in 0..1 with its longer side at :data:`PICTURE` pixels."""
    image = to_image(picture, 1)
    scale = PICTURE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


def _foot(found: Verification) -> Image.Image:
    s = found.setting
    image, draw = _blank(24)
    made = f"{s['model']['kind']} {s['model']['hash']}, erasure {s['fingerprint']}"
    judge = f"; judge: {found.judged.name}" if found.judged else ""
    text = f"TRACE {s['trace']}, {made}; {s['sampler']}{judge}"
    draw.text((MARGIN, 8), _wrapped(text, 11, WIDTH - 2 * MARGIN, 1)[0], fill=INK, font=_font(11))
    return image
