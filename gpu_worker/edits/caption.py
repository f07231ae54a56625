"""The caption of an annotated clip: rating, name, tags and notes on a soft dark ground along the
lower edge.

Sizes are shares of the picture's shorter side, so that it looks the same at each resolution and in
portrait.
"""

import math

from PIL import Image, ImageDraw

from gpu_worker.edits.fonts import Fonts, drawable, one_line
from gpu_worker.edits.text import Ink, rounded_rectangle, set_lines, shortened, width_of, wrapped
from schemas.overlays import AnnotatedClip

NAME, NOTES, TAGS, STARS, MARGIN, GAP = 0.052, 0.032, 0.026, 0.036, 0.05, 0.016
NOTES_LINES = 3
MAX_RATING = 5
GOLD, PALE, GROUND = (255, 196, 46, 255), (255, 255, 255, 70), (8, 10, 14)
GROUND_ALPHA = 215
SOFT = "#e6e9ee"


def caption(clip: AnnotatedClip, size: tuple[int, int], fonts: Fonts) -> Image.Image | None:
    """Draws the caption for frames of `size` (width, height), as wide as they are; None where
    there is nothing to show.

    It goes to the lower edge of the frame.
    """
    width, height = size
    unit = min(size)
    margin, gap = round(unit * MARGIN), round(unit * GAP)
    room = width - 2 * margin
    name, notes = Ink(unit * NAME, bold=True), Ink(unit * NOTES, SOFT)
    rows: list[Image.Image] = []
    if clip.rating is not None:
        rows.append(_stars(clip.rating, unit * STARS))
    if clip.name:
        rows.append(set_lines([shortened(one_line(clip.name), name, room, fonts)], name, fonts))
    if clip.tags:
        rows.append(_pills(clip.tags, unit * TAGS, room, fonts))
    if clip.notes:
        lines = _few_lines(drawable(clip.notes), notes, room, fonts)
        rows.append(set_lines(lines, notes, fonts))
    if not rows:
        return None
    text_height = sum(row.height for row in rows) + gap * (len(rows) - 1)
    fade = round(unit * 0.12)
    ground = _ground(width, min(height, fade + text_height + margin), fade)
    y = ground.height - margin - text_height
    for row in rows:
        ground.alpha_composite(
            row.crop((0, max(0, -y), row.width, row.height)), (margin, max(0, y))
        )
        y += row.height + gap
    return ground


def _ground(width: int, height: int, fade: int) -> Image.Image:
    """Dark, fading out upwards along a smooth curve."""
    alpha = Image.new("L", (1, height))
    for y in range(height):
        part = min(1.0, y / max(1, fade + (height - fade) / 2))
        alpha.putpixel((0, y), round(GROUND_ALPHA * part * part * (3 - 2 * part)))
    ground = Image.new("RGBA", (width, height), (*GROUND, 0))
    ground.putalpha(alpha.resize((width, height)))
    return ground


def _stars(rating: int, size: float) -> Image.Image:
    fine, step = 4, size * 1.15
    picture = Image.new(
        "RGBA", (round((step * MAX_RATING) * fine), round(size * fine)), (255, 196, 46, 0)
    )
    draw = ImageDraw.Draw(picture)
    for star in range(MAX_RATING):
        centre = ((star * step + size / 2) * fine, size * 0.53 * fine)
        points = [
            (
                centre[0] + radius * math.sin(corner * math.pi / 5),
                centre[1] - radius * math.cos(corner * math.pi / 5),
            )
            for corner in range(10)
            for radius in [size * fine * (0.5 if corner % 2 == 0 else 0.2)]
        ]
        draw.polygon(points, GOLD if star < rating else PALE)
    return picture.resize((picture.width // fine, picture.height // fine), Image.Resampling.BOX)


def _pills(tags: tuple[str, ...], size: float, room: float, fonts: Fonts) -> Image.Image:
    """Tags side by side, as many as fit; the rest are counted."""
    ink = Ink(size, "#ffffff")
    padding, gap = round(size * 0.7), round(size * 0.5)
    height = round(size * 1.9)

    def total(words: list[str]) -> float:
        return sum(width_of(word, ink, fonts) + 2 * padding + gap + 4 for word in words) - gap

    words = [shortened(one_line(tag), ink, room - 2 * padding - 4, fonts) for tag in tags]
    while len(words) > 1 and total(words) > room:
        kept = len(words) - (2 if words[-1].startswith("+") else 1)
        words = [*words[:kept], f"+{len(tags) - kept}"]
    picture = Image.new("RGBA", (max(1, math.ceil(total(words))), height))
    x = 0
    for word in words:
        label = set_lines([word], ink, fonts)
        width = label.width + 2 * padding
        right = min(x + width, picture.width)
        rounded_rectangle(picture, (x, 0, right, height), height / 2, (255, 255, 255, 46))
        picture.alpha_composite(label, (x + padding, (height - label.height) // 2))
        x += width + gap
    return picture


def _few_lines(text: str, ink: Ink, room: float, fonts: Fonts) -> list[str]:
    lines = wrapped(text, ink, room, fonts)
    if len(lines) <= NOTES_LINES:
        return lines
    return [*lines[: NOTES_LINES - 1], shortened(lines[NOTES_LINES - 1] + " …", ink, room, fonts)]
