"""Text on pictures: set with Pillow once, put over each frame as a layer.

Every size is computed, and refused where it is too large, before anything of that size is made.
"""

import bisect
import contextlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageOps, UnidentifiedImageError

from gpu_worker.edits.fonts import Fonts, Run, drawable
from gpu_worker.edits.layer import Layer, TimedLayer, layer_of, seen_part
from gpu_worker.errors import InvalidParams, MediaTooLarge
from schemas.overlays import MAX_LAYER_PIXELS, Anchor, TextLayer

#: How many pixels of the frame those layers may cover that are shown together. Each takes up to 20
#: bytes while it is drawn, and 12 while it is shown.
MAX_SHOWN_PIXELS = 2 * MAX_LAYER_PIXELS
LINE_HEIGHT = 1.35
#: Of the font's size: the space around text that has a background.
PADDING = 0.4
#: How far left and up of `x, y` the layer begins, in shares of its size.
_ANCHORS = {
    Anchor.TOP_LEFT: (0.0, 0.0),
    Anchor.TOP: (0.5, 0.0),
    Anchor.TOP_RIGHT: (1.0, 0.0),
    Anchor.LEFT: (0.0, 0.5),
    Anchor.CENTER: (0.5, 0.5),
    Anchor.RIGHT: (1.0, 0.5),
    Anchor.BOTTOM_LEFT: (0.0, 1.0),
    Anchor.BOTTOM: (0.5, 1.0),
    Anchor.BOTTOM_RIGHT: (1.0, 1.0),
}


@dataclass(frozen=True)
class Drawing:
    """A picture that is not drawn yet, and how large it will be."""

    width: int
    height: int
    draw: Callable[[], Image.Image]


@dataclass(frozen=True)
class Ink:
    """How text is set; sizes in pixels, colours as `#rrggbb`."""

    size: float
    colour: str = "#ffffff"
    bold: bool = False
    outline: float = 0.0
    outline_colour: str = "#000000"


def text_layers(
    requested: Sequence[TextLayer],
    size: tuple[int, int],
    end: float,
    pngs: Mapping[str, bytes],
    fonts: Fonts,
    device: torch.device,
) -> tuple[TimedLayer, ...]:
    """Measures all text layers for frames of `size`; each is set when it is shown.

    Args:
        end: of the clip, for layers that do not say when they end (seconds of the source).
        pngs: the PNG layers' files by key.

    Raises:
        InvalidParams: a PNG is none, or a layer would be too large; names the layer.
        MediaTooLarge: a PNG has too many pixels; names the layer.
    """
    layers: list[TimedLayer] = []
    for index, layer in enumerate(requested):
        name = f"params.text_layers[{index}]"
        scale = layer.scale_to(*size)
        drawing = (
            _text(layer, scale, fonts, name)
            if layer.png_key is None
            else _png(pngs[layer.png_key], scale, name)
        )
        layers += _timed(layer, drawing, size, end, device)
    _refuse_crowd(layers)
    return tuple(layers)


def _timed(
    layer: TextLayer, drawing: Drawing, size: tuple[int, int], end: float, device: torch.device
) -> list[TimedLayer]:
    """Returns the layer at its place, in its time; none where nothing of it is in the frame."""
    x_scale, y_scale = layer.scale_to(*size)
    left, up = _ANCHORS[layer.anchor]
    place = (
        round(layer.x * x_scale - left * drawing.width),
        round(layer.y * y_scale - up * drawing.height),
    )
    seen = seen_part((drawing.width, drawing.height), place, size)
    if seen is None:
        return []
    stop = end if layer.end_time is None else layer.end_time
    when = (layer.start_time, stop, layer.fade_seconds)

    def make() -> Layer | None:
        return layer_of(drawing.draw(), place, size, when, layer.opacity, device)

    return [TimedLayer(layer.start_time, stop, (seen[2] - seen[0]) * (seen[3] - seen[1]), make)]


def _refuse_crowd(layers: Sequence[TimedLayer]) -> None:
    """Refuses layers that are shown together and have too many pixels in the frame; there are most
    where one begins.
    """
    for one in layers:
        together = sum(other.pixels for other in layers if other.start <= one.start < other.end)
        if together > MAX_SHOWN_PIXELS:
            raise InvalidParams(
                f"params.text_layers: those shown at {one.start:g} s cover {together} pixels of "
                "the frame;"
                f" at most {MAX_SHOWN_PIXELS} are drawn at a time."
            )


def _refuse_large(name: str, *sizes: tuple[float, float]) -> None:
    for width, height in sizes:
        if width * height > MAX_LAYER_PIXELS:
            raise InvalidParams(
                f"{name} would be {width:.0f}x{height:.0f} pixels large; a layer has at most"
                f" {MAX_LAYER_PIXELS} pixels."
            )


