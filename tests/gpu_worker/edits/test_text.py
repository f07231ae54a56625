"""Text as pictures: any script, any place, never wider than it may be."""

import io
import struct
import zlib

import numpy as np
import pytest
import structlog
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

from gpu_worker.edits.caption import caption
from gpu_worker.edits.fonts import Fonts
from gpu_worker.edits.text import Ink, set_lines, shortened, text_layers, width_of, wrapped
from gpu_worker.errors import InvalidParams, MediaTooLarge
from gpu_worker.media.frames import Frame
from schemas.overlays import AnnotatedClip, TextLayer
from tests.gpu_worker.footage import growing_at_most

pytestmark = pytest.mark.editing

FONTS = Fonts()
CPU = torch.device("cpu")
SIZE = (320, 240)
INK = Ink(20)


def layers(*asked, pngs=None):
    return text_layers(
        [TextLayer.model_validate(one) for one in asked], SIZE, 10.0, pngs or {}, FONTS, CPU
    )


def drawn(*asked, moment=5.0, pngs=None):
    """Returns the luma of a black frame with the layers over it."""
    half = torch.full((120, 160), 128, dtype=torch.uint8)
    frame = Frame(torch.full((240, 320), 16, dtype=torch.uint8), half, half)
    for layer in layers(*asked, pngs=pngs):
        frame = layer.draw(frame, moment)
    return frame.y.numpy().astype(int)


def box(luma, above=120):
    """Returns left, top, right and bottom of what is bright."""
    rows, columns = np.nonzero(luma > above)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def png(colour, size):
    file = io.BytesIO()
    Image.new("RGBA", size, colour).save(file, "PNG")
    return file.getvalue()


def test_text_is_where_it_was_put():
    """Its box begins at x, y; it is white on the frame."""
    left, top, right, bottom = box(drawn({"text": "Hello", "x": 40, "y": 60, "font_size": 32}))
    assert 40 <= left <= 46
    assert 60 <= top <= 75
    assert bottom <= 60 + 32 * 1.4
    assert 60 < right - left < 110


@pytest.mark.parametrize(
    ("anchor", "middle"),
    [
        ("center", (160, 120)),
        ("top_left", (240, 140)),
        ("bottom_right", (80, 100)),
        ("top", (160, 140)),
    ],
)
def test_the_anchor_is_the_point_that_x_and_y_are(anchor, middle):
    """A PNG of 160x40, each anchor at the frame's middle."""
    body = png("#ffffffff", (160, 40))
    seen = box(
        drawn({"png_key": "a.png", "x": 160, "y": 120, "anchor": anchor}, pngs={"a.png": body})
    )
    assert ((seen[0] + seen[2]) / 2, (seen[1] + seen[3]) / 2) == middle


def test_places_and_sizes_of_a_preview_are_scaled():
    """A layer drawn on a preview of half the size."""
    asked = {"png_key": "a.png", "x": 20, "y": 30, "video_width": 160, "video_height": 120}
    assert box(drawn(asked, pngs={"a.png": png("#ffffffff", (10, 5))})) == (40, 60, 60, 70)


def test_a_layer_is_shown_in_its_time():
    """Before and after, nothing."""
    asked = {"text": "Hello", "start_time": 2, "end_time": 4, "fade_seconds": 0}
    assert [drawn(asked, moment=moment).max() > 200 for moment in (1.9, 2.0, 3.9, 4.0)] == [
        False,
        True,
        True,
        False,
    ]


