"""Text on pictures: set with Pillow once, put over each frame as a layer."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageColor, ImageDraw, UnidentifiedImageError

from gpu_worker.edits.fonts import Fonts
from gpu_worker.edits.layer import Layer, layer_of
from gpu_worker.errors import InvalidParams, MediaTooLarge
from schemas.overlays import Anchor, TextLayer

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
class Ink:
    """How text is set; sizes in pixels, colours as `#rrggbb`."""

    size: float
    colour: str = "#ffffff"
    bold: bool = False
    outline: float = 0.0
    outline_colour: str = "#000000"


def text_layers(
    asked: Sequence[TextLayer],
    size: tuple[int, int],
    end: float,
    pngs: Mapping[str, bytes],
    fonts: Fonts,
    device: torch.device,
) -> tuple[Layer, ...]:
    """Sets all text layers for frames of `size`.

    Args:
        end: of the clip, for layers that do not say when they end (seconds of the source).
        pngs: the PNG layers' files by key.

    Raises:
        InvalidParams: a PNG is none; names the layer.
    """
    layers = []
    for index, layer in enumerate(asked):
        x_scale, y_scale = layer.scale_to(*size)
        if layer.png_key is not None:
            picture = _png(pngs[layer.png_key], index)
            if (x_scale, y_scale) != (1.0, 1.0):
                scaled = (max(1, round(picture.width * x_scale)), max(1, round(picture.height * y_scale)))
                picture = picture.resize(scaled, Image.Resampling.LANCZOS)
        else:
            picture = _text(layer, y_scale, x_scale, fonts)
        left, up = _ANCHORS[layer.anchor]
        place = (
            round(layer.x * x_scale - left * picture.width),
            round(layer.y * y_scale - up * picture.height),
        )
        when = (layer.start_time, end if layer.end_time is None else layer.end_time, layer.fade_seconds)
        made = layer_of(picture, place, size, when, layer.opacity, device)
        layers += [made] if made else []
    return tuple(layers)


def set_lines(lines: Sequence[str], ink: Ink, fonts: Fonts) -> Image.Image:
    """Sets lines below one another on a transparent picture that is just large enough."""
    runs = [fonts.runs(line, ink.size, ink.bold) for line in lines]
    widths = [sum(font.getlength(stretch) for stretch, font in line) for line in runs]
    step = ink.size * LINE_HEIGHT
    margin = int(ink.outline + 1)
    height = round(step * len(lines)) + 2 * margin
    picture = Image.new("RGBA", (int(max(widths, default=0)) + 2 * margin + 1, height), ink.colour + "00")
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(runs):
        x, baseline = float(margin), margin + step * number + ink.size * 1.05
        for stretch, font in line:
            draw.text(
                (x, baseline),
                stretch,
                ink.colour,
                font,
                anchor="ls",
                stroke_width=ink.outline,
                stroke_fill=ink.outline_colour,
            )
            x += font.getlength(stretch)
    return picture


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
            while len(line) > 1 and width_of(line.rstrip(), ink, fonts) > max_width:
                fits = _longest_fit(line, ink, max_width, fonts)
                lines.append(line[:fits])
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
    return sum(font.getlength(stretch) for stretch, font in fonts.runs(text, ink.size, ink.bold))


def _words(paragraph: str) -> list[str]:
    """Splits after spaces, which stay with the word before."""
    words: list[str] = [""]
    for character in paragraph:
        if words[-1].endswith(" ") and character != " ":
            words.append("")
        words[-1] += character
    return words


def _longest_fit(line: str, ink: Ink, max_width: float, fonts: Fonts) -> int:
    fits = 1
    while fits < len(line) and width_of(line[: fits + 1], ink, fonts) <= max_width:
        fits += 1
    return fits


def _text(layer: TextLayer, scale: float, x_scale: float, fonts: Fonts) -> Image.Image:
    ink = Ink(
        layer.font_size * scale, layer.color, layer.bold, layer.outline_width * scale, layer.outline_color
    )
    text = layer.text or ""
    lines = (
        wrapped(text, ink, layer.max_width * x_scale, fonts)
        if layer.max_width
        else (text.splitlines() or [""])
    )
    picture = set_lines(lines, ink, fonts)
    if layer.background_color is None:
        return picture
    padding = round(ink.size * PADDING)
    alpha = round(255 * layer.background_opacity)
    size = (picture.width + 2 * padding, picture.height + 2 * padding)
    card = Image.new("RGBA", size)
    ground = (*ImageColor.getrgb(layer.background_color)[:3], alpha)
    rounded_rectangle(card, (0, 0, *size), padding, ground)
    card.alpha_composite(picture, (padding, padding))
    return card


def rounded_rectangle(
    picture: Image.Image, box: tuple[int, int, int, int], radius: float, colour: tuple[int, ...]
) -> None:
    """Puts an antialiased rectangle with round corners over a picture; Pillow's own has jagged ones."""
    left, top, right, bottom = box
    fine = 4
    shape = Image.new("L", ((right - left) * fine, (bottom - top) * fine))
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, shape.width - 1, shape.height - 1), radius * fine, 255)
    mask = shape.resize((right - left, bottom - top), Image.Resampling.BOX)
    alpha = mask.point([value * colour[3] // 255 for value in range(256)])
    ground = Image.new("RGBA", mask.size, (*colour[:3], 0))
    ground.putalpha(alpha)
    picture.alpha_composite(ground, (left, top))


def _png(body: bytes, index: int) -> Image.Image:
    try:
        with Image.open(io.BytesIO(body), formats=["PNG"]) as picture:
            return picture.convert("RGBA")
    except Image.DecompressionBombError as error:
        raise MediaTooLarge(
            f"params.text_layers[{index}].png_key is too large a picture.", str(error)
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InvalidParams(
            f"params.text_layers[{index}].png_key is not a PNG that can be read.", str(error)
        ) from error