def set_lines(lines: Sequence[str], ink: Ink, fonts: Fonts) -> Image.Image:
    """Sets lines below one another on a transparent picture that is just large enough."""
    runs = [fonts.runs(line, ink.size, ink.bold) for line in lines]
    margin, step = int(ink.outline + 1), ink.size * LINE_HEIGHT
    picture = Image.new("RGBA", _size_of(runs, ink), ink.colour + "00")
    for number, line in enumerate(runs):
        x, baseline = float(margin), margin + step * number + ink.size * 1.05
        for run in line:
            if run.is_coloured:
                _put_coloured(picture, run, (x, baseline))
            else:
                _put_plain(picture, run, (x, baseline), ink)
            x += run.width
    return picture


def _put_plain(picture: Image.Image, run: Run, place: tuple[float, float], ink: Ink) -> None:
    ImageDraw.Draw(picture).text(
        place,
        run.text,
        ink.colour,
        run.font,
        anchor="ls",
        direction=run.direction,
        stroke_width=ink.outline,
        stroke_fill=ink.outline_colour,
    )


def _put_coloured(picture: Image.Image, run: Run, place: tuple[float, float]) -> None:
    """Draws glyphs that have colours of their own, which no outline goes with."""
    left, top, right, bottom = run.font.getbbox(run.text, anchor="ls", direction=run.direction)
    size = math.ceil(right - left), math.ceil(bottom - top)
    if min(size) < 1:
        return
    glyphs = Image.new("RGBA", size)
    ImageDraw.Draw(glyphs).text(
        (-left, -top),
        run.text,
        font=run.font,
        anchor="ls",
        direction=run.direction,
        embedded_color=True,
    )
    shown = [max(1, round(side * run.scale)) for side in size]
    if shown != list(size):
        glyphs = glyphs.resize((shown[0], shown[1]), Image.Resampling.BOX)
    x, y = round(place[0] + left * run.scale), round(place[1] + top * run.scale)
    # What reaches over an edge of the text's picture is cut off.
    picture.alpha_composite(glyphs, (max(0, x), max(0, y)), (max(0, -x), max(0, -y)))


def _size_of(runs: Sequence[Sequence[Run]], ink: Ink) -> tuple[int, int]:
    """Returns the width and height that lines take."""
    widths = [sum(run.width for run in line) for line in runs]
    margin = int(ink.outline + 1)
    return int(max(widths, default=0)) + 2 * margin + 1, round(
        ink.size * LINE_HEIGHT * len(runs)
    ) + 2 * margin


def wrapped(text: str, ink: Ink, max_width: float, fonts: Fonts) -> list[str]:
    """Breaks text into lines of at most `max_width` pixels, at spaces where there are some."""
    lines: list[str] = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in _words(paragraph):
            if line and width_of((line + word).rstrip(), ink, fonts) > max_width:
                lines.append(line.rstrip())
                line = ""
            line += word
            while (fits := _longest_fit(line, ink, max_width, fonts)) < len(line):
                lines.append(line[:fits].rstrip())
                line = line[fits:]
        lines.append(line.rstrip())
    return lines


def shortened(text: str, ink: Ink, max_width: float, fonts: Fonts) -> str:
    """Cuts one line to at most `max_width` pixels, with an ellipsis where something was cut off."""
    if width_of(text, ink, fonts) <= max_width:
        return text
    while text and width_of(text + "…", ink, fonts) > max_width:
        text = text[:-1].rstrip()
    return text + "…"


def width_of(text: str, ink: Ink, fonts: Fonts) -> float:
    """Returns the width of one line in pixels."""
    return sum(run.width for run in fonts.runs(text, ink.size, ink.bold))


def _words(paragraph: str) -> list[str]:
    """Splits after spaces, which stay with the word before."""
    words: list[str] = [""]
    for character in paragraph:
        if words[-1].endswith(" ") and character != " ":
            words.append("")
        words[-1] += character
    return words


def _longest_fit(line: str, ink: Ink, max_width: float, fonts: Fonts) -> int:
    """Returns how many characters of a line fit, at least one. It measures about twice as many, not
    the whole line.
    """

    def is_too_wide(count: int) -> bool:
        return width_of(line[:count].rstrip(), ink, fonts) > max_width

    fits = 1
    while fits < len(line):
        further = min(2 * fits, len(line))
        if is_too_wide(further):
            return fits + bisect.bisect_left(range(fits + 1, further), True, key=is_too_wide)
        fits = further
    return fits