def test_a_background_lies_under_the_text():
    """A card with round corners, wider than the text on all sides."""
    asked = {
        "text": "Hi",
        "x": 100,
        "y": 100,
        "background_color": "#ff0000",
        "background_opacity": 1.0,
    }
    luma = drawn(asked)
    card, ink = box(luma, 40), box(luma, 200)
    assert card[0] < ink[0]
    assert card[2] > ink[2]
    assert luma[card[1], card[0]] < 40
    assert luma[(card[1] + card[3]) // 2, card[0] + 3] == 63


def test_an_outline_is_drawn_around_the_letters():
    """Black on white ground is seen through it."""
    plain = set_lines(["Hi"], Ink(40), FONTS)
    outlined = set_lines(["Hi"], Ink(40, outline=3, outline_colour="#ff0000"), FONTS)
    red = np.asarray(outlined).astype(int)
    assert ((red[..., 0] > 200) & (red[..., 1] < 50) & (red[..., 3] > 200)).sum() > 100
    assert outlined.width > plain.width


def test_a_png_that_is_none_is_named():
    """With the layer's index."""
    with pytest.raises(InvalidParams, match=r"text_layers\[0\]\.png_key"):
        layers({"png_key": "a.png"}, pngs={"a.png": b"GIF89a"})


# ── what is too large ─────────────────────────────────────────────────────────────────────────────


def bomb(width, height):
    """A PNG of some hundred bytes whose header promises that many pixels; its rows are missing."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


DOT, LINE = png("#ffffffff", (1, 1)), png("#ffffffff", (1, 40_000))
WHOLE = {"png_key": "a.png", "video_width": 1, "video_height": 1}
TOO_LARGE = {
    "letters": ({"text": "W" * 160, "font_size": 1000}, None, InvalidParams),
    "lines": ({"text": "W" * 160, "font_size": 1000, "max_width": 1}, None, InvalidParams),
    "letters-on-a-small-preview": (
        {"text": "W", "font_size": 1000, "video_height": 0.001},
        None,
        InvalidParams,
    ),
    "outline": (
        {"text": "W", "font_size": 4, "outline_width": 50, "video_height": 0.5},
        None,
        InvalidParams,
    ),
    "scaled": (WHOLE | {"video_width": 0.005, "video_height": 0.02}, DOT, InvalidParams),
    "scaled-by-way-of-a-larger-one": (
        WHOLE | {"video_width": 0.5, "video_height": 60_000},
        LINE,
        InvalidParams,
    ),
    "header": ({"png_key": "a.png"}, bomb(30_000, 30_000), MediaTooLarge),
    "header-that-pillow-takes": ({"png_key": "a.png"}, bomb(9_000, 9_000), MediaTooLarge),
}


@pytest.mark.abuse
@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_layer_that_would_be_too_large_is_refused_before_it_is_made(name):
    """It names the layer, and takes less than 32 MiB to find out."""
    asked, body, error = TOO_LARGE[name]
    with growing_at_most(32 << 20), pytest.raises(error, match=r"params\.text_layers\[1\]"):
        layers({"text": "ok"}, asked, pngs={"a.png": body})


@pytest.mark.abuse
def test_layers_that_cover_too_much_together_are_refused():
    """Each of them is legal. Shown one after the other, all of them are."""
    body, asked = (
        png("#ffffffff", (1, 1)),
        {"png_key": "a.png", "video_width": 2, "video_height": 1.2},
    )

    def measured(*starts):
        each = [TextLayer(**asked, start_time=start, end_time=start + 1) for start in starts]
        return text_layers(each, (7680, 4320), 10.0, {"a.png": body}, FONTS, CPU)

    with growing_at_most(32 << 20):
        assert len(measured(*range(200))) == 200
        with pytest.raises(InvalidParams, match="those shown at 7 s cover"):
            measured(1, 7, 7, 7)


class CountingFonts(Fonts):
    """Counts the characters that are measured."""

    measured = 0

    def runs(self, text, size, bold):
        self.measured += len(text)
        return super().runs(text, size, bold)


@pytest.mark.abuse
@pytest.mark.parametrize("room", [1, 100, 10_000])
def test_a_long_word_is_broken_without_measuring_all_of_it_for_each_line(room):
    """2000 letters: 20 times as many are measured at most. It was up to 2 million, 7 s for each
    layer of hundreds.
    """
    fonts = CountingFonts()
    assert "".join(wrapped("W" * 2000, INK, room, fonts)) == "W" * 2000
    assert fonts.measured <= 40_000


@pytest.mark.abuse
def test_a_character_that_no_font_has_is_logged_once(tmp_path):
    """It was logged each time that a line was measured: some 100,000 lines for one text."""
    with structlog.testing.capture_logs() as logs:
        wrapped("\U0010fffe" * 500, INK, 100, Fonts(tmp_path))
    assert len([entry for entry in logs if entry["event"] == "no_glyph"]) == 1


@pytest.mark.parametrize("font_size", [4, 1000])
def test_letters_smaller_than_a_pixel_are_drawn_as_one(font_size):
    """FreeType has none of less."""
    assert layers({"text": "W", "font_size": font_size, "video_height": 65_536})[0].pixels > 0


TEXTS = [
    "a long line of many short words",
    "Donaudampfschifffahrtsgesellschaftskapitän",
    "one\ntwo",
    "日本語" * 20,
    "",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("room", [60, 150])
def test_no_line_is_wider_than_the_room(text, room):
    """Broken at spaces where there are some, and nothing gets lost."""
    lines = wrapped(text, INK, room, FONTS)
    assert all(width_of(line, INK, FONTS) <= room for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "").replace("\n", "")


def test_a_shortened_line_says_that_it_goes_on():
    """And fits."""
    short = shortened("a long line of many words", INK, 100, FONTS)
    assert short.endswith("…")
    assert width_of(short, INK, FONTS) <= 100
    assert shortened("short", INK, 100, FONTS) == "short"


# ── any script ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def own_font(tmp_path):
    """A folder with a font that has one character, U+4E2D, as a full square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(point)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({0x4E2D: "square"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": square})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": "Square", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "square.ttf")
    return tmp_path


def test_a_character_is_drawn_by_the_first_font_that_has_it(own_font):
    """Latin by Open Sans, the other one by the operator's own font, in one line."""
    fonts = Fonts(own_font)
    runs = fonts.runs("ab 中 cd", 20, bold=False)
    assert [(run.text, run.font.getname()[0]) for run in runs] == [
        ("ab ", "Open Sans"),
        ("中", "Square"),
        (" cd", "Open Sans"),
    ]
    solid = np.asarray(set_lines(["中"], Ink(20), fonts))[..., 3]
    assert (solid > 250).sum() >= 19 * 19


def test_what_no_font_has_is_a_box_and_not_an_error(tmp_path):
    """A private character: the export goes on."""
    assert set_lines(["a\U0010fff0b"], INK, Fonts(tmp_path)).width > 20


def test_a_broken_font_file_is_passed_over(tmp_path):
    """Another one may do."""
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    assert Fonts(tmp_path).runs("\u2654", 20, bold=False)


@pytest.mark.parametrize("text", ["Zürich – Ærø", "Ελλάδα", "Привет, мир", "Việt Nam", "€ ½ × …"])
def test_european_scripts_need_no_font_but_ours(text, tmp_path):
    """Every character has a glyph of its own in the bundled font."""
    assert {run.font.getname()[0] for run in Fonts(tmp_path).runs(text, 20, bold=True)} == {
        "Open Sans"
    }


# ── captions ──────────────────────────────────────────────────────────────────────────────────────


def card(size=(1280, 720), **clip):
    return caption(
        AnnotatedClip.model_validate({"start_time": 0, "end_time": 1, **clip}), size, FONTS
    )


def test_nothing_to_tell_is_no_caption():
    """A clip without words is shown as it is."""
    assert card() is None


@pytest.mark.parametrize("rating", range(1, 6))
def test_the_rating_is_that_many_golden_stars(rating):
    """Counted by their colour."""
    pixels = np.asarray(card(rating=rating)).astype(int)
    gold = (np.abs(pixels[..., :3] - (255, 196, 46)) < 6).all(axis=-1)
    columns = gold.any(axis=0)
    assert (np.diff(np.r_[0, columns.astype(int)]) == 1).sum() == rating


@pytest.mark.parametrize("size", [(1280, 720), (1080, 1920), (320, 240), (128, 96)])
def test_a_caption_fits_its_frame(size):
    """However much is told, it stays within the frame and its margins, and the text is white on
    dark.
    """
    words = {"name": "name " * 30, "notes": "note " * 300, "rating": 5, "tags": ["tag " * 10] * 20}
    picture = card(size, **words)
    assert picture.width == size[0]
    assert picture.height <= size[1]
    pixels = np.asarray(picture).astype(int)
    bright = (pixels[..., :3].min(axis=-1) > 200) & (pixels[..., 3] > 150)
    margin = round(min(size) * 0.05)
    assert bright.sum() > 20
    assert not bright[:, : margin - 2].any()
    assert not bright[:, size[0] - margin + 2 :].any()
    assert not bright[-margin + 2 :].any()


def test_the_picture_above_the_caption_is_left_alone():
    """It fades out: its first row is clear, the row of the name is dark."""
    alpha = np.asarray(card(name="Goal"))[..., 3]
    assert alpha[0].max() == 0
    assert alpha[-1].min() > 180