def _text(layer: TextLayer, scale: tuple[float, float], fonts: Fonts, name: str) -> Drawing:
    """Breaks the text into lines and measures them; nothing is drawn yet."""
    x_scale, y_scale = scale
    # FreeType has no letters of less than a pixel.
    size = max(1.0, layer.font_size * y_scale)
    # A letter of that size alone is too large; and FreeType refuses sizes beyond its own
    # limit.
    _refuse_large(name, (size, size))
    ink = Ink(size, layer.color, layer.bold, layer.outline_width * y_scale, layer.outline_color)
    text = drawable(layer.text or "")
    lines = (
        wrapped(text, ink, layer.max_width * x_scale, fonts)
        if layer.max_width
        else (text.splitlines() or [""])
    )
    width, height = _size_of([fonts.runs(line, ink.size, ink.bold) for line in lines], ink)
    padding = 0 if layer.background_color is None else round(ink.size * PADDING)
    width, height = width + 2 * padding, height + 2 * padding
    _refuse_large(name, (width, height))

    def draw() -> Image.Image:
        try:
            picture = set_lines(lines, ink, fonts)
        except (
            Image.DecompressionBombError
            # A font whose marks reach far beyond their line.
        ) as error:
            raise InvalidParams(f"{name} is too large.", str(error)) from error
        return picture if layer.background_color is None else _on_card(picture, padding, layer)

    return Drawing(width, height, draw)


def _on_card(picture: Image.Image, padding: int, layer: TextLayer) -> Image.Image:
    card = Image.new("RGBA", (picture.width + 2 * padding, picture.height + 2 * padding))
    alpha = round(255 * layer.background_opacity)
    ground = (*ImageColor.getrgb(layer.background_color or "")[:3], alpha)
    rounded_rectangle(card, (0, 0, *card.size), padding, ground)
    card.alpha_composite(picture, (padding, padding))
    return card


def rounded_rectangle(
    picture: Image.Image, box: tuple[int, int, int, int], radius: float, colour: tuple[int, ...]
) -> None:
    """Puts an antialiased rectangle with round corners over a picture; Pillow's own has jagged
    ones.
    """
    left, top, right, bottom = box
    mask = Image.new("L", (right - left, bottom - top), 255)
    # Four times as fine, and only where it is round: of a whole card that would be sixteen times
    # its pixels.
    radius = min(radius, (right - left) / 2, (bottom - top) / 2)
    fine, side = 4, math.ceil(radius)
    if side > 0:
        corner = Image.new("L", (side * fine, side * fine))
        ImageDraw.Draw(corner).ellipse((0, 0, 2 * radius * fine - 1, 2 * radius * fine - 1), 255)
        corner = corner.resize((side, side), Image.Resampling.BOX)
        for x, across in ((0, corner), (mask.width - side, ImageOps.mirror(corner))):
            mask.paste(across, (x, 0))
            mask.paste(ImageOps.flip(across), (x, mask.height - side))
    alpha = mask.point([value * colour[3] // 255 for value in range(256)])
    ground = Image.new("RGBA", mask.size, (*colour[:3], 0))
    ground.putalpha(alpha)
    picture.alpha_composite(ground, (left, top))


def _png(body: bytes, scale: tuple[float, float], name: str) -> Drawing:
    """Reads a PNG's size and checks its sums; it is decoded when it is drawn."""
    with _reading(name), Image.open(io.BytesIO(body), formats=["PNG"]) as picture:
        width, height = picture.size
        if width * height > MAX_LAYER_PIXELS:
            raise MediaTooLarge(
                f"{name}.png_key is too large a picture: {width}x{height};"
                f" at most {MAX_LAYER_PIXELS} pixels are taken."
            )
        picture.verify()
    wide, high = (
        max(1, round(side * factor)) for side, factor in zip((width, height), scale, strict=True)
    )
    # Pillow scales the width first.
    _refuse_large(name, (wide, high), (wide, height))

    def draw() -> Image.Image:
        with _reading(name), Image.open(io.BytesIO(body), formats=["PNG"]) as picture:
            decoded = _eight_bits(picture).convert("RGBA")
        if decoded.size == (wide, high):
            return decoded
        return decoded.resize((wide, high), Image.Resampling.LANCZOS)

    return Drawing(wide, high, draw)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Returns a picture of 16-bit gray with 8 bits; Pillow alone cuts off what is above 255."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray(((np.asarray(picture, np.float32) + 128) / 257).astype(np.uint8))


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaTooLarge(f"{name}.png_key is too large a picture.", str(error)) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InvalidParams(f"{name}.png_key is not a PNG that can be read.", str(error)) from error
